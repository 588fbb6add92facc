/** Holds what was asked for, what agents saw and what was decided against what the server knows, over the wire. Call it when no task is open. */
import { type Approval, ApprovalState, ApprovalStateSchema } from "../../../gen/moltwire/bus/v1/approval_pb.ts";
import { BudgetPeriod, BudgetScope } from "../../../gen/moltwire/bus/v1/budget_pb.ts";
import type { StepCost } from "../../../gen/moltwire/bus/v1/cost_pb.ts";
import {
  type DeadLetter,
  DeadLetterState,
  DeadLetterStateSchema,
} from "../../../gen/moltwire/bus/v1/dead_letter_pb.ts";
import type { Task } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import { type TraceEvent, TraceEventKind } from "../../../gen/moltwire/bus/v1/trace_pb.ts";
import type { Clients } from "../../harness.ts";
import { inParallel, nameOf, pages, stateName, verifyEvents } from "../verify.ts";
import type { Ask, Stage } from "./asks.ts";
import { verifyBudgets } from "./budgets.ts";
import type { Organization } from "./set-up.ts";
import { faultsOfTask } from "./task-faults.ts";
import type { Workers } from "./workers.ts";

/** What there is, by kind, and everything that is wrong. */
export type Findings = {
  readonly tasks: number;
  readonly byState: Record<string, number>;
  /** How the tasks ended for which the server was killed. */
  readonly byPhase: Record<string, Record<string, number>>;
  readonly recovered: number;
  readonly attempts: number;
  readonly deadLetters: number;
  readonly approvals: number;
  readonly decisions: number;
  readonly traceEvents: number;
  readonly spentTokens: number;
  readonly problems: string[];
};

/** Everything that is known of one task. */
export type Story = {
  readonly task: Task;
  readonly ask: Ask;
  /** It tries the dead letter of another again. */
  readonly isRetry: boolean;
  readonly events: readonly TraceEvent[];
  readonly steps: readonly StepCost[];
  readonly deadLetters: readonly DeadLetter[];
  readonly approvals: readonly Approval[];
  readonly decisions: number;
};

export async function verify(stage: Stage, org: Organization, workers: Workers): Promise<Findings> {
  const { admin, book, life } = stage;
  const problems: string[] = [];
  const [listed, deadLetters, approvals, decisions] = await Promise.all([
    allTasks(admin),
    allDeadLetters(admin),
    allApprovals(admin),
    allDecisions(admin),
  ]);
  const asks = new Map(book.asks.map((ask) => [String(ask.orders.n), ask]));
  const lettersOf = Map.groupBy(deadLetters, ({ taskId }) => taskId);
  const approvalsOf = Map.groupBy(approvals, ({ taskId }) => taskId);
  const decisionsOf = Map.groupBy(decisions, ({ taskId }) => taskId);
  const stories = new Map<string, Story>();
  const byState: Record<string, number> = {};
  const byPhase: Record<string, Record<string, number>> = {};
  const firsts = new Map<number, string>();
  await inParallel(listed, async ({ taskId, labels, traceId }) => {
    const ask = asks.get(labels.n ?? "");
    if (!ask) return void problems.push(`${taskId}: nobody asked for it`);
    const { task } = await admin.bus.getTask({ taskId });
    const { events } = await admin.traces.getTrace({ traceId, pageSize: 1000 });
    const { steps } = await admin.costs.getTraceCosts({ traceId, pageSize: 250 });
    const isRetry = task!.retryOfDeadLetterId !== "";
    const story: Story = {
      task: task!,
      ask,
      isRetry,
      events: events.filter((event) => event.taskId === taskId),
      steps: steps.filter((step) => step.taskId === taskId),
      deadLetters: lettersOf.get(taskId) ?? [],
      approvals: approvalsOf.get(taskId) ?? [],
      decisions: decisionsOf.get(taskId)?.length ?? 0,
    };
    stories.set(taskId, story);
    const state = stateName(task!);
    byState[state] = (byState[state] ?? 0) + 1;
    if (ask.phase && isRetry === (ask.retry !== undefined)) {
      const ended = (byPhase[ask.phase] ??= {});
      ended[state] = (ended[state] ?? 0) + 1;
    }
    const faults = faultsOfTask(story, workers.arrivals.get(taskId) ?? []);
    problems.push(...faults.map((fault) => `${taskId}: ${fault}`));
    if (isRetry) return;
    const other = firsts.get(ask.orders.n);
    if (other) problems.push(`${taskId}: ask ${ask.orders.n} has also become ${other}`);
    firsts.set(ask.orders.n, taskId);
  });
  for (const { taskId, refused, orders } of book.asks) {
    if (taskId && !stories.has(taskId)) problems.push(`${taskId}: acknowledged, and not there`);
    if (!taskId && !refused) problems.push(`ask ${orders.n}: never answered`);
    if (refused && firsts.has(orders.n))
      problems.push(`ask ${orders.n}: refused, and there is ${firsts.get(orders.n)}`);
  }
  for (const taskId of workers.arrivals.keys())
    if (!stories.has(taskId)) problems.push(`${taskId}: an agent had it, and it is not there`);
  for (const { taskId, deadLetterId } of deadLetters)
    if (!stories.has(taskId)) problems.push(`${deadLetterId}: of a task that is not there`);
  for (const { taskId, approvalId } of approvals)
    if (!stories.has(taskId)) problems.push(`${approvalId}: of a task that is not there`);
  problems.push(...faultsOfRetries(book.asks, deadLetters, [...stories.values()]));
  const tasks = new Map([...stories].map(([taskId, { task }]) => [taskId, task]));
  await verifyEvents(life, tasks, problems);
  const spentTokens = await verifyBudgets(stage, org, [...stories.values()], problems);
  const told = [...stories.values()];
  const sum = (count: (story: Story) => number) => told.reduce((total, story) => total + count(story), 0);
  return {
    tasks: stories.size,
    byState,
    byPhase,
    recovered: told.filter(({ events }) => events.some(({ kind }) => kind === TraceEventKind.RECOVERED)).length,
    attempts: sum(({ task }) => task.attempts),
    deadLetters: deadLetters.length,
    approvals: approvals.length,
    decisions: decisions.length,
    traceEvents: sum(({ events }) => events.length),
    spentTokens,
    problems,
  };
}

