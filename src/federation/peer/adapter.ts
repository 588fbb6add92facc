/** Brings tasks to another server: the agent that stands for a peer does its work by asking the peer. */
import { fromJson, type JsonValue } from "@bufbuild/protobuf";
import { durationFromMs, ValueSchema } from "@bufbuild/protobuf/wkt";
import { ErrorReason } from "../../../gen/moltwire/api/v1/error_reason_pb.ts";
import { TaskState } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import type { PeerResult } from "../../../gen/moltwire/federation/v1/peer_envelope_pb.ts";
import { PeerState } from "../../../gen/moltwire/federation/v1/peer_pb.ts";
import type { App } from "../../app.ts";
import { type Adapter, type Answer, type Assignment, AttemptFault, type Usage } from "../../bus/adapter.ts";
import { aftermathOf, fromEgress, shorten, timedOut, unusable } from "../../bus/adapters/faults.ts";
import { roomOfTask } from "../../bus/budget/reserve-budgets.ts";
import type { Amount } from "../../bus/budget/use-store.ts";
import { findContract } from "../../bus/contract-store.ts";
import { jsonFault } from "../../bus/payload.ts";
import { findTaskSummary, isTerminal, type TaskSummaryRow } from "../../bus/task-store.ts";
import { EgressError } from "../../egress/error.ts";
import { nameIn } from "../../enum-name.ts";
import { findCrossing } from "../gateway/crossing-store.ts";
import { findGrant, termsOf } from "../grant/store.ts";
import { findCallOfTask, hopsOfTrace } from "./call-store.ts";
import { maxHops } from "./door.ts";
import { sha256 } from "./http-signature.ts";
import { audienceOf } from "./identity.ts";
import { countedOf, readReceipt } from "./receipt.ts";
import { keepReceipt } from "./receipt-step.ts";
import { type Answered, ask, BadReply, PeerGone, PeerRefusal } from "./send.ts";
import { findPeer, type PeerRow } from "./store.ts";

/** How long to wait before a peer is asked again that did not answer: twice as long each time. */
const againMs = 250;
const maxAgainMs = 5_000;
/** What a wish to leave work may take. */
const cancelMs = 5_000;

/** The most that an envelope says of a budget; what is more is no bound. */
const maxBudgetMicros = 1_000_000_000_000_000;

/** What is asked of whom. */
type Job = {
  readonly peer: PeerRow;
  readonly task: TaskSummaryRow;
  /** The organisation that asks. */
  readonly fromOrgId: string;
  readonly assignment: Assignment;
  readonly hops: number;
  /** What it may use and cost; Infinity: no bound. */
  readonly most: Amount;
};

/** `appOf` gives the app, of which adapters are a part. */
export const peerAdapter =
  (appOf: () => App): Adapter =>
  async (endpoint, assignment, signal) => {
    const app = appOf();
    if (endpoint.kind.case !== "peer") throw new Error(`not a peer: ${endpoint.kind.case}`);
    const job = await jobOf(app, endpoint.kind.value.peerId, assignment);
    try {
      return await pursue(app, job, signal);
    } catch (error) {
      const lost = error instanceof AttemptFault && error.aftermath === "lost";
      if (lost || (signal.aborted && !app.ending.aborted)) leave(app, job);
      throw error;
    }
  };

