/** A request comes in to the organisation that does the work: everything that is set aside there and the guest's task, or the refusal and what is kept of it. */
import { PolicyVerdict } from "../../../gen/moltwire/bus/v1/policy_pb.ts";
import { TraceEventKind } from "../../../gen/moltwire/bus/v1/trace_pb.ts";
import { GatewayService } from "../../../gen/moltwire/federation/v1/gateway_service_pb.ts";
import type { App } from "../../app.ts";
import { requestApproval } from "../../bus/approval/gate.ts";
import { reserveBudgets } from "../../bus/budget/reserve-budgets.ts";
import { settleBudgets } from "../../bus/budget/settle-budgets.ts";
import { reserveProbe } from "../../bus/circuit/reserve.ts";
import { dayStart } from "../../bus/cost/day.ts";
import { reserveTokens } from "../../bus/cost/price-attempt.ts";
import { refusedStep } from "../../bus/decide.ts";
import { recordDecisions } from "../../bus/policy/decision-store.ts";
import { type Accepted, approvalStep, awaiting, budgetWish, newTask } from "../../bus/submit.ts";
import { insertTask, type TaskRow } from "../../bus/task-store.ts";
import { openTrace, recordSteps, type Span, type Step } from "../../bus/trace-store.ts";
import type { Tx } from "../../db/db.ts";
import { Fault } from "../../errors.ts";
import { auditCrossing } from "../crossing-audit.ts";
import type { GrantRow } from "../grant/store.ts";
import { denyUnderGrant } from "../grant/usage-store.ts";
import { putCrossing } from "./crossing-store.ts";
import { holdGrant } from "./opening.ts";
import { type Quota, reserveQuota } from "./quota.ts";
import { beyondCap, beyondTerms, tierOf } from "./terms.ts";
import { foreignStep, verdictName } from "./trace.ts";
import { type Entry, type Weighed, wishOf } from "./weigh.ts";

/** The guest's task, for whoever is to work on it. */
export type Entered = Accepted & { readonly quota: Quota };

/** Sets aside and inserts all that a request needs that was weighed in the same transaction, or keeps and gives the refusal. */
export async function enter(tx: Tx, app: App, entry: Entry, weighed: Weighed, now: number): Promise<Entered | Fault> {
  const { decision } = weighed;
  if (decision.refusal || weighed.refusal) return refuse(tx, app, entry, weighed, weighed.refusal!, [], now);
  const { grant, contract, taskId } = entry;
  const order = { wish: wishOf(entry), labels: {}, deadlineMs: entry.deadlineMs, trace: entry.trace };
  const as = { orgId: grant.org_id, keyId: "", now };
  const draft = newTask(app, { ...order, retryOfDeadLetterId: "" }, as, contract.version, taskId);
  const refused = (fault: Fault, steps: readonly Step[] = []) =>
    refuse(tx, app, entry, weighed, fault, steps.length > 0 ? steps : [refusedStep(fault, now)], now);
  // In the order in which the end of a task changes them: the circuit, budgets, the quota.
  const probe = await reserveProbe(tx, decision.toProbe, taskId, now);
  if (probe instanceof Fault) return refused(probe);
  const budget = await reserveBudgets(tx, app, taskId, budgetWish(draft, decision));
  if (budget.refusal) {
    await probe.giveBack();
    return refused(budget.refusal, budget.steps);
  }
  const tokens = reserveTokens(contract);
  const held = await holdGrant(tx, grant, now);
  const quota =
    held instanceof Fault ? held : (beyond(held, entry, weighed) ?? (await reserveQuota(tx, held, tokens, now)));
  if (held instanceof Fault || quota instanceof Fault) {
    if (budget.budgeted) await settleBudgets(tx, app, draft, now);
    await probe.giveBack();
    return refused(quota as Fault);
  }
  const { demand, targetAgentId } = decision;
  const fresh: TaskRow = { ...draft, budgeted: budget.budgeted ? 1 : 0 };
  const task = demand ? awaiting(app, fresh, targetAgentId) : fresh;
  await insertTask(tx, task);
  const { revision: grant_revision } = held;
  await putCrossing(tx, { ...crossingOf(entry, weighed, now), grant_revision, reserved_tokens: tokens, is_open: 1 });
  const span = spanOf(entry, taskId);
  await openTrace(tx, span, now);
  await log(tx, app, entry, weighed, { taskId, reason: "" }, now);
  const accepted = {
    kind: TraceEventKind.ACCEPTED,
    timeMs: now,
    message: `accepted as ${taskId}, for ${entry.callerOrgId}`,
    details: { contract_version: contract.version, grant_id: grant.grant_id, grant_revision },
  };
  const steps = [...decision.steps, ...callerStep(entry, now), ...budget.steps, ...probe.steps, accepted];
  if (demand) {
    await requestApproval(tx, app, task, entry.input, demand, budget.reserved);
    steps.push(approvalStep(now, demand, targetAgentId, task.approval_id));
  }
  await recordSteps(tx, app, span, steps);
  return { task, turn: entry.turn, decidedAgentId: targetAgentId, quota };
}