/** A dead letter that was retried has the retry, and only that one. */
function faultsOfRetries(
  asks: readonly Ask[],
  deadLetters: readonly DeadLetter[],
  stories: readonly Story[],
): string[] {
  const faults: string[] = [];
  const wanted = new Map(asks.flatMap(({ retry }) => (retry ? [[retry.deadLetterId, retry]] : [])));
  const made = Map.groupBy(
    stories.filter(({ isRetry }) => isRetry),
    ({ task }) => task.retryOfDeadLetterId,
  );
  for (const { deadLetterId, state, retryTaskIds } of deadLetters) {
    const retry = wanted.get(deadLetterId);
    const tasks = made.get(deadLetterId)?.map(({ task }) => task.taskId) ?? [];
    const right = retry
      ? state === DeadLetterState.RETRIED && tasks.length === 1 && tasks[0] === retry.taskId
      : state === DeadLetterState.OPEN && tasks.length === 0;
    if (!right || retryTaskIds.join() !== tasks.join())
      faults.push(
        `${deadLetterId}: ${nameOf(DeadLetterStateSchema, state)}, asked for ${retry?.taskId ?? "no retry"}; it names ${retryTaskIds}, there are ${tasks}`,
      );
  }
  return faults;
}

/** What must be reserved while nothing runs: what the tasks that wait for an approval reserve, as their approvals say. Gives what is wrong. */
export async function verifyReserves({ admin }: Stage, waiting: readonly Ask[]): Promise<string[]> {
  const problems: string[] = [];
  let tokens = 0n;
  await inParallel(waiting, async ({ approvalId }) => {
    const { approval } = await admin.approvals.getApproval({ approvalId: approvalId! });
    if (approval?.state !== ApprovalState.PENDING)
      problems.push(`${approvalId}: nobody decided, and it is ${nameOf(ApprovalStateSchema, approval?.state ?? 0)}`);
    tokens += approval?.reservedTokens ?? 0n;
  });
  const { budgets } = await admin.budgets.listBudgets({ pageSize: 250 });
  // Those of the callers have no end: what was asked for before midnight is reserved in another day's budget.
  const reserved = budgets
    .filter(({ scope, period }) => scope === BudgetScope.AGENT && period === BudgetPeriod.TOTAL)
    .reduce((sum, budget) => sum + (budget.tokens?.reserved ?? 0n), 0n);
  if (reserved !== tokens)
    problems.push(`${reserved} tokens are reserved, and ${waiting.length} approvals say ${tokens}`);
  return problems;
}

const pageSize = 250;

const allTasks = (admin: Clients) =>
  pages(async (pageToken) => {
    const page = await admin.bus.listTasks({ pageSize, pageToken });
    return { items: page.tasks, next: page.nextPageToken };
  });

async function allDeadLetters(admin: Clients): Promise<DeadLetter[]> {
  const listed = await pages(async (pageToken) => {
    const page = await admin.deadLetters.listDeadLetters({ pageSize, pageToken });
    return { items: page.deadLetters, next: page.nextPageToken };
  });
  const whole: DeadLetter[] = [];
  await inParallel(listed, async ({ deadLetterId }) => {
    whole.push((await admin.deadLetters.getDeadLetter({ deadLetterId })).deadLetter!);
  });
  return whole;
}

const allApprovals = (admin: Clients) =>
  pages(async (pageToken) => {
    const page = await admin.approvals.listApprovals({ pageSize, pageToken });
    return { items: page.approvals, next: page.nextPageToken };
  });

const allDecisions = (admin: Clients) =>
  pages(async (pageToken) => {
    const page = await admin.policies.listDecisions({ pageSize, pageToken });
    return { items: page.decisions, next: page.nextPageToken };
  });
