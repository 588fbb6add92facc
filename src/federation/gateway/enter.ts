/** A request comes in to the organisation that does the work: everything that is set aside there and the guest's task, or the refusal and what is kept of it. */
import { PolicyVerdict } from "../../../gen/moltwire/bus/v1/policy_pb.ts";
import { TraceEventKind } from "../../../gen/moltwire/bus/v1/trace_pb.ts";
import { GatewayService } from "../../../gen/moltwire/federation/v1/gateway_service_pb.ts";
import type { App } from "../../app.ts";
import { requestApproval } from "../../bus/approval/gate.ts";
import type { BudgetDecision, BudgetReserve } from "../../bus/budget/reserve-budgets.ts";
import { reserveProbe } from "../../bus/circuit/reserve.ts";
import { dayStart } from "../../bus/cost/day.ts";
import { reserveTokens } from "../../bus/cost/price-attempt.ts";
import { refusedStep } from "../../bus/decide.ts";
import { recordDecisions } from "../../bus/policy/decision-store.ts";
import { type Accepted, approvalStep, awaiting, budgetWish, newTask } from "../../bus/submit.ts";
import { insertTask, type TaskRow } from "../../bus/task-store.ts";
import { recordSteps, removeTrace, type Span, type Step } from "../../bus/trace-store.ts";
import type { Tx } from "../../db/db.ts";
import { Fault } from "../../errors.ts";
import { auditCrossing } from "../crossing-audit.ts";
import type { GrantRow } from "../grant/store.ts";
import { denyUnderGrant } from "../grant/usage-store.ts";
import { putCrossing } from "./crossing-store.ts";
import { holdGrant } from "./opening.ts";
import { type Quota, reserveQuota } from "./quota.ts";
import { type Reserving, reserveInOrder, reserving } from "./reserve.ts";
import { beyondCap, beyondTerms, tierOf } from "./terms.ts";
import { foreignStep, verdictName } from "./trace.ts";
import { type Entry, type Weighed, wishOf } from "./weigh.ts";

/** The guest's task, for whoever is to work on it. */
export type Entered = Accepted & {
  readonly quota: Quota;
  /** What the budgets of the side that asks said, if they were asked with those of this one. */
  readonly own: BudgetDecision | undefined;
};

/** What was set aside is given back. `keep` writes the refusal down for the organisation that refuses: last, in the order of `lock-order.ts`. */
export type TurnedAway = { readonly fault: Fault; readonly keep: () => Promise<void> };

/** The budgets of the side that asks let it not even go. */
export type KeptHome = { readonly keptHome: BudgetReserve & { readonly refusal: Fault } };

/** How a request comes in. */
export type Entering = {
  readonly now: number;
  /** Whether there was no trace yet, see {@link spanOf}; it is open by now. */
  readonly isNewTrace: boolean;
  /** The budgets of the side that asks, unless they have been asked before. */
  readonly own?: Reserving;
};

/** Sets aside and inserts all that a request needs that was weighed in the same transaction, or says why not. */
export async function enter(
  tx: Tx,
  app: App,
  entry: Entry,
  weighed: Weighed,
  { now, isNewTrace, own }: Entering,
): Promise<Entered | TurnedAway | KeptHome> {
  const { decision } = weighed;
  if (decision.refusal || weighed.refusal)
    return turnedAway(tx, app, entry, weighed, {
      fault: weighed.refusal!,
      steps: [],
      now,
      isNewTrace,
      tell: async () => {},
    });
  const { grant, contract, taskId } = entry;
  const order = { wish: wishOf(entry), labels: {}, deadlineMs: entry.deadlineMs, trace: entry.trace };
  const as = { orgId: grant.org_id, keyId: "", now };
  const draft = newTask(app, { ...order, retryOfDeadLetterId: "" }, as, contract.version, taskId);
  const refused = (fault: Fault, steps: readonly Step[] = [refusedStep(fault, now)], tell = async () => {}) =>
    turnedAway(tx, app, entry, weighed, { fault, steps, now, isNewTrace, tell });
  const probe = await reserveProbe(tx, decision.toProbe, taskId, now);
  if (probe instanceof Fault) return refused(probe);
  const there = reserving(tx, app, draft, budgetWish(draft, decision));
  const { budgets, giveBack, tell, refusedBy } = await reserveInOrder(own ? [own, there] : [there]);
  if (refusedBy) {
    await probe.giveBack();
    const budget = budgets.get(refusedBy)!;
    if (refusedBy === there) return refused(budget.refusal!, budget.steps, budget.tell);
    if (isNewTrace) await removeTrace(tx, spanOf(entry, ""));
    return { keptHome: { ...budget, refusal: budget.refusal! } };
  }
  const budget = budgets.get(there)!;
  const tokens = reserveTokens(contract);
  const held = await holdGrant(tx, grant, now);
  const quota =
    held instanceof Fault ? held : (beyond(held, entry, weighed) ?? (await reserveQuota(tx, held, tokens, now)));
  if (held instanceof Fault || quota instanceof Fault) {
    await giveBack();
    await probe.giveBack();
    return refused(quota as Fault);
  }
  const { demand, targetAgentId } = decision;
  const fresh: TaskRow = { ...draft, budgeted: budget.budgeted ? 1 : 0 };
  const task = demand ? awaiting(app, fresh, targetAgentId) : fresh;
  await insertTask(tx, task);
  await tell();
  const { revision: grant_revision } = held;
  await putCrossing(tx, { ...crossingOf(entry, weighed, now), grant_revision, reserved_tokens: tokens, is_open: 1 });
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
  await recordSteps(tx, app, spanOf(entry, taskId), steps);
  return { task, turn: entry.turn, decidedAgentId: targetAgentId, quota, own: own && budgets.get(own) };
}

