/** Work that another server asks for: accepted once by the name that it gave it, and followed to its end. */
import { clone } from "@bufbuild/protobuf";
import { durationMs } from "@bufbuild/protobuf/wkt";
import { TaskState } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import { TraceEventKind } from "../../../gen/moltwire/bus/v1/trace_pb.ts";
import { type PeerCall, PeerCallSchema } from "../../../gen/moltwire/federation/v1/peer_envelope_pb.ts";
import type { App } from "../../app.ts";
import { cancelTopic } from "../../bus/cancel-topic.ts";
import { concludeAcross } from "../../bus/conclude.ts";
import { checkRoom, type Dispatcher, startAccepted } from "../../bus/dispatch.ts";
import { deadlineOf, ended } from "../../bus/ended.ts";
import { toInput } from "../../bus/submit.ts";
import { findTask, isTerminal, lockTask, type TaskRow } from "../../bus/task-store.ts";
import type { Tx } from "../../db/db.ts";
import { Fault, Refused } from "../../errors.ts";
import { requestDigest } from "../../rpc/idempotency.ts";
import { traceContext } from "../../rpc/trace-context.ts";
import { type AcceptedAcross, type AcrossOrder, acceptAcross } from "../gateway/accept.ts";
import { countUnder } from "../gateway/rate.ts";
import { quotaExceeded } from "../quota.ts";
import { type CallRow, claimCall, countOfTrace, dropCall, findCall, nameTask } from "./call-store.ts";
import { type Arrival, checkPeer } from "./door.ts";

/**
 * How much work of one trace a peer may ask for within a day. Agents that pass work on in a circle, each time as if it were the beginning of a chain, come to an end by this; what is asked to and fro
 * within one piece of work is far less.
 */
export const maxCallsOfTrace = 10_000;

/** What makes two askings the same work: all but how long the answer is waited for. */
function digestOf(call: PeerCall): string {
  const rest = clone(PeerCallSchema, call);
  delete rest.timeout;
  return requestDigest(PeerCallSchema, rest);
}

/** The order as the gateway takes it, of the organisation that stands for the peer, for its agent. */
function orderOf(app: App, { peer, envelope }: Arrival, call: PeerCall, deadlineMs: number | null): AcrossOrder {
  const told = { peer: peer.name, from_org_id: call.fromOrgId, from_agent_id: call.fromAgentId };
  const { budgetLeftMicros } = envelope;
  return {
    wish: {
      orgId: peer.org_id,
      callerAgentId: peer.agent_id,
      origin: "gateway",
      grantId: call.grantId,
      contract: { contractId: call.contractId, version: call.contractVersion },
      input: toInput(call.input),
      wantedAgentId: "",
    },
    targetOrgId: call.orgId,
    labels: Object.fromEntries(Object.entries(told).filter(([, text]) => text !== "")),
    deadlineMs,
    trace: traceContext(envelope.traceparent, app.ids),
    retryOfDeadLetterId: "",
    ...(budgetLeftMicros !== undefined && { budgetLeftMicros: Number(budgetLeftMicros) }),
  };
}

