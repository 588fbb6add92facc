/** Tasks whose server is gone: each is found, taken over, and brought to its end. */
import { TaskState } from "../../gen/moltwire/bus/v1/task_pb.ts";
import { TraceEventKind } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import type { App } from "../app.ts";
import { findContract } from "./contract-store.ts";
import type { Dispatcher } from "./dispatch.ts";
import { type HeldTask, settleFailed, spanOf } from "./settle.ts";
import { findTask, orphanedTasks, type TaskRow, type TaskSummaryRow, takeTask } from "./task-store.ts";
import { recordSteps } from "./trace-store.ts";

const batch = 100;

/**
 * What becomes of an orphan: one that no agent can have is dispatched; one that an agent may have is dispatched again with the same id if
 * its contract is repeatable; else nobody can know, and it fails as OUTCOME_UNKNOWN.
 */
type Action = "dispatch" | "repeat" | "fail";

/** Takes over every orphan there is now; gives how many. Any number of replicas may do this at once: each task goes to one. */
export async function recoverTasks(app: App, dispatcher: Dispatcher): Promise<number> {
  let recovered = 0;
  for (;;) {
    const orphans = await orphanedTasks(app.db.query, app.clock.now(), batch);
    for (const orphan of orphans) if (await recoverTask(app, dispatcher, orphan)) recovered++;
    if (orphans.length < batch) return recovered;
  }
}

async function recoverTask(app: App, dispatcher: Dispatcher, orphan: TaskSummaryRow): Promise<boolean> {
  const contract = await findContract(app.db.query, orphan.org_id, orphan.contract_id, orphan.contract_version);
  const mayHaveIt = orphan.state === TaskState.WORKING && orphan.in_flight !== 0;
  const action: Action = !mayHaveIt ? "dispatch" : contract && contract.repeatable !== 0 ? "repeat" : "fail";
  const taken = await app.db.tx(async (tx): Promise<(HeldTask & { readonly task: TaskRow }) | undefined> => {
    const hold = await takeTask(tx, orphan, app.serverId);
    const task = hold && (await findTask(tx, orphan.org_id, orphan.task_id));
    if (!hold || !task) return undefined;
    const details = { state: orphan.state, attempts: orphan.attempts, action };
    await recordSteps(tx, app, spanOf(task), [
      {
        kind: TraceEventKind.RECOVERED,
        timeMs: app.clock.now(),
        message: sentences[action],
        details,
        targetAgentId: task.target_agent_id,
      },
    ]);
    return { hold, task };
  });
  if (!taken) return false;
  if (action === "fail") {
    const message = `the server stopped while an agent worked on it; the work may have been done, and ${orphan.contract_id} is not repeatable`;
    await settleFailed(app, taken, {
      reason: "OUTCOME_UNKNOWN",
      message,
      metadata: { agent_id: orphan.target_agent_id, cause: "SERVER_STOPPED" },
    });
  } else dispatcher.start(taken);
  return true;
}

const sentences: Record<Action, string> = {
  dispatch: "found after its server stopped; no agent has it, so it is dispatched",
  repeat: "found after its server stopped; its contract is repeatable, so it is dispatched again",
  fail: "found after its server stopped; an agent may have done the work",
};
