/** Tasks whose grant is in force no more are ended, wherever they are: with an agent, waiting to be pulled, waiting for an approval. */
import { TaskState } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import type { App } from "../../app.ts";
import { cancelTopic } from "../../bus/cancel-topic.ts";
import { concludeAcross, rejectedStep } from "../../bus/conclude.ts";
import { isTerminal, lockTask } from "../../bus/task-store.ts";
import type { Tx } from "../../db/db.ts";
import { Fault } from "../../errors.ts";
import { type CrossingRow, findCrossing, markSettled, openCrossings, unsettledGrants } from "./crossing-store.ts";
import { asTaskFault, grantInForce } from "./still-granted.ts";

const batch = 100;

/** Ends what is open under grants that have left their force. Any number of replicas may do this at once: each task is ended once. */
export async function endUngranted(app: App): Promise<void> {
  for (const grant of await unsettledGrants(app.db.query, batch)) {
    let after = "";
    for (;;) {
      const open = await openCrossings(app.db.query, grant, after, batch);
      for (const one of open) {
        if (app.stopping.aborted) return;
        await app.db
          .tx((tx) => endOne(tx, app, one))
          // One that cannot be ended now must not keep the others going; the grant stays marked.
          .catch((error: unknown) =>
            app.log.error({ err: error, task_id: one.task_id }, "a task could not be ended with its grant"),
          );
      }
      if (open.length < batch) break;
      after = open.at(-1)!.task_id;
    }
    await app.db.tx((tx) => markSettled(tx, grant));
  }
}

/** The work, if it has begun, and the side that asked with it; else that side alone. Nothing when the grant is in force again. */
async function endOne(tx: Tx, app: App, { org_id, task_id }: Pick<CrossingRow, "org_id" | "task_id">): Promise<void> {
  const now = app.clock.now();
  const guest = await lockTask(tx, org_id, task_id);
  const crossing = await findCrossing(tx, org_id, task_id);
  if (!crossing?.is_open) return;
  const task = guest ?? (await lockTask(tx, crossing.caller_org_id, task_id));
  const ended = await grantInForce(tx, crossing, now);
  if (!task || !(ended instanceof Fault) || isTerminal(task.state)) return;
  const fault = asTaskFault(ended);
  const hold = { orgId: task.org_id, taskId: task_id, token: task.lease_token };
  const steps = [rejectedStep(task, fault, now)];
  const end = { state: TaskState.REJECTED, endMs: now, fault, steps };
  // Work that has begun since this side was found alone ends with it.
  await concludeAcross(tx, app, { hold, task }, end, end);
  tx.ring(cancelTopic(task_id));
}