/** The task of the work: a new one, or that which it was accepted as before. Throws as GatewayService/SubmitTask, and IDEMPOTENCY_KEY_REUSED. */
export async function acceptCall(app: App, dispatcher: Dispatcher, arrival: Arrival, call: PeerCall): Promise<string> {
  const { peer, envelope } = arrival;
  checkRoom(dispatcher);
  const now = app.clock.now();
  const order = orderOf(app, arrival, call, deadlineOf(now, durationMs(call.timeout!)));
  const row: CallRow = {
    ...{ org_id: peer.org_id, call_id: call.callId, peer_id: peer.peer_id, request_sha256: digestOf(call) },
    ...{ target_org_id: call.orgId, task_id: "", hops: envelope.hops, create_ms: now },
    trace_id: order.trace.traceId,
    budget_micros: order.budgetLeftMicros ?? null,
  };
  let turn: number | undefined;
  const count = countUnder(app, new Headers());
  const outcome = await count.around(() =>
    app.db.tx(async (tx): Promise<AcceptedAcross | { readonly known: CallRow } | { readonly refused: Refused }> => {
      await checkPeer(tx, arrival);
      if ((await claimCall(tx, row)) === 0) return { known: (await findCall(tx, row.org_id, row.call_id))! };
      // This one is among them.
      if ((await countOfTrace(tx, row.org_id, row.trace_id, maxCallsOfTrace + 1)) > maxCallsOfTrace)
        throw tooManyInTrace();
      try {
        turn ??= dispatcher.turns.take(`${peer.org_id} ${call.orgId}`, call.contractId); // once, though the body may run again
        const by = { tx, orgId: peer.org_id, now, caller: { keyId: "" } };
        const accepted = await acceptAcross(app, order, by, turn, count);
        await nameTask(tx, row, accepted.task.task_id);
        return accepted;
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        await dropCall(tx, row);
        return { refused: error };
      }
    }),
  );
  if ("refused" in outcome) throw outcome.refused;
  if ("known" in outcome) {
    if (outcome.known.request_sha256 === row.request_sha256) return outcome.known.task_id;
    const message = `the call ${call.callId} was made before with another request`;
    throw new Fault("IDEMPOTENCY_KEY_REUSED", message, { idempotency_key: call.callId });
  }
  if (outcome.work) startAccepted(dispatcher, outcome.work);
  return outcome.task.task_id;
}

const tooManyInTrace = (): Fault =>
  quotaExceeded(
    "peer_calls_of_trace",
    maxCallsOfTrace,
    `at most ${maxCallsOfTrace} pieces of work in one trace within a day: begin another trace`,
  );

/** The task as it is when it has ended, waits for somebody's approval, or is waited for no longer. */
export async function followCall(
  app: App,
  { peer }: Arrival,
  taskId: string,
  timeoutMs: number,
  signal: AbortSignal,
): Promise<TaskRow> {
  const over = new AbortController();
  const timer = app.clock.after(timeoutMs, () => over.abort(new Error("the time is over")));
  const waiting = AbortSignal.any([signal, over.signal]);
  try {
    return await ended(app, peer.org_id, taskId, waiting);
  } catch (error) {
    if (!waiting.aborted && !app.ending.aborted) throw error;
    return (await findTask(app.db.query, peer.org_id, taskId))!;
  } finally {
    timer.cancel();
  }
}

/** Ends the work, if it is known and has not ended; gives its state, undefined when it is not known. */
export const cancelCall = (app: App, { peer }: Arrival, callId: string): Promise<TaskState | undefined> =>
  app.db.tx(async (tx) => {
    const call = await findCall(tx, peer.org_id, callId);
    const of = call && { org_id: peer.org_id, task_id: call.task_id, target_org_id: call.target_org_id };
    return of && cancelWork(tx, app, of, `canceled by ${peer.name}`);
  });

/** Ends work that a peer asked for, on both sides, unless it has ended; gives its state. `why` is for the organisation that stands for the peer. */
export async function cancelWork(
  tx: Tx,
  app: App,
  of: Pick<TaskRow, "org_id" | "task_id" | "target_org_id">,
  why: string,
): Promise<TaskState | undefined> {
  const now = app.clock.now();
  // The work is locked before the side that asked.
  await lockTask(tx, of.target_org_id, of.task_id);
  const task = await lockTask(tx, of.org_id, of.task_id);
  if (!task || isTerminal(task.state)) return task?.state as TaskState | undefined;
  const fault = { reason: "TASK_CANCELED", message: why, metadata: {} } as const;
  const there = { ...fault, message: "canceled by the organisation that asked" };
  const end = { state: TaskState.CANCELED, endMs: now };
  const step = {
    ...{ kind: TraceEventKind.CANCELED, timeMs: now, message: fault.message, details: { note: "" } },
    ...{ targetAgentId: task.target_agent_id, durationMs: now - task.create_ms },
  };
  const held = { hold: { orgId: of.org_id, taskId: task.task_id, token: task.lease_token }, task };
  const stepThere = { ...step, message: there.message };
  await concludeAcross(tx, app, held, { ...end, fault, steps: [step] }, { ...end, fault: there, steps: [stepThere] });
  tx.ring(cancelTopic(task.task_id));
  return TaskState.CANCELED;
}
