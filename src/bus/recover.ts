/** Tasks whose server is gone: each is found, taken over, and brought to its end. */
import { TraceEventKind } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import type { App } from "../app.ts";
import { abandonAttempt } from "./attempt-end.ts";
import { leaveCircuit } from "./circuit/conduct.ts";
import { type HeldTask, spanOf, stateName } from "./conclude.ts";
import { countAttempt } from "./cost/cost-store.ts";
import type { Dispatcher } from "./dispatch.ts";
import { settleFailed } from "./settle.ts";
import {
  findTask,
  InFlight,
  orphanedTasks,
  ownedTasks,
  type TaskFault,
  type TaskRow,
  type TaskSummaryRow,
  takeTask,
} from "./task-store.ts";
import { recordSteps } from "./trace-store.ts";

const batch = 100;
/** More than one server works on at once. */
const maxOwned = 20_000;
/** By then a task that was accepted is worked on, or never will be. */
const strayAfterMs = 60_000;

/**
 * What becomes of an orphan: one that no agent can have is dispatched; one that an agent may have is dispatched again with the same id if
 * its contract is repeatable; else nobody can know, and it fails as OUTCOME_UNKNOWN.
 */
type Action = "dispatch" | "repeat" | "fail";

/**
 * Takes over the orphans there are, as many as there is room for; gives how many. Any number of replicas may do this at once: each task goes
 * to one.
 */
export async function recoverTasks(app: App, dispatcher: Dispatcher): Promise<number> {
  let recovered = 0;
  while (dispatcher.hasRoom() && !app.stopping.aborted) {
    const orphans = await orphanedTasks(app.db.query, app.clock.now(), batch);
    for (const orphan of orphans) if (await recoverTask(app, dispatcher, orphan)) recovered++;
    if (orphans.length < batch) break;
  }
  return recovered;
}

/**
 * Takes up the tasks that this server holds and does not work on; gives how many. There are such after storage was away: it had a task of
 * whose acceptance nobody heard, or was not there to take its end.
 */
export async function recoverStrays(app: App, dispatcher: Dispatcher): Promise<number> {
  let recovered = 0;
  const owned = await ownedTasks(app.db.query, app.serverId, app.clock.now() - strayAfterMs, maxOwned);
  for (const task of owned) {
    if (app.stopping.aborted || !dispatcher.hasRoom()) break;
    if (!dispatcher.runs(task.task_id) && (await recoverTask(app, dispatcher, task))) recovered++;
  }
  return recovered;
}

async function recoverTask(app: App, dispatcher: Dispatcher, orphan: TaskSummaryRow): Promise<boolean> {
  const action = actions[orphan.in_flight] ?? "fail";
  const taken = await app.db.tx(async (tx): Promise<(HeldTask & { readonly task: TaskRow }) | undefined> => {
    const hold = await takeTask(tx, orphan, app.serverId);
    const task = hold && (await findTask(tx, orphan.org_id, orphan.task_id));
    if (!hold || !task) return undefined;
    const now = app.clock.now();
    const again = action === "repeat";
    const abandoned = again
      ? await abandonAttempt(tx, app, orphan, orphan.attempts, unknownOutcome(orphan))
      : undefined;
    const of = {
      orgId: orphan.org_id,
      taskId: orphan.task_id,
      agentId: orphan.target_agent_id,
      traceId: orphan.trace_id,
    };
    const left = { ...of, attempt: orphan.attempts, verdict: "nothing", probe: true } as const;
    const changed = again ? await leaveCircuit(tx, app, left, now) : [];
    const details = { state: stateName(orphan.state), attempts: orphan.attempts, action };
    await recordSteps(tx, app, spanOf(task), [
      ...changed,
      {
        kind: TraceEventKind.RECOVERED,
        timeMs: now,
        message: sentences[action],
        details,
        targetAgentId: task.target_agent_id,
      },
    ]);
    if (abandoned) await countAttempt(tx, abandoned);
    return { hold, task };
  });
  if (!taken) return false;
  if (action === "fail") {
    await settleFailed(app, taken, unknownOutcome(orphan));
  } else dispatcher.start({ ...taken, turn: dispatcher.turns.take(orphan.org_id, orphan.contract_id) });
  return true;
}

const unknownOutcome = ({ contract_id, target_agent_id }: TaskSummaryRow): TaskFault => ({
  reason: "OUTCOME_UNKNOWN",
  message: `the server stopped while an agent worked on it; the work may have been done, and ${contract_id} is not repeatable`,
  metadata: { agent_id: target_agent_id, cause: "SERVER_STOPPED" },
});

const actions: Readonly<Record<number, Action>> = {
  [InFlight.none]: "dispatch",
  [InFlight.repeatable]: "repeat",
  [InFlight.once]: "fail",
};

const sentences: Record<Action, string> = {
  dispatch: "found after its server stopped; no agent has it, so it is dispatched",
  repeat: "found after its server stopped; its contract is repeatable, so it is dispatched again",
  fail: "found after its server stopped; an agent may have done the work",
};