async function jobOf(app: App, peerId: string, assignment: Assignment): Promise<Job> {
  const { orgId, taskId } = assignment;
  const db = app.db.query;
  const peer = await findPeer(db, peerId);
  if (peer?.org_id !== orgId || peer.state !== PeerState.ACTIVE || !peer.remote_org_id)
    throw refused("there is no such peer any more, or it offers nothing");
  const { contractId, contractVersion } = assignment;
  if ((await findContract(db, orgId, contractId, contractVersion))?.peer_id !== peerId)
    throw refused(`${contractId}@${contractVersion} was not brought over from it`);
  const task = (await findTaskSummary(db, orgId, taskId))!;
  const crossing = await findCrossing(db, orgId, taskId);
  // Work that came from a peer itself goes on with what that left for it.
  const came = crossing && (await findCallOfTask(db, crossing.caller_org_id, taskId));
  const gone = await hopsOfTrace(db, task.trace_id);
  if (gone >= maxHops) throw refused(`the work has gone from server to server ${gone} times`);
  const fromOrgId = crossing?.caller_org_id ?? orgId;
  const grant = crossing && (await findGrant(db, orgId, crossing.grant_id));
  const cap = Number((grant && termsOf(grant).priceCapMicros) ?? Infinity);
  const now = app.clock.now();
  const rooms = await Promise.all([...new Set([orgId, fromOrgId])].map((of) => roomOfTask(db, of, taskId, now)));
  // Who buys it pays a price, whatever the work costs whoever sells it.
  const spenders = task.origin === "listing" ? rooms.slice(0, 1) : rooms;
  const most = {
    tokens: Math.min(assignment.maxTokens || Infinity, ...rooms.map(({ tokens }) => tokens)),
    micros: Math.min(cap, came?.budget_micros ?? Infinity, ...spenders.map(({ micros }) => micros)),
  };
  return { peer, task, fromOrgId, assignment, hops: gone + 1, most };
}

const refused = (why: string): AttemptFault =>
  new AttemptFault("ENDPOINT_REFUSED", "not-begun", `the peer cannot be asked: ${why}`);

/** Asks until the work has ended or the time is over: again by the same name, so that it is not begun twice. */
async function pursue(app: App, job: Job, signal: AbortSignal): Promise<Answer> {
  const { deadlineMs, timeoutMs } = job.assignment;
  /** Whether the peer may have the work. */
  let sent = false;
  for (let tries = 0; ; tries++) {
    const leftMs = deadlineMs - app.clock.now();
    if (leftMs <= 0) throw timedOut(sent ? "lost" : "not-begun", timeoutMs);
    try {
      const answer = await askOnce(app, job, leftMs, signal);
      if (answer) return answer;
      sent = true;
    } catch (error) {
      signal.throwIfAborted();
      const fault = faultOf(error, job, sent);
      if (!isPassing(error) || fault.aftermath === "not-begun") throw fault;
      sent = true;
    }
    const waitMs = Math.min(maxAgainMs, againMs * 2 ** tries, deadlineMs - app.clock.now());
    await app.clock.sleep(Math.max(1, waitMs), signal);
  }
}

/** What came of one asking. Whether the peer has the work from a time before is known no better by a later one that failed. */
function faultOf(error: unknown, { peer, assignment: { timeoutMs } }: Job, sent: boolean): AttemptFault {
  if (error instanceof AttemptFault) return error;
  if (error instanceof EgressError)
    return fromEgress(
      new EgressError(error.kind, error.message, { sent: sent || error.sent, cause: error }),
      timeoutMs,
    );
  if (error instanceof PeerGone)
    return new AttemptFault(
      "ADAPTER_ERROR",
      sent || error.sent ? "lost" : "not-begun",
      `the peer ${peer.name} was removed`,
      {
        metadata: { peer_id: peer.peer_id },
      },
    );
  if (error instanceof PeerRefusal) return ofRefusal(error, peer, sent);
  if (error instanceof BadReply) return unusable(error.message, { cause: error });
  throw error;
}

/** Whether it may go otherwise at the next time: the line broke, or the peer has no time now. */
function isPassing(error: unknown): boolean {
  if (error instanceof EgressError) return error.kind === "unreachable" || error.kind === "bad-response";
  return error instanceof PeerRefusal && aftermathOf(error.status, error.code || undefined) !== "failed";
}

