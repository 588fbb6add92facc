import { type JsonValue, toJson } from "@bufbuild/protobuf";
import { type Value, ValueSchema } from "@bufbuild/protobuf/wkt";
import type { SubmitTaskRequest } from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { TaskState } from "../../gen/moltwire/bus/v1/task_pb.ts";
import { TraceEventKind } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import type { App } from "../app.ts";
import type { Queryable } from "../db/db.ts";
import { badField, Fault, notFound, Refused } from "../errors.ts";
import type { Caller } from "../rpc/caller.ts";
import type { Command } from "../rpc/command.ts";
import { seesWholeOrg } from "../rpc/scope.ts";
import type { TraceContext } from "../rpc/trace-context.ts";
import { findAgent } from "./agent-store.ts";
import { type Demand, requestApproval } from "./approval/gate.ts";
import { type BudgetWish, reserveBudgets } from "./budget/reserve-budgets.ts";
import { reserveProbe } from "./circuit/reserve.ts";
import type { ContractRow } from "./contract-store.ts";
import { reserveTokens } from "./cost/price-attempt.ts";
import { decide, refusedStep, type Wish } from "./decide.ts";
import { recordDecisions } from "./policy/decision-store.ts";
import { insertTask, sealJson, type TaskRow } from "./task-store.ts";
import { openTrace, recordSteps, type Span, type Step } from "./trace-store.ts";

/** What was asked for, as the pipeline takes it. */
export const wishOf = (req: SubmitTaskRequest, orgId: string, callerAgentId: string): Wish => ({
  orgId,
  callerAgentId,
  origin: "bus",
  grantId: "",
  contract: { contractId: req.contractId, version: req.contractVersion },
  input: toInput(req.input),
  wantedAgentId: req.targetAgentId,
});

/** The input as JSON, null when it is not set. INVALID_REQUEST for what binary can say and JSON cannot: numbers that are not finite, values inside that are not set. */
export function toInput(input: Value | undefined): JsonValue {
  if (input === undefined || input.kind.case === undefined) return null;
  try {
    return toJson(ValueSchema, input);
  } catch {
    throw badField("input", "holds a number that is not finite or a value that is not set, which JSON cannot");
  }
}

/** The agent a call is made for: the key's own, or the one an administrator names; empty for an administrator's own. NOT_FOUND for any other. */
export async function actingAgent(db: Queryable, caller: Caller, orgId: string, named: string): Promise<string> {
  if (!seesWholeOrg(caller)) {
    if (named && named !== caller.agentId) throw notFound("agent", named);
    return caller.agentId;
  }
  if (named && !(await findAgent(db, orgId, named))) throw notFound("agent", named);
  return named;
}

/** A task that was accepted, whose turn it is, and the agent that was decided on. */
export type Accepted = { readonly task: TaskRow; readonly turn: number; readonly decidedAgentId: string };

/** A task to accept, whichever way it came. */
export type TaskOrder = {
  readonly wish: Wish;
  readonly labels: Readonly<Record<string, string>>;
  /** When it fails if it has not ended, in milliseconds; null: never by itself. */
  readonly deadlineMs: number | null;
  /** Its span, which need not be in the trace of the call. */
  readonly trace: TraceContext;
  /** The dead letter that it tries again, or empty. */
  readonly retryOfDeadLetterId: string;
};

/** The order of a SubmitTask. */
export const orderOf = async (
  req: SubmitTaskRequest,
  { tx, caller, orgId, trace }: Command,
  deadlineMs: number | null,
): Promise<TaskOrder> => ({
  wish: wishOf(req, orgId, await actingAgent(tx, caller, orgId, req.agentId)),
  labels: req.labels,
  deadlineMs,
  trace,
  retryOfDeadLetterId: "",
});

/**
 * Accepts a task: once this commits, the task is durable and will reach a terminal state. A refusal is kept too, with the steps that led to
 * it, and thrown as {@link Refused}, which names the trace.
 */
