/** A request across organisations, from the side that asks: decided by both, and accepted or refused, in one transaction. */
import { PolicyVerdict } from "../../../gen/moltwire/bus/v1/policy_pb.ts";
import { TaskState } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import { TraceEventKind } from "../../../gen/moltwire/bus/v1/trace_pb.ts";
import type { App } from "../../app.ts";
import { findAgent } from "../../bus/agent-store.ts";
import { requestApproval } from "../../bus/approval/gate.ts";
import { type BudgetDecision, checkBudgets } from "../../bus/budget/reserve-budgets.ts";
import { reserveTokens } from "../../bus/cost/price-attempt.ts";
import { checkInputSize, refusedStep } from "../../bus/decide.ts";
import { pullOwner } from "../../bus/serve/pulled-store.ts";
import {
  type Accepted,
  approvalStep,
  asRefused,
  awaiting,
  budgetWish,
  newTask,
  type TaskOrder,
} from "../../bus/submit.ts";
import { insertTask, type TaskRow } from "../../bus/task-store.ts";
import { recordSteps, type Span, type Step } from "../../bus/trace-store.ts";
import type { Queryable } from "../../db/db.ts";
import { Fault, notFound } from "../../errors.ts";
import type { Command } from "../../rpc/command.ts";
import type { GrantRow } from "../grant/store.ts";
import { putCrossing } from "./crossing-store.ts";
import { crossingOf, enter, spanOf as spanThere } from "./enter.ts";
import { findOpening, holdGrant } from "./opening.ts";
import { decideOutward, keepOutward, type Outward } from "./outward.ts";
import { checkQuota, type Quota } from "./quota.ts";
import type { CountUnder } from "./rate.ts";
import { reserveInOrder, reserving } from "./reserve.ts";
import { toldAcross } from "./told.ts";
import { foreignStep, openTraces, outwardStep } from "./trace.ts";
import { type Entry, type Weighed, weigh } from "./weigh.ts";

/** A task to have done by another organisation. An empty grant in its wish: any that fits. */
export type AcrossOrder = TaskOrder & {
  readonly targetOrgId: string;
  /** What it may cost at most, in micro-credits; not set: no bound. */
  readonly budgetLeftMicros?: number;
  /** The listing that is invoked, under the grant that the wish names; none: it is no listing's request. */
  readonly listingId?: string;
  /** The most that a request for a listing costs, in micro-credits: it counts in the budgets of the side that asks, in place of what the work costs by the rates of the other. */
  readonly priceMicros?: number;
};

/** The task of the organisation that asks, and the work that is to begin, unless it waits for an approval on the asking side. */
export type AcceptedAcross = {
  readonly task: TaskRow;
  readonly grant: GrantRow;
  readonly work?: Accepted;
  readonly quota?: Quota;
};

/** What was found out so far: only read. */
type Looked = { readonly steps: readonly Step[] } & (
  | { readonly refusal: Fault; readonly entry?: Entry; readonly outward?: Outward; readonly weighed?: Weighed }
  | { readonly refusal?: undefined; readonly entry: Entry; readonly outward: Outward; readonly weighed: Weighed }
);

