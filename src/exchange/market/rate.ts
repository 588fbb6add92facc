/** What a creator says of its worker, as a collaboration. */
import { Outcome } from "../../../gen/moltwire/directory/v1/collaboration_pb.ts";
import type { App } from "../../app.ts";
import type { Tx } from "../../db/db.ts";
import { insertCollaboration } from "../../directory/collaboration-store.ts";
import { evidenceNumbers } from "../../directory/evidence.ts";
import { keepStanding, lockStanding } from "../../directory/profile-store.ts";
import { addRating, worthOf } from "../../directory/reputation.ts";
import type { TaskRow } from "./store.ts";

/** Rates the worker of a task that was accepted, with the rating that the task has; once, and not one that is gone. */
export async function rateWorker(tx: Tx, app: Pick<App, "ids">, task: TaskRow, now: number): Promise<void> {
  const standing = await lockStanding(tx, task.worker_org_id, task.worker_agent_id);
  if (!standing) return;
  const added = await insertCollaboration(tx, {
    ...{ org_id: task.org_id, collaboration_id: app.ids.next("col"), agent_id: task.creator_agent_id },
    ...{ partner_org_id: task.worker_org_id, partner_agent_id: task.worker_agent_id },
    ...{ evidence_kind: evidenceNumbers.marketplaceTask, evidence_id: task.task_id, task_type: task.category },
    ...{ outcome: Outcome.SUCCESS, rating: task.rating, create_ms: now },
  });
  if (added === 0) return;
  const worth = worthOf(task.rating, Outcome.SUCCESS);
  await keepStanding(tx, task.worker_org_id, task.worker_agent_id, addRating(standing, worth, now));
}
