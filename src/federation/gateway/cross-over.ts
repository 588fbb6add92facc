/** A task that its own organisation has approved goes to the other: everything is asked again, as it is now. */
import type { JsonValue } from "@bufbuild/protobuf";
import { PolicyVerdict } from "../../../gen/moltwire/bus/v1/policy_pb.ts";
import { TaskState } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import { TraceEventKind } from "../../../gen/moltwire/bus/v1/trace_pb.ts";
import type { App } from "../../app.ts";
import { findAgent } from "../../bus/agent-store.ts";
import { callerGone, withdrawal } from "../../bus/authority.ts";
import { concludeTask, type HeldTask, rejectedStep, spanOf } from "../../bus/conclude.ts";
import { persist } from "../../bus/persist.ts";
import type { Origin } from "../../bus/policy/decide-task.ts";
import { leaveToPull } from "../../bus/serve/pulled-store.ts";
import type { Accepted } from "../../bus/submit.ts";
import { advanceTask, lockHeld, putReceipt, type TaskFault, type TaskRow } from "../../bus/task-store.ts";
import { openTrace, recordSteps, type Step } from "../../bus/trace-store.ts";
import type { Tx } from "../../db/db.ts";
import { Fault } from "../../errors.ts";
import { findCall } from "../../exchange/call/call-store.ts";
import { awaitedThere } from "./accept.ts";
import { enter, spanOf as spanOfGuest, type TurnedAway } from "./enter.ts";
import { findOpening } from "./opening.ts";
import { decideOutward, keepOutward } from "./outward.ts";
import { asTaskFault } from "./still-granted.ts";
import { toldAcross } from "./told.ts";
import { foreignStep, outwardStep } from "./trace.ts";
import { type Entry, weigh } from "./weigh.ts";

type Home = HeldTask & { readonly task: TaskRow };

/** Brings the task over and gives the work to begin; or rejects it, or finds that it is held no more, and gives nothing. */
export const crossOver = (app: App, held: Home, input: JsonValue, turn: number): Promise<Accepted | undefined> =>
  persist(app, async (tx) => {
    const { task, hold } = held;
    const now = app.clock.now();
    if (!(await lockHeld(tx, hold))) return undefined;
    const steps: Step[] = [];
    const came = await bring(tx, app, task, input, turn, now, steps);
    if ("fault" in came) {
      const { fault, keep } = came;
      const told = [...steps, rejectedStep(task, fault, now)];
      await concludeTask(tx, app, held, { state: TaskState.REJECTED, endMs: now, fault, steps: told, keep });
      return undefined;
    }
    await leaveToPull(tx, hold);
    const { task_id: taskId, target_org_id: targetOrgId, grant_id } = task;
    const waits = came.task.state === TaskState.AWAITING_APPROVAL;
    if (waits) await advanceTask(tx, task.org_id, taskId, TaskState.SUBMITTED, TaskState.AWAITING_APPROVAL);
    const gone: Step = {
      kind: TraceEventKind.DISPATCHED,
      timeMs: now,
      message: `goes to the organisation ${targetOrgId}`,
      details: { org_id: targetOrgId, grant_id },
    };
    await recordSteps(tx, app, spanOf(task), [...steps, gone, ...(waits ? [awaitedThere(targetOrgId, now)] : [])]);
    return came;
  });

/** The work as it came in; or why the task may not go, or not come in. */
async function bring(
  tx: Tx,
  app: App,
  task: TaskRow,
  input: JsonValue,
  turn: number,
  now: number,
  steps: Step[],
): Promise<Accepted | { readonly fault: TaskFault; readonly keep?: TurnedAway["keep"] }> {
  const withdrawn = task.approval_id ? await withdrawal(tx, app, task, input, "") : undefined;
  if (withdrawn) return { fault: withdrawn };
  const { org_id: orgId, caller_agent_id: callerAgentId, target_org_id: targetOrgId } = task;
  const caller = callerAgentId ? await findAgent(tx, orgId, callerAgentId) : undefined;
  if (callerAgentId && !caller) return { fault: callerGone(callerAgentId) };
  const ref = { contractId: task.contract_id, version: task.contract_version };
  const call = task.origin === "listing" ? await findCall(tx, targetOrgId, task.task_id) : undefined;
  const sought = {
    callerOrgId: orgId,
    targetOrgId,
    contract: ref,
    grantId: task.grant_id,
    listingId: call?.listing_id,
  };
  const opening = await findOpening(tx, sought, now).catch((error: unknown) => {
    if (error instanceof Fault) return error;
    throw error;
  });
  if (opening instanceof Fault) return { fault: asTaskFault(opening) };
  const { grant, contract } = opening;
  const origin = task.origin as Origin;
  const out = { orgId, caller, contract, grant, wantedAgentId: task.wanted_agent_id, origin, now };
  const outward = await decideOutward(app, tx, out);
  steps.push(outwardStep(outward, grant, now));
  const by = { orgId, callerAgentId, targetOrgId, traceId: task.trace_id, keyId: task.caller_key_id, now };
  await keepOutward(tx, app, outward, { ...by, taskId: task.task_id, contractId: task.contract_id });
  if (outward.refusal) return { fault: asTaskFault(outward.refusal) };
  const entry: Entry = {
    ...{ taskId: task.task_id, callerOrgId: orgId, callerAgentId, caller, grant, contract, input, origin, turn },
    callerVerdict: PolicyVerdict[outward.decided.answer.verdict],
    wantedAgentId: task.wanted_agent_id,
    deadlineMs: task.deadline_ms,
    trace: { traceId: task.trace_id, spanId: app.ids.span(), parentSpanId: task.span_id },
  };
  const weighed = await weigh(app, tx, entry, now);
  steps.push(...foreignStep(targetOrgId, weighed.decision.verdict, grant, "in", now));
  const isNewTrace = (await openTrace(tx, spanOfGuest(entry, ""), now)) > 0;
  const entered = await enter(tx, app, entry, weighed, { now, isNewTrace });
  if ("task" in entered) {
    if (task.receipt) await putReceipt(tx, targetOrgId, task.task_id, task.receipt);
    return entered;
  }
  if ("keep" in entered) return { fault: asTaskFault(toldAcross(entered.fault, targetOrgId)), keep: entered.keep };
  throw new Error(`budgets that task ${task.task_id} had been asked of refused it`);
}
