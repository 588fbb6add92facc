import { TaskState } from "../../gen/moltwire/bus/v1/task_pb.ts";
import { TraceEventKind } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import { countPendingApprovals } from "../bus/approval/store.ts";
import { countOpenCircuits } from "../bus/circuit/circuit-store.ts";
import { failureOf, type StepWatcher, terminalStates } from "../bus/step-watch.ts";
import { isTerminal } from "../bus/task-store.ts";
import { type Db, sql } from "../db/db.ts";
import { type Metrics, reasons } from "./metrics.ts";

/** What becomes of tasks, counted from the steps this process commits; and how many are open, from storage. */
export function taskMetrics(metrics: Metrics, db: Pick<Db, "query">): StepWatcher {
  const accepted = metrics.counter("moltwire_tasks_accepted_total", "Tasks that were accepted");
  const refused = metrics.counter("moltwire_tasks_refused_total", "Tasks that were refused at once, by reason", [
    "reason",
  ]);
  const ended = metrics.counter("moltwire_tasks_ended_total", "Tasks that ended, by state and reason", [
    "state",
    "reason",
  ]);
  ended.inc({ state: "COMPLETED", reason: "NONE" }, 0);
  for (const reason of reasons) ended.inc({ state: "FAILED", reason }, 0);
  const recovered = metrics.counter(
    "moltwire_tasks_recovered_total",
    "Tasks that were taken over from a server that is gone",
  );
  const taskSeconds = metrics.histogram(
    "moltwire_task_seconds",
    "Time of tasks from acceptance to their end",
    [0.01, 0.05, 0.25, 1, 5, 30, 120, 600, 3600],
    ["state"],
  );
  const attempts = metrics.counter("moltwire_attempts_total", "Attempts that ended, by why they failed", ["reason"]);
  metrics.gauge({
    name: "moltwire_open_tasks",
    help: "Tasks that have not ended, by state, in all the database",
    label: "state",
    read: () => openTasks(db),
  });
  metrics.gauge({
    name: "moltwire_circuits",
    help: "Agents whose circuit breaker is not closed, by state, in all the database",
    label: "state",
    read: async () => {
      const { open, halfOpen } = await countOpenCircuits(db.query);
      return { OPEN: open, HALF_OPEN: halfOpen };
    },
  });
  metrics.gauge({
    name: "moltwire_pending_approvals",
    help: "Tasks that wait for somebody's approval, in all the database",
    read: () => countPendingApprovals(db.query),
  });
  return ({ taskId }, steps) => {
    for (const step of steps) {
      const state = terminalStates[step.kind];
      if (state !== undefined && taskId) {
        ended.inc({ state, reason: failureOf(step) || "NONE" });
        taskSeconds.observe({ state }, (step.durationMs ?? 0) / 1_000);
      } else if (step.kind === TraceEventKind.ACCEPTED) accepted.inc();
      else if (step.kind === TraceEventKind.REFUSED) refused.inc({ reason: failureOf(step) || "NONE" });
      else if (step.kind === TraceEventKind.RECOVERED) recovered.inc();
      else if (step.kind === TraceEventKind.ANSWERED) attempts.inc({ reason: "NONE" });
      else if (step.kind === TraceEventKind.ATTEMPT_FAILED) attempts.inc({ reason: failureOf(step) || "NONE" });
    }
  };
}

const openStates = Object.entries(TaskState).filter(
  ([, state]) => state !== TaskState.UNSPECIFIED && !isTerminal(state),
);

/**
 * By the partial index on the tasks that servers have, and along those that agents pull: it takes as long as there are open ones, whatever the
 * number of tasks.
 */
export const openTasksByState = sql`
  select state, count(*) as tasks from task where state < 4 and lease_owner <> 'pull' group by state
  union all
  select k.state, count(*) as tasks from pulled_task p join task k on k.org_id = p.org_id and k.task_id = p.task_id group by k.state`;

async function openTasks(db: Pick<Db, "query">): Promise<Record<string, number>> {
  const rows = await db.query.all<{ state: number; tasks: number }>(openTasksByState);
  const counts = new Map<number, number>();
  for (const { state, tasks } of rows) counts.set(state, (counts.get(state) ?? 0) + tasks);
  return Object.fromEntries(openStates.map(([name, state]) => [name, counts.get(state) ?? 0]));
}
