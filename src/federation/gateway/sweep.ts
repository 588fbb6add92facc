/** Tasks whose grant is in force no more are ended, wherever they are: with an agent, waiting to be pulled, waiting for an approval. */
import { TaskState } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import type { App } from "../../app.ts";
import { cancelTopic } from "../../bus/cancel-topic.ts";
import { concludeAcross, rejectedStep } from "../../bus/conclude.ts";
import { isTerminal, lockTask } from "../../bus/task-store.ts";
import type { Tx } from "../../db/db.ts";
import { Fault } from "../../errors.ts";
import {
  type CrossingRow,
  findCrossing,
  markSettled,
  type OfGrant,
  openCrossings,
  unsettledGrants,
} from "./crossing-store.ts";
import { asTaskFault, grantInForce } from "./still-granted.ts";

/** How many grants are looked at in one round, and of each how many tasks: little, so that a grant that ends while many tasks of another are ended has its turn soon. */
const grantsAtOnce = 20;
const tasksOfEach = 10;
/** How many tasks are ended at a time: one that another transaction holds must not keep the others waiting. */
const lanes = 8;

const before: OfGrant = { org_id: "", grant_id: "" };
const keyOf = ({ org_id, grant_id }: OfGrant): string => `${org_id} ${grant_id}`;

/**
 * Ends what is open under grants that have left their force, a round at a time, in turns; a round gives 0 when the next one is to follow at once. Any number of replicas may do this
 * at once: each task is ended once.
 */
export function ungrantedWalk(app: App): () => Promise<number> {
  let last = before;
  /** How far a grant's tasks have been walked over, if not to their end. */
  const reached = new Map<string, string>();
  let more = false;

  return async function round(): Promise<number> {
    const grants = await unsettledGrants(app.db.query, last, grantsAtOnce);
    if (last === before && grants.length === 0) reached.clear();
    const pages = await Promise.all(
      grants.map((grant) => openCrossings(app.db.query, grant, reached.get(keyOf(grant)) ?? "", tasksOfEach)),
    );
    await inLanes(pages.flat(), (one) => endOne(app, one));
    for (const [index, grant] of grants.entries()) {
      const open = pages[index]!;
      if (open.length === tasksOfEach) {
        reached.set(keyOf(grant), open.at(-1)!.task_id);
        more = true;
        continue;
      }
      reached.delete(keyOf(grant));
      await app.db.tx((tx) => markSettled(tx, grant));
    }
    if (grants.length === grantsAtOnce) {
      last = grants.at(-1)!;
      return 0;
    }
    last = before;
    const again = more;
    more = false;
    return again ? 0 : Number.POSITIVE_INFINITY;
  };

  async function inLanes<T>(all: readonly T[], work: (one: T) => Promise<void>): Promise<void> {
    const left = [...all];
    const lane = async () => {
      for (let one = left.shift(); one !== undefined && !app.stopping.aborted; one = left.shift()) await work(one);
    };
    await Promise.all(Array.from({ length: lanes }, lane));
  }
}

/** One that cannot be ended now must not keep the others going; the grant stays marked. */
const endOne = (app: App, one: Pick<CrossingRow, "org_id" | "task_id">): Promise<void> =>
  app.db
    .tx((tx) => end(tx, app, one))
    .catch((error: unknown) =>
      app.log.error({ err: error, task_id: one.task_id }, "a task could not be ended with its grant"),
    );

/** The work, if it has begun, and the side that asked with it; else that side alone. Nothing when the grant is in force again. */
async function end(tx: Tx, app: App, { org_id, task_id }: Pick<CrossingRow, "org_id" | "task_id">): Promise<void> {
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
  const how = { state: TaskState.REJECTED, endMs: now, fault, steps };
  // Work that has begun since this side was found alone ends with it.
  await concludeAcross(tx, app, { hold, task }, how, how);
  tx.ring(cancelTopic(task_id));
}