/** The answer; undefined when the work goes on. */
async function askOnce(app: App, job: Job, leftMs: number, signal: AbortSignal): Promise<Answer | undefined> {
  const { peer, task, fromOrgId, assignment, hops, most } = job;
  const answered = await ask(app, peer, {
    ...{ hops, timeoutMs: leftMs, signal, traceparent: assignment.traceparent },
    ...(most.micros <= maxBudgetMicros && { budgetLeftMicros: BigInt(most.micros) }),
    body: {
      case: "call",
      value: {
        callId: task.task_id,
        orgId: peer.remote_org_id,
        contractId: assignment.contractId,
        contractVersion: assignment.contractVersion,
        input: fromJson(ValueSchema, assignment.input),
        fromOrgId,
        fromAgentId: task.caller_agent_id,
        timeout: durationFromMs(Math.max(1, Math.floor(leftMs))),
      },
    },
  });
  const { body } = answered;
  if (body.case !== "result") throw new BadReply("its reply is to something else");
  const { state, reason, message } = body.value;
  if (state === TaskState.AWAITING_APPROVAL) {
    leave(app, job);
    throw failed(peer, "APPROVAL_REQUIRED", "somebody there would have to approve it first", undefined);
  }
  if (!isTerminal(state)) return undefined;
  const usage = await usageOf(app, job, body.value, answered);
  if (state !== TaskState.COMPLETED) throw failed(peer, nameIn(ErrorReason, reason), message, usage);
  return { output: outputOf(body.value, usage), usage };
}

/** What work used that has ended, at the price that the peer asks for it: by its receipt, checked and kept in the trace, as far as that is counted. */
async function usageOf(
  app: App,
  { peer, task, assignment, most }: Job,
  result: PeerResult,
  { publicKey, payload }: Answered,
): Promise<Usage> {
  const receipt = readReceipt(result, publicKey, {
    ...{ origin: peer.audience, audience: audienceOf(app), callId: task.task_id, traceId: task.trace_id },
    ...{ orgId: peer.remote_org_id, contractId: assignment.contractId, requestSha256: sha256(payload) },
  });
  if (typeof receipt === "string") throw new BadReply(receipt);
  const counted = countedOf(receipt, most);
  await keepReceipt(app, peer, task, receipt, result.receipt!, counted);
  return { ...counted, model: "" };
}

function outputOf({ outputJson }: PeerResult, usage: Usage): JsonValue {
  let output: JsonValue;
  try {
    output = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(outputJson)) as JsonValue;
  } catch (error) {
    throw unusable("its output is no JSON", { cause: error, usage });
  }
  const fault = jsonFault(output);
  if (fault) throw unusable(`its output is ${fault.message}`, { usage });
  return output;
}

/** The work ended there without an output. What nobody there knows, nobody knows here. */
const failed = (peer: PeerRow, reason: string, message: string, usage: Usage | undefined): AttemptFault =>
  new AttemptFault(
    "ADAPTER_ERROR",
    reason === "OUTCOME_UNKNOWN" ? "lost" : "failed",
    `the peer ${peer.name} did not do it: ${reason}: ${shorten(message)}`,
    { metadata: { peer_id: peer.peer_id, peer_reason: reason }, ...(usage && { usage }) },
  );

/** The peer did not take the message: it never had the work, unless the answer was given up on the way. */
function ofRefusal({ code, status, reason, message }: PeerRefusal, peer: PeerRow, sent: boolean): AttemptFault {
  const aftermath = sent ? "lost" : aftermathOf(status, code || undefined);
  return new AttemptFault(
    "ADAPTER_ERROR",
    aftermath,
    `the peer ${peer.name} answered ${reason || code || status}: ${shorten(message)}`,
    {
      metadata: {
        peer_id: peer.peer_id,
        status: String(status),
        ...(code && { code }),
        ...(reason && { peer_reason: reason }),
      },
    },
  );
}

/** Tells the peer that the work is not wanted any more; one that was removed is told nothing. Best effort: work that is not left ends by its own deadline. */
function leave(app: App, { peer, assignment, task, hops }: Job): void {
  const body = { case: "cancel", value: { callId: task.task_id } } as const;
  ask(app, peer, { hops, body, timeoutMs: cancelMs, signal: app.ending, traceparent: assignment.traceparent }).catch(
    (error: unknown) => app.log.debug({ err: error, task_id: task.task_id }, "a peer could not be told to leave work"),
  );
}
