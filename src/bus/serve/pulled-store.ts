/** The tasks of agents that pull: each open task whose `lease_owner` is {@link pullOwner} has one row here, but for those whose work is another organisation's. Whoever changes both locks the task first. */
import { TaskState } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import { type Queryable, sql, type Tx } from "../../db/db.ts";
import type { Tried } from "../retry.ts";
import type { Hold } from "../task-store.ts";

/** In the place of a server in a task's `lease_owner`: no server works on it, and none recovers it. Part of the index `task_open`. */
export const pullOwner = "pull";

/** A task that waits for an agent or that an instance of it has; `tried` is JSON of {@link Tried}. */
export type PulledRow = {
  readonly org_id: string;
  readonly task_id: string;
  readonly agent_id: string;
  /** Empty while it waits; then what follows `wait_until_ms` means nothing. */
  readonly instance: string;
  readonly contract_id: string;
  readonly contract_version: string;
  /** The task's: the oldest comes first. */
  readonly create_ms: number;
  readonly tried: string;
  readonly wait_until_ms: number;
  readonly token: number;
  readonly attempt: number;
  readonly start_ms: number;
  readonly lease_ms: number;
  readonly lease_until_ms: number;
  /** When the attempt is over, whatever the lease: the contract's timeout or the task's deadline. */
  readonly stop_ms: number;
  readonly due_ms: number;
};

/** One instance of an agent: what it is called, and how many tasks it has at most; with 0 it takes nothing new and ends when it has nothing. */
export type Instance = {
  readonly orgId: string;
  readonly agentId: string;
  readonly name: string;
  readonly capacity: number;
  readonly leaseMs: number;
};

type OfAgent = Pick<Instance, "orgId" | "agentId">;
type OfInstance = Pick<Instance, "orgId" | "agentId" | "name">;

/** Rung when a task begins to wait for an agent. */
export const workTopic = ({ orgId, agentId }: OfAgent): string => `pull:${orgId}:${agentId}`;
/** Rung when an instance has a task no more. */
export const instanceTopic = ({ orgId, agentId, name }: OfInstance): string => `pull:${orgId}:${agentId}:${name}`;

const columns = sql`org_id, task_id, agent_id, instance, contract_id, contract_version, create_ms, tried, wait_until_ms, token, attempt, start_ms, lease_ms,
  lease_until_ms, stop_ms, due_ms`;

export const triedOf = (row: PulledRow): Tried => JSON.parse(row.tried) as Tried;

/** Leaves a task to be pulled; from now on its former holder changes nothing. 0 when it was no longer held. */
export const leaveToPull = (tx: Tx, { orgId, taskId, token }: Hold): Promise<number> =>
  tx.run(sql`
    update task set lease_owner = ${pullOwner}, lease_token = lease_token + 1
    where org_id = ${orgId} and task_id = ${taskId} and lease_token = ${token} and state < ${TaskState.COMPLETED}`);

/** Gives a task that was pulled to a server, and removes its row here. */
export async function takeBack(tx: Tx, { orgId, taskId, token }: Hold, serverId: string): Promise<Hold | undefined> {
  const taken = await tx.one<{ lease_token: number }>(sql`
    update task set lease_owner = ${serverId}, lease_token = lease_token + 1
    where org_id = ${orgId} and task_id = ${taskId} and lease_token = ${token} and state < ${TaskState.COMPLETED} returning lease_token`);
  if (!taken) return undefined;
  await removePulled(tx, orgId, taskId);
  return { orgId, taskId, token: taken.lease_token };
}

/** A task begins to wait. */
export const insertWaiting = (
  tx: Tx,
  row: Pick<
    PulledRow,
    "org_id" | "task_id" | "agent_id" | "contract_id" | "contract_version" | "create_ms" | "tried" | "wait_until_ms"
  >,
): Promise<number> =>
  tx.run(sql`
    insert into pulled_task (${columns})
    values (${row.org_id}, ${row.task_id}, ${row.agent_id}, '', ${row.contract_id}, ${row.contract_version}, ${row.create_ms}, ${row.tried},
      ${row.wait_until_ms}, 0, 0, 0, 0, 0, 0, ${row.wait_until_ms})`);

/** The row goes with the end of the task, or when a server takes it back; whoever had it is told. */
export async function removePulled(tx: Tx, orgId: string, taskId: string): Promise<void> {
  const gone = await tx.one<{ agent_id: string; instance: string }>(
    sql`delete from pulled_task where org_id = ${orgId} and task_id = ${taskId} returning agent_id, instance`,
  );
  if (gone?.instance) tx.ring(instanceTopic({ orgId, agentId: gone.agent_id, name: gone.instance }));
}

/** Whether there is anything to claim; along the index on (org, agent, instance, create, task), to which the order binds the engine. */
export const hasWaiting = async (db: Queryable, { orgId, agentId }: OfAgent, now: number): Promise<boolean> =>
  (await db.one(sql`
    select 1 as found from pulled_task where org_id = ${orgId} and agent_id = ${agentId} and instance = '' and due_ms > ${now}
    order by create_ms limit 1`)) !== undefined;

/**
 * The oldest tasks that wait for an agent, locked with their tasks. It passes over what others hold and so never waits, in whatever order they lock. Along
 * the index on (org, agent, instance, create, task); by the task's id alone the engines would walk the primary key, through all agents' tasks. What is due waits for
 * the sweep and not for an instance.
 */