export async function acceptTask(app: App, order: TaskOrder, command: Command, turn: number): Promise<Accepted> {
  const { tx, orgId, now } = command;
  const { wish, trace } = order;
  const { callerAgentId } = wish;
  const decision = await decide(app, tx, wish, now, turn);
  const span: Span = { orgId, ...trace, taskId: "", callerAgentId, contractId: wish.contract.contractId };
  await openTrace(tx, span, now);
  const { decisions } = decision;
  const log = (taskId: string) =>
    decisions.length > 0 && recordDecisions(tx, app, { orgId, traceId: trace.traceId, taskId, now }, decisions);
  if (decision.refusal) {
    await log("");
    await recordSteps(tx, app, span, decision.steps);
    throw asRefused(decision.refusal, trace);
  }
  const { demand, contract, targetAgentId } = decision;
  const as = { orgId, keyId: command.caller.keyId, now };
  const draft = newTask(app, order, as, contract.version);
  const probe = await reserveProbe(tx, decision.toProbe, draft.task_id, now);
  if (probe instanceof Fault) {
    await log("");
    await recordSteps(tx, app, span, [...decision.steps, refusedStep(probe, now)]);
    throw asRefused(probe, trace);
  }
  const budget = await reserveBudgets(tx, app, draft.task_id, budgetWish(draft, decision));
  if (budget.refusal) {
    await probe.giveBack();
    await budget.tell();
    await log("");
    await recordSteps(tx, app, span, [...decision.steps, ...budget.steps]);
    throw asRefused(budget.refusal, trace);
  }
  const fresh = { ...draft, budgeted: budget.budgeted ? 1 : 0 };
  const task = demand ? awaiting(app, fresh, targetAgentId) : fresh;
  await insertTask(tx, task);
  await budget.tell();
  await log(task.task_id);
  const again = order.retryOfDeadLetterId && `, to try ${order.retryOfDeadLetterId} again`;
  const accepted = {
    kind: TraceEventKind.ACCEPTED,
    timeMs: now,
    message: `accepted as ${task.task_id}${again}`,
    details: { contract_version: contract.version },
  };
  const steps: Step[] = [...decision.steps, ...budget.steps, ...probe.steps, accepted];
  if (demand) {
    await requestApproval(tx, app, task, wish.input, demand, budget.reserved);
    steps.push(approvalStep(now, demand, targetAgentId, task.approval_id));
  }
  await recordSteps(tx, app, { ...span, taskId: task.task_id }, steps);
  return { task, turn, decidedAgentId: targetAgentId };
}

/**
 * The task as it waits for its approval, which holds for this agent only. Whoever asked is answered at once, so that the deadline of the call
 * binds nothing any more.
 */
export const awaiting = (app: App, task: TaskRow, targetAgentId: string): TaskRow => ({
  ...task,
  state: TaskState.AWAITING_APPROVAL,
  approval_id: app.ids.next("apr"),
  target_agent_id: targetAgentId,
  deadline_ms: null,
});

/** The step that says that a task waits for somebody, or in a dry run that it would. */
export const approvalStep = (timeMs: number, demand: Demand, targetAgentId: string, approvalId = ""): Step => ({
  kind: TraceEventKind.AWAITING_APPROVAL,
  timeMs,
  message: `somebody has to approve first: ${demand.reasons.join("; ")}`,
  details: { approval_id: approvalId, policy_ids: [...demand.policyIds], reasons: [...demand.reasons] },
  targetAgentId,
});

/** A task as it is accepted, in the hands of this server. Across organisations its id is given, and whose agents do the work. */
export function newTask(
  app: App,
  order: TaskOrder,
  { orgId, keyId, now }: { readonly orgId: string; readonly keyId: string; readonly now: number },
  version: string,
  taskId: string = app.ids.next("tsk"),
  targetOrgId: string = orgId,
): TaskRow {
  const { wish, trace } = order;
  return {
    org_id: orgId,
    task_id: taskId,
    state: TaskState.SUBMITTED,
    namespace: "",
    contract_id: wish.contract.contractId,
    contract_version: version,
    caller_agent_id: wish.callerAgentId,
    caller_key_id: keyId,
    target_org_id: targetOrgId,
    target_agent_id: "",
    wanted_agent_id: wish.wantedAgentId,
    input: sealJson(app, orgId, taskId, "input", wish.input),
    output: null,
    error: null,
    attempts: 0,
    input_tokens: 0,
    output_tokens: 0,
    model: "",
    trace_id: trace.traceId,
    span_id: trace.spanId,
    parent_span_id: trace.parentSpanId,
    labels: JSON.stringify(order.labels),
    create_ms: now,
    end_ms: null,
    deadline_ms: order.deadlineMs,
    lease_owner: app.serverId,
    lease_token: 1,
    in_flight: 0,
    requested_version: wish.contract.version,
    origin: wish.origin,
    grant_id: wish.grantId,
    approval_id: "",
    retry_of_dead_letter_id: order.retryOfDeadLetterId,
    cost_micros: 0,
    receipt: "",
    budgeted: 0,
  };
}

/** What a task asks of budgets. */
export const budgetWish = (
  of: Pick<
    TaskRow,
    "org_id" | "trace_id" | "caller_agent_id" | "caller_key_id" | "grant_id" | "contract_id" | "create_ms"
  >,
  { contract, targetAgentId }: { readonly contract: ContractRow; readonly targetAgentId: string },
): BudgetWish => ({
  orgId: of.org_id,
  traceId: of.trace_id,
  callerAgentId: of.caller_agent_id,
  callerKeyId: of.caller_key_id,
  grantId: of.grant_id,
  targetAgentId,
  contractId: of.contract_id,
  tokens: reserveTokens(contract),
  createMs: of.create_ms,
});

/** The refusal as it is answered, naming the trace that keeps it. */
export const asRefused = (fault: Fault, { traceId }: TraceContext): Refused =>
  new Refused(
    fault.reason,
    fault.message,
    { trace_id: traceId, ...fault.metadata },
    { ...fault.details, cause: fault },
  );