/** The openings, the own decision and the other's, in this order: what is refused by the one before is not asked of the next. */
async function look(
  app: App,
  db: Queryable,
  order: AcrossOrder,
  { taskId, now, turn }: { readonly taskId: string; readonly now: number; readonly turn: number },
): Promise<Looked> {
  const { wish, targetOrgId, trace } = order;
  const { orgId, callerAgentId, input, wantedAgentId } = wish;
  const steps: Step[] = [];
  try {
    checkInputSize(wish, (kind, message, details) => steps.push({ kind, timeMs: now, message, details }));
    const caller = callerAgentId ? await findAgent(db, orgId, callerAgentId) : undefined;
    if (callerAgentId && !caller) throw notFound("agent", callerAgentId);
    const { contract: ref, grantId, origin } = wish;
    const sought = { callerOrgId: orgId, targetOrgId, contract: ref, grantId, listingId: order.listingId };
    const { grant, contract } = await findOpening(db, sought, now);
    const outward = await decideOutward(app, db, { orgId, caller, contract, grant, wantedAgentId, origin, now });
    steps.push(outwardStep(outward, grant, now));
    const entry: Entry = {
      ...{ taskId, callerOrgId: orgId, callerAgentId, caller, grant, contract, input, wantedAgentId, origin, turn },
      callerVerdict: PolicyVerdict[outward.decided.answer.verdict],
      deadlineMs: order.deadlineMs,
      budgetLeftMicros: order.budgetLeftMicros,
      trace: { traceId: trace.traceId, spanId: app.ids.span(), parentSpanId: trace.spanId },
    };
    if (outward.refusal) return { steps, refusal: outward.refusal, outward };
    const weighed = await weigh(app, db, entry, now);
    steps.push(...foreignStep(targetOrgId, weighed.decision.verdict, grant, "in", now));
    const found = { steps, entry, outward, weighed };
    return weighed.refusal ? { ...found, refusal: toldAcross(weighed.refusal, targetOrgId) } : found;
  } catch (error) {
    if (!(error instanceof Fault)) throw error;
    return { steps, refusal: error };
  }
}

/**
 * Accepts the task on both sides, or refuses it, which is kept by those who decided, and thrown as `Refused`. Where the own organisation asks for an approval first,
 * nothing has come to the other yet. RATE_LIMITED by `count` leaves nothing. What others want as well is taken in the order of `lock-order.ts`.
 */
export async function acceptAcross(
  app: App,
  order: AcrossOrder,
  command: Pick<Command, "tx" | "orgId" | "now"> & { readonly caller: { readonly keyId: string } },
  turn: number,
  count: CountUnder,
): Promise<AcceptedAcross> {
  const { tx, orgId, now, caller } = command;
  const { wish, trace, targetOrgId } = order;
  const taskId = app.ids.next("tsk");
  const looked = await look(app, tx, order, { taskId, now, turn });
  // Before anything is written, so that who asks too often leaves nothing behind.
  if (looked.entry) count(looked.entry.grant);
  const span: Span = {
    orgId,
    ...trace,
    taskId: "",
    callerAgentId: wish.callerAgentId,
    contractId: wish.contract.contractId,
  };
  const { outward, entry, weighed } = looked;
  const comes = entry !== undefined && weighed !== undefined && !(outward?.demand && !weighed.refusal);
  const isNewTrace = await openTraces(tx, span, comes ? spanThere(entry, "") : undefined, now);
  const { callerAgentId } = wish;
  const by = { orgId, callerAgentId, targetOrgId, traceId: trace.traceId, keyId: caller.keyId, now };
  const log = async (of: string) => {
    const { contractId } = wish.contract;
    if (outward) await keepOutward(tx, app, outward, { ...by, taskId: of, contractId });
  };
  const refuse = async (fault: Fault, more: readonly Step[] = [refusedStep(fault, now)]): Promise<never> => {
    await log("");
    await recordSteps(tx, app, span, [...looked.steps, ...more]);
    throw asRefused(fault, trace);
  };
  if (looked.refusal || !entry || !weighed || !outward) {
    const away = entry && weighed && (await enter(tx, app, entry, weighed, { now, isNewTrace }));
    if (away && "keep" in away) await away.keep(); // the other's refusal
    return refuse(looked.refusal!);
  }
  const { grant, contract } = entry;
  const under = { ...order, wish: { ...wish, grantId: grant.grant_id } };
  const draft = newTask(app, under, { orgId, keyId: caller.keyId, now }, contract.version, taskId, targetOrgId);
  const own = reserving(tx, app, draft, {
    ...budgetWish(draft, { contract, targetAgentId: "" }),
    micros: order.priceMicros ?? weighed.price.micros,
  });
  const { demand } = outward;
  let task: TaskRow;
  let work: (Accepted & { readonly quota: Quota }) | undefined;
  let budget: BudgetDecision;
  if (demand) {
    const reserved = await reserveInOrder([own]);
    budget = reserved.budgets.get(own)!;
    if (budget.refusal) {
      await reserved.tell();
      return refuse(budget.refusal, budget.steps);
    }
    const held = await holdGrant(tx, grant, now);
    if (held instanceof Fault) {
      await reserved.giveBack();
      return refuse(held);
    }
    await reserved.tell();
    task = awaiting(app, { ...draft, budgeted: budget.budgeted ? 1 : 0 }, "");
    await putCrossing(tx, { ...crossingOf(entry, undefined, now), is_open: 1 });
  } else {
    const entered = await enter(tx, app, entry, weighed, { now, isNewTrace, own });
    if ("keptHome" in entered) {
      const { refusal, steps, tell } = entered.keptHome;
      await tell();
      return refuse(refusal, steps);
    }
    if ("keep" in entered) {
      await entered.keep();
      return refuse(toldAcross(entered.fault, targetOrgId));
    }
    work = entered;
    budget = entered.own!;
    task = followed({ ...draft, budgeted: budget.budgeted ? 1 : 0 }, entered.task);
  }
  await insertTask(tx, task);
  await log(taskId);
  const { grant_id, revision: grant_revision } = grant;
  const again = order.retryOfDeadLetterId && `, to try ${order.retryOfDeadLetterId} again`;
  const accepted: Step = {
    kind: TraceEventKind.ACCEPTED,
    timeMs: now,
    message: `accepted as ${taskId}${again}`,
    details: { contract_version: contract.version, org_id: targetOrgId, grant_id, grant_revision },
  };
  const steps = [...looked.steps, ...budget.steps, accepted];
  if (demand) {
    await requestApproval(tx, app, task, wish.input, demand, budget.reserved);
    steps.push(approvalStep(now, demand, "", task.approval_id));
  } else if (task.state === TaskState.AWAITING_APPROVAL) steps.push(awaitedThere(targetOrgId, now));
  await recordSteps(tx, app, { ...span, taskId }, steps);
  return { task, grant, ...(work && { work, quota: work.quota }) };
}