export const lockWaiting = (tx: Tx, { orgId, agentId }: OfAgent, now: number, limit: number): Promise<PulledRow[]> =>
  tx.all<PulledRow>(sql`
    select p.org_id, p.task_id, p.agent_id, p.instance, p.contract_id, p.contract_version, p.create_ms, p.tried, p.wait_until_ms, p.token, p.attempt, p.start_ms, p.lease_ms,
      p.lease_until_ms, p.stop_ms, p.due_ms
    from pulled_task p join task k on k.org_id = p.org_id and k.task_id = p.task_id
    where p.org_id = ${orgId} and p.agent_id = ${agentId} and p.instance = '' and p.due_ms > ${now} order by p.create_ms, p.task_id limit ${limit} ${tx.dialect.skipLocked}`);

/** What an instance has; along the same index. */
export const heldBy = (
  db: Queryable,
  { orgId, agentId, name }: OfInstance,
): Promise<Pick<PulledRow, "task_id" | "attempt">[]> =>
  db.all(
    sql`select task_id, attempt from pulled_task where org_id = ${orgId} and agent_id = ${agentId} and instance = ${name} order by create_ms`,
  );

/** The row of a task, to be changed. The task is locked already. */
export const lockPulled = (tx: Tx, orgId: string, taskId: string): Promise<PulledRow | undefined> =>
  tx.one<PulledRow>(
    sql`select ${columns} from pulled_task where org_id = ${orgId} and task_id = ${taskId} ${tx.dialect.forUpdate}`,
  );

/** What a delivery sets. */
export type DeliveryRow = Pick<
  PulledRow,
  | "org_id"
  | "task_id"
  | "instance"
  | "token"
  | "attempt"
  | "start_ms"
  | "lease_ms"
  | "lease_until_ms"
  | "stop_ms"
  | "due_ms"
>;

/** An instance has the task now. */
export const putDelivery = (tx: Tx, row: DeliveryRow): Promise<number> =>
  tx.run(sql`
    update pulled_task set instance = ${row.instance}, token = ${row.token}, attempt = ${row.attempt}, start_ms = ${row.start_ms}, lease_ms = ${row.lease_ms},
      lease_until_ms = ${row.lease_until_ms}, stop_ms = ${row.stop_ms}, due_ms = ${row.due_ms}
    where org_id = ${row.org_id} and task_id = ${row.task_id}`);

/** The instance has it no more, and it waits again; or it goes on waiting, after somebody looked at it. */
export async function putWaiting(tx: Tx, row: PulledRow, tried: Tried, waitUntilMs: number): Promise<void> {
  const { org_id: orgId, task_id: taskId, agent_id: agentId, instance } = row;
  await tx.run(sql`
    update pulled_task set instance = '', tried = ${JSON.stringify(tried)}, wait_until_ms = ${waitUntilMs}, due_ms = ${waitUntilMs}
    where org_id = ${orgId} and task_id = ${taskId}`);
  await tx.run(sql`update task set lease_token = lease_token + 1 where org_id = ${orgId} and task_id = ${taskId}`);
  tx.ring(workTopic({ orgId, agentId }));
  if (instance) tx.ring(instanceTopic({ orgId, agentId, name: instance }));
}

/**
 * Extends a lease by its length from now, never shortens it, and not beyond the attempt; gives when it ends, or undefined when the delivery is not the latest
 * or its time is over. One statement, of one row: the task itself stays unlocked.
 */
export const extendDelivery = async (tx: Tx, hold: Hold, now: number): Promise<number | undefined> =>
  (
    await tx.one<{ lease_until_ms: number }>(sql`
      update pulled_task set lease_until_ms = ${until(now)}, due_ms = ${until(now)}
      where org_id = ${hold.orgId} and task_id = ${hold.taskId} and token = ${hold.token} and instance <> '' and stop_ms > ${now}
      returning lease_until_ms`)
  )?.lease_until_ms;

/** Notes that progress is told now, unless some was told a moment ago; gives whose work it is when it is to be kept. */
export const noteTold = (tx: Tx, hold: Hold, now: number, leastMs: number): Promise<{ agent_id: string } | undefined> =>
  tx.one<{ agent_id: string }>(sql`
    update pulled_task set told_ms = ${now}
    where org_id = ${hold.orgId} and task_id = ${hold.taskId} and token = ${hold.token} and told_ms <= ${now - leastMs} returning agent_id`);

const until = (now: number) =>
  sql`case when ${now} + lease_ms >= stop_ms then stop_ms when ${now} + lease_ms > lease_until_ms then ${now} + lease_ms else lease_until_ms end`;

/** What is due: nobody fetched it, or its lease or its time is over. Along the index on due: the expressions keep the engine from taking another one. */
export function duePulled(
  db: Queryable,
  now: number,
  limit: number,
  of?: OfAgent,
): Promise<Pick<PulledRow, "org_id" | "task_id">[]> {
  const ofAgent = of ? sql`and org_id || '' = ${of.orgId} and agent_id || '' = ${of.agentId}` : sql``;
  return db.all(
    sql`select org_id, task_id from pulled_task where due_ms <= ${now} ${ofAgent} order by due_ms limit ${limit}`,
  );
}

/** Has what waits for an agent looked at again, since the agent was changed: until then nothing of it is delivered. */
export const reviewWaiting = (tx: Tx, orgId: string, agentId: string): Promise<number> =>
  tx.run(sql`update pulled_task set due_ms = 0 where org_id = ${orgId} and agent_id = ${agentId} and instance = ''`);

/** The same for one task, which is locked. */
export const reviewTask = (tx: Tx, orgId: string, taskId: string): Promise<number> =>
  tx.run(sql`update pulled_task set due_ms = 0 where org_id = ${orgId} and task_id = ${taskId}`);
