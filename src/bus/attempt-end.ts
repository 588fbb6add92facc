/** What the end of an attempt leaves: its row, what it used, and what that cost. */
import { TraceEventKind } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import type { App } from "../app.ts";
import type { Tx } from "../db/db.ts";
import { holdLeft, within } from "../federation/peer/counted.ts";
import { noUsage, type Usage } from "./adapter.ts";
import type { AgentRow } from "./agent-store.ts";
import { closeAttempt, runningWith } from "./attempt-store.ts";
import type { Verdict } from "./circuit/circuit.ts";
import type { CountedAttempt } from "./cost/cost-store.ts";
import { type PricedAttempt, priceReported, priceUnknown } from "./cost/price-attempt.ts";
import { addUsed, type TaskFault, type TaskSummaryRow, type Used } from "./task-store.ts";
import type { Step } from "./trace-store.ts";

/**
 * How an attempt went: what it used, why it gave nothing if it did, and what that tells of the agent, as it was when the attempt began.
 * `unknown`: no answer came, so that nobody knows what it used.
 */
export type AttemptOutcome = {
  readonly number: number;
  readonly usage: Usage;
  readonly unknown?: boolean;
  readonly fault?: TaskFault;
  readonly agentId: string;
  /** Undefined when it is gone. */
  readonly agent: AgentRow | undefined;
  readonly verdict: Verdict;
};

/** The attempt with its price. Nothing is written. */
export async function attemptFor(
  tx: Tx,
  { org_id: orgId, task_id: taskId }: TaskSummaryRow,
  { number: attempt, agentId, usage, unknown = false }: AttemptOutcome,
  endMs: number,
): Promise<CountedAttempt> {
  const work = { orgId, taskId, attempt, agentId, endMs };
  const silent = unknown && usage.inputTokens + usage.outputTokens === 0;
  return { ...work, ...(silent ? await priceUnknown(tx, work, endMs) : await priceReported(tx, work, usage, endMs)) };
}

export const finishAttempt = (
  tx: Tx,
  app: App,
  ending: CountedAttempt,
  fault: TaskFault | undefined,
): Promise<number> => closeAttempt(tx, app, ending, { ...ending, fault });

/** Whether an attempt was another server's, which says by its receipt what it used. */
export const isClaimed = ({ usage }: AttemptOutcome): boolean => usage.costMicros !== undefined;

/**
 * Counts an attempt of another server, as far as what is left for its task reaches: held until the transaction ends, so that attempts that end beside one another do not count the same rest. Gives what is to be
 * counted last in the transaction, and what is to be said where it is less than the receipt says. The attempt has left its circuit, and budgets are locked from here on.
 */
export async function endClaimed(
  tx: Tx,
  app: App,
  task: TaskSummaryRow,
  attempt: AttemptOutcome,
  endMs: number,
): Promise<{ readonly ending: CountedAttempt; readonly steps: readonly Step[] }> {
  const usage = within(attempt.usage, await holdLeft(tx, task, endMs));
  const ending = await attemptFor(tx, task, { ...attempt, usage }, endMs);
  await finishAttempt(tx, app, ending, attempt.fault);
  await addUsed(tx, task.org_id, task.task_id, usedBy(ending));
  const { inputTokens, outputTokens, costMicros } = attempt.usage;
  const tokens = usage.inputTokens + usage.outputTokens;
  if (tokens === inputTokens + outputTokens && usage.costMicros === costMicros) return { ending, steps: [] };
  const message = `counts ${tokens} tokens and ${usage.costMicros} micro-credits of what the receipt says: no more is left by now`;
  const details = { action: "bound", tokens, credits_micros: usage.costMicros!, budgets: [] };
  return { ending, steps: [{ kind: TraceEventKind.BUDGETED, timeMs: endMs, message, details }] };
}

/**
 * The task ended from outside while an attempt ran, or nobody knows how the attempt ended: it counts with what is left of the reserve. Gives
 * what is to be counted last in the transaction; undefined when no attempt runs, and then nothing was written.
 */
export async function abandonAttempt(
  tx: Tx,
  app: App,
  { org_id: orgId, task_id: taskId }: TaskSummaryRow,
  attempt: number,
  fault: TaskFault,
): Promise<CountedAttempt | undefined> {
  const agentId = await runningWith(tx, { orgId, taskId, attempt });
  if (agentId === undefined) return undefined;
  const endMs = app.clock.now();
  const work = { orgId, taskId, attempt, agentId, endMs };
  const ending = { ...work, ...(await priceUnknown(tx, work, endMs)) };
  await finishAttempt(tx, app, ending, fault);
  if (ending.usage.inputTokens + ending.usage.outputTokens > 0) await addUsed(tx, orgId, taskId, usedBy(ending));
  return ending;
}

/** What the task is told of it: the model of an estimate is a guess. */
export const usedBy = (ending: PricedAttempt | undefined): Used => ({
  usage: ending ? { ...ending.usage, ...(ending.estimated && { model: "" }) } : noUsage,
  costMicros: ending?.costMicros ?? 0,
});