/** The task of the side that asks, once the work is the other's: no server has it, and it waits when the work waits. */
export const followed = (task: TaskRow, work: TaskRow): TaskRow => ({
  ...task,
  state: work.state,
  deadline_ms: work.deadline_ms,
  lease_owner: pullOwner,
});

/** The step of a task that waits for somebody of the other organisation. */
export const awaitedThere = (orgId: string, timeMs: number): Step => ({
  kind: TraceEventKind.AWAITING_APPROVAL,
  timeMs,
  message: `somebody of the organisation ${orgId} has to approve first`,
  details: { approval_id: "", org_id: orgId },
});

/** What {@link acceptAcross} would come to now on the side that asks; changes nothing. */
export async function dryRunAcross(
  app: App,
  db: Queryable,
  order: AcrossOrder,
  { keyId, now, turn }: { readonly keyId: string; readonly now: number; readonly turn: number },
): Promise<{ readonly steps: readonly Step[]; readonly grant?: GrantRow }> {
  const looked = await look(app, db, order, { taskId: "", now, turn });
  const { steps, entry, weighed, outward } = looked;
  if (looked.refusal || !entry || !weighed) return { steps: [...steps, refusedStep(looked.refusal!, now)] };
  const { grant, contract } = entry;
  const lacks = await checkQuota(db, grant, reserveTokens(contract), now);
  if (lacks) return { steps: [...steps, refusedStep(lacks, now)], grant };
  const { wish, trace } = order;
  const subject = {
    ...{ org_id: wish.orgId, trace_id: trace.traceId, caller_agent_id: wish.callerAgentId, caller_key_id: keyId },
    ...{ grant_id: grant.grant_id, contract_id: contract.contract_id, create_ms: now },
  };
  const spending = { ...budgetWish(subject, { contract, targetAgentId: "" }), micros: weighed.price.micros };
  const budget = await checkBudgets(db, spending);
  const waits = outward?.demand && !budget.refusal ? [approvalStep(now, outward.demand, "")] : [];
  return { steps: [...steps, ...budget.steps, ...waits], grant };
}
