/** What is under way with a peer when it is removed is ended, whichever of the two asked. */
import { TaskState } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import { TraceEventKind } from "../../../gen/moltwire/bus/v1/trace_pb.ts";
import type { App } from "../../app.ts";
import { cancelTopic } from "../../bus/cancel-topic.ts";
import { concludeTask } from "../../bus/conclude.ts";
import { isTerminal, lockTask, type TaskFault, type TaskRow } from "../../bus/task-store.ts";
import { type Queryable, sql, type Tx } from "../../db/db.ts";
import type { PeerRow } from "./store.ts";
import { cancelWork } from "./work.ts";

/** So long work of a message can still appear that was let in before the removal; afterwards nobody looks any more. */
const settledAfterMs = 60_000;
const maxPeers = 1_000;
const tasksAtOnce = 50;

type Removed = Pick<PeerRow, "org_id" | "peer_id" | "name" | "agent_id" | "update_ms">;
type Open = Pick<TaskRow, "org_id" | "task_id" | "target_org_id">;

/** Peers that were removed and with which work may be under way; by the partial index on them. */
export const removedPeers = (db: Queryable, limit: number): Promise<Removed[]> =>
  db.all<Removed>(sql`
    select org_id, peer_id, name, agent_id, update_ms from federation_peer where unsettled = 1 order by peer_id limit ${limit}`);

/**
 * What the agent of a peer asked for and has not ended. By the index on states: of its organisation few tasks are open, and the agent has asked for many; its id is written as an expression, so that the engine does
 * not walk along those.
 */
export const openAskedBy = (db: Queryable, { org_id, agent_id }: Removed, limit: number): Promise<Open[]> =>
  db.all<Open>(sql`
    select org_id, task_id, target_org_id from task
    where org_id = ${org_id} and state in (1, 2, 3) and caller_agent_id || '' = ${agent_id} order by state, task_id limit ${limit}`);

/** What the agent of a peer has in hand; as {@link openAskedBy}. */
export const openDoneBy = (db: Queryable, { org_id, agent_id }: Removed, limit: number): Promise<Open[]> =>
  db.all<Open>(sql`
    select org_id, task_id, target_org_id from task
    where org_id = ${org_id} and state = 2 and in_flight <> 0 and target_org_id = ${org_id} and target_agent_id || '' = ${agent_id}
    order by task_id limit ${limit}`);

/** One round; gives 0 when the next one is to follow at once. Any number of replicas may do this at once: each task is ended once. */
export async function endRemoved(app: App): Promise<number> {
  let more = false;
  for (const peer of await removedPeers(app.db.query, maxPeers)) {
    const asked = await openAskedBy(app.db.query, peer, tasksAtOnce);
    const done = await openDoneBy(app.db.query, peer, tasksAtOnce);
    let ended = 0;
    for (const one of asked)
      ended += await endOne(app, one, (tx) =>
        cancelWork(tx, app, one, `${peer.name} was removed: it is a peer no more`),
      );
    for (const one of done) ended += await endOne(app, one, (tx) => failWork(tx, app, one, peer));
    if (ended > 0 && (asked.length === tasksAtOnce || done.length === tasksAtOnce)) more = true;
    if (asked.length + done.length === 0 && app.clock.now() - peer.update_ms > settledAfterMs) await settled(app, peer);
  }
  return more ? 0 : Number.POSITIVE_INFINITY;
}

const settled = (app: App, { org_id, peer_id }: Removed): Promise<number> =>
  app.db.tx((tx) =>
    tx.run(sql`update federation_peer set unsettled = 0 where org_id = ${org_id} and peer_id = ${peer_id}`),
  );

/** One that cannot be ended now must not keep the others going; the peer stays marked. Gives 1 when it could. */
const endOne = (app: App, { task_id }: Open, end: (tx: Tx) => Promise<unknown>): Promise<number> =>
  app.db.tx(end).then(
    () => 1,
    (error: unknown) => {
      app.log.error({ err: error, task_id }, "a task could not be ended with its peer");
      return 0;
    },
  );

/** The peer has the work, and its answer will not be taken any more: nobody knows whether it was done. */
async function failWork(
  tx: Tx,
  app: App,
  { org_id, task_id }: Open,
  { name, peer_id, agent_id }: Removed,
): Promise<void> {
  const task = await lockTask(tx, org_id, task_id);
  if (!task || isTerminal(task.state) || task.in_flight === 0 || task.target_agent_id !== agent_id) return;
  const now = app.clock.now();
  const fault: TaskFault = {
    reason: "OUTCOME_UNKNOWN",
    message: `the peer ${name} was removed while it had the work, which may have been done`,
    metadata: { peer_id, agent_id },
  };
  const step = {
    ...{ kind: TraceEventKind.FAILED, timeMs: now, message: fault.message, targetAgentId: agent_id },
    details: { reason: fault.reason, message: fault.message, ...fault.metadata },
    durationMs: now - task.create_ms,
  };
  const hold = { orgId: org_id, taskId: task_id, token: task.lease_token };
  await concludeTask(tx, app, { hold, task }, { state: TaskState.FAILED, endMs: now, fault, steps: [step] });
  tx.ring(cancelTopic(task_id));
}