/** What the terms say that were written since it was weighed. */
const beyond = (held: GrantRow, { grant, caller, contract }: Entry, { micros }: Weighed): Fault | undefined =>
  held.revision === grant.revision
    ? undefined
    : (beyondTerms(held, tierOf(caller), contract) ?? beyondCap(held, micros));

/** The refusal stays in the trace and the decision log of the organisation that refuses, and counts under the grant. */
async function refuse(
  tx: Tx,
  app: App,
  entry: Entry,
  weighed: Weighed,
  fault: Fault,
  steps: readonly Step[],
  now: number,
): Promise<Fault> {
  const { grant } = entry;
  const span = spanOf(entry, "");
  await openTrace(tx, span, now);
  await log(tx, app, entry, weighed, { taskId: "", reason: fault.reason }, now);
  await recordSteps(tx, app, span, [...callerStep(entry, now), ...weighed.decision.steps, ...steps]);
  await denyUnderGrant(tx, { orgId: grant.org_id, grantId: grant.grant_id, dayMs: dayStart(now) });
  await putCrossing(tx, { ...crossingOf(entry, weighed, now), reason: fault.reason });
  return fault;
}

/** In the decision log, and what it came to in the audit log. */
async function log(
  tx: Tx,
  app: App,
  { grant, trace, contract, callerOrgId, callerAgentId }: Entry,
  { decision: { decisions }, verdict }: Weighed,
  { taskId, reason }: { readonly taskId: string; readonly reason: string },
  now: number,
): Promise<void> {
  const at = { orgId: grant.org_id, traceId: trace.traceId, taskId, now };
  if (decisions.length > 0) await recordDecisions(tx, app, at, decisions);
  await auditCrossing(tx, app, {
    ...{ orgId: grant.org_id, traceId: trace.traceId, now, direction: "in", method: GatewayService.method.submitTask },
    ...{ otherOrgId: callerOrgId, callerAgentId, keyId: "", verdict: verdictName(verdict) },
    about: {
      ...{ task_id: taskId, contract_id: contract.contract_id, from_agent_id: callerAgentId },
      ...{ grant_id: grant.grant_id, grant_revision: String(grant.revision), reason },
    },
  });
}

const callerStep = (entry: Entry, now: number): Step[] =>
  foreignStep(entry.callerOrgId, entry.callerVerdict, entry.grant, "out", now);

/** The span of the guest's side; see `recordSteps` for what an echo is. */
const spanOf = ({ grant, trace, callerAgentId, contract }: Entry, taskId: string): Span => ({
  orgId: grant.org_id,
  ...trace,
  taskId,
  callerAgentId,
  contractId: contract.contract_id,
  echo: true,
});

/** The request as it is kept; not open. */
export const crossingOf = (
  entry: Entry,
  { verdict }: Pick<Weighed, "verdict"> = { verdict: PolicyVerdict.UNSPECIFIED },
  now: number,
) => ({
  org_id: entry.grant.org_id,
  task_id: entry.taskId,
  caller_org_id: entry.callerOrgId,
  caller_agent_id: entry.callerAgentId,
  trace_id: entry.trace.traceId,
  contract_id: entry.contract.contract_id,
  contract_version: entry.contract.version,
  grant_id: entry.grant.grant_id,
  grant_revision: entry.grant.revision,
  caller_verdict: entry.callerVerdict,
  target_verdict: verdict,
  reason: "",
  day_ms: dayStart(now),
  reserved_tokens: 0,
  is_open: 0,
  create_ms: now,
});
