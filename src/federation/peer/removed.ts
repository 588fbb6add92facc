/** What is under way with a peer when it is removed is ended, whichever of the two asked. */
import { TaskState } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import { TraceEventKind } from "../../../gen/moltwire/bus/v1/trace_pb.ts";
import type { App } from "../../app.ts";
import { cancelTopic } from "../../bus/cancel-topic.ts";
import { concludeTask } from "../../bus/conclude.ts";
import { isTerminal, lockTask, type TaskFault, type TaskRow } from "../../bus/task-store.ts";
import { type Queryable, type Sql, sql, type Tx } from "../../db/db.ts";
import type { PeerRow } from "./store.ts";
import { cancelWork } from "./work.ts";

/** So long work of a message can still appear that was let in before the removal; afterwards nobody looks any more. */
const settledAfterMs = 60_000;
const maxPeers = 1_000;
const tasksAtOnce = 50;

type Removed = Pick<PeerRow, "org_id" | "peer_id" | "name" | "agent_id" | "update_ms">;
type Open = Pick<TaskRow, "org_id" | "task_id" | "target_org_id" | "state">;
/** The last one of a page, after which the next one begins. */
type Reached = Pick<TaskRow, "state" | "task_id">;

/** Peers that were removed and with which work may be under way; by the partial index on them. */
export const removedPeers = (db: Queryable, limit: number): Promise<Removed[]> =>
  db.all<Removed>(sql`
    select org_id, peer_id, name, agent_id, update_ms from federation_peer where unsettled = 1 order by peer_id limit ${limit}`);

/** Nothing yet. */
const before: Reached = { state: 0, task_id: "" };
const beyond = ({ state, task_id }: Reached): Sql =>
  sql`(state > ${state} or (state = ${state} and task_id > ${task_id}))`;

/**
 * What the agent of a peer asked for and has not ended. By the index on states: of its organisation few tasks are open, and the agent has asked for many; its id is written as an expression, so that the engine does
 * not walk along those.
 */
export const openAskedBy = (
  db: Queryable,
  { org_id, agent_id }: Removed,
  after: Reached,
  limit: number,
): Promise<Open[]> =>
  db.all<Open>(sql`
    select org_id, task_id, target_org_id, state from task
    where org_id = ${org_id} and state in (1, 2, 3) and caller_agent_id || '' = ${agent_id} and ${beyond(after)} order by state, task_id limit ${limit}`);

/** What the agent of a peer has in hand; as {@link openAskedBy}. */
export const openDoneBy = (
  db: Queryable,
  { org_id, agent_id }: Removed,
  after: Reached,
  limit: number,
): Promise<Open[]> =>
  db.all<Open>(sql`
    select org_id, task_id, target_org_id, state from task
    where org_id = ${org_id} and state = 2 and in_flight <> 0 and target_org_id = ${org_id} and target_agent_id || '' = ${agent_id} and ${beyond(after)}
    order by task_id limit ${limit}`);

/**
 * Ends what is under way with peers that were removed, a round at a time; a round gives 0 when the next one is to follow at once. What cannot be ended now is passed over, and has its turn again when all else had
 * its own. Any number of replicas may do this at once: each task is ended once.
 */
export function removedWalk(app: App): () => Promise<number> {
  /** How far what each peer asked for, and has in hand, has been walked over, if not to its end. */
  const walks = [
    { open: openAskedBy, end: endAsked, reached: new Map<string, Reached>() },
    { open: openDoneBy, end: failWork, reached: new Map<string, Reached>() },
  ];

  return async function round(): Promise<number> {
    let more = false;
    const peers = await removedPeers(app.db.query, maxPeers);
    if (peers.length === 0) for (const { reached } of walks) reached.clear();
    for (const peer of peers) {
      let isQuiet = true;
      for (const { open, end, reached } of walks) {
        const from = reached.get(peer.peer_id);
        const page = await open(app.db.query, peer, from ?? before, tasksAtOnce);
        for (const one of page) await endOne(app, one, (tx) => end(tx, app, one, peer));
        if (from || page.length > 0) isQuiet = false;
        if (page.length < tasksAtOnce) reached.delete(peer.peer_id);
        else {
          reached.set(peer.peer_id, page.at(-1)!);
          more = true;
        }
      }
      if (isQuiet && app.clock.now() - peer.update_ms > settledAfterMs) await settled(app, peer);
    }
    return more ? 0 : Number.POSITIVE_INFINITY;
  };
}

const settled = (app: App, { org_id, peer_id }: Removed): Promise<number> =>
  app.db.tx((tx) =>
    tx.run(sql`update federation_peer set unsettled = 0 where org_id = ${org_id} and peer_id = ${peer_id}`),
  );

/** One that cannot be ended now must not keep the others going; the peer stays marked. */
const endOne = (app: App, { task_id }: Open, end: (tx: Tx) => Promise<unknown>): Promise<unknown> =>
  app.db
    .tx(end)
    .catch((error: unknown) => app.log.error({ err: error, task_id }, "a task could not be ended with its peer"));

const endAsked = (tx: Tx, app: App, one: Open, { name }: Removed): Promise<unknown> =>
  cancelWork(tx, app, one, `${name} was removed: it is a peer no more`);

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