/** What the terms say that were written since it was weighed. */
const beyond = (held: GrantRow, { grant, caller, contract }: Entry, { price }: Weighed): Fault | undefined =>
  held.revision === grant.revision
    ? undefined
    : (beyondTerms(held, tierOf(caller), contract) ?? beyondCap(held, price.mostMicros));

/** Of how many refusals under a grant on a day the organisation that refuses keeps more than the count: else the other could fill its logs. */
export const maxRefusalsKept = 1_000;

/** The refusal stays in the trace and the decision log of the organisation that refuses, and counts under the grant. */
const turnedAway = (
  tx: Tx,
  app: App,
  entry: Entry,
  weighed: Weighed,
  { fault, steps, now, isNewTrace, tell }: Pick<Entering, "now" | "isNewTrace"> & Refusing,
): TurnedAway => ({
  fault,
  async keep() {
    const { grant } = entry;
    const key = { orgId: grant.org_id, grantId: grant.grant_id, dayMs: dayStart(now) };
    const underGrant = await denyUnderGrant(tx, key);
    // A refused first request for a listing leaves no grant, and the next one has another: those are counted for both organisations as well.
    const pair = { ...key, grantId: `${grant.subject}/${grant.grantee_org_id}` };
    const refusals = grant.subject_kind === "listingId" ? await denyUnderGrant(tx, pair) : underGrant;
    const outcome = { taskId: "", reason: fault.reason };
    if (refusals > maxRefusalsKept) {
      if (isNewTrace) await removeTrace(tx, spanOf(entry, ""));
      // The audit log says from where on it is silent.
      if (refusals === maxRefusalsKept + 1)
        await audit(tx, app, entry, weighed, { ...outcome, further: "COUNTED_ONLY" }, now);
      return;
    }
    await tell();
    await log(tx, app, entry, weighed, outcome, now);
    await recordSteps(tx, app, spanOf(entry, ""), [...callerStep(entry, now), ...weighed.decision.steps, ...steps]);
    await putCrossing(tx, { ...crossingOf(entry, weighed, now), reason: fault.reason });
  },
});

type Refusing = { readonly fault: Fault; readonly steps: readonly Step[]; readonly tell: BudgetReserve["tell"] };

/** What a request came to: a task, or why not. `further`: what is kept of those that follow on the day. */
type Outcome = { readonly taskId: string; readonly reason: string; readonly further?: string };

/** In the decision log, and what it came to in the audit log. */
async function log(tx: Tx, app: App, entry: Entry, weighed: Weighed, outcome: Outcome, now: number): Promise<void> {
  const { decisions } = weighed.decision;
  const at = { orgId: entry.grant.org_id, traceId: entry.trace.traceId, taskId: outcome.taskId, now };
  if (decisions.length > 0) await recordDecisions(tx, app, at, decisions);
  await audit(tx, app, entry, weighed, outcome, now);
}

const audit = (
  tx: Tx,
  app: App,
  { grant, trace, contract, callerOrgId, callerAgentId }: Entry,
  { decision: { verdict } }: Weighed,
  { taskId, reason, further = "" }: Outcome,
  now: number,
): Promise<number> =>
  auditCrossing(tx, app, {
    ...{ orgId: grant.org_id, traceId: trace.traceId, now, direction: "in", method: GatewayService.method.submitTask },
    ...{ otherOrgId: callerOrgId, callerAgentId, keyId: "", verdict: verdictName(verdict) },
    about: {
      ...{ task_id: taskId, contract_id: contract.contract_id, from_agent_id: callerAgentId },
      ...{ grant_id: grant.grant_id, grant_revision: String(grant.revision), reason, further },
    },
  });

const callerStep = (entry: Entry, now: number): Step[] =>
  foreignStep(entry.callerOrgId, entry.callerVerdict, entry.grant, "out", now);

/** The span of the guest's side; see `recordSteps` for what an echo is. */
export const spanOf = ({ grant, trace, callerAgentId, contract }: Entry, taskId: string): Span => ({
  orgId: grant.org_id,
  ...trace,
  taskId,
  callerAgentId,
  contractId: contract.contract_id,
  echo: true,
});

/** The request as it is kept; not open. */
export const crossingOf = (entry: Entry, weighed: Weighed | undefined, now: number) => ({
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
  target_verdict: weighed?.decision.verdict ?? PolicyVerdict.UNSPECIFIED,
  reason: "",
  day_ms: dayStart(now),
  reserved_tokens: 0,
  is_open: 0,
  create_ms: now,
});
