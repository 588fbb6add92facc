/** Tasks of the marketplace as they are stored. */
import { MarketplaceTaskState } from "../../../gen/moltwire/exchange/v1/marketplace_pb.ts";
import { join, type Queryable, type Sql, sql, type Tx } from "../../db/db.ts";
import { heldUntil, type Life, limits, nextByTime, stepsUntil, type TimedAct } from "./rule.ts";

/** Integers come as bigint only beyond 2^53. */
type Stored = number | bigint;

/** A task; columns are described in the migration. */
export type TaskRow = {
  readonly seq: number;
  readonly org_id: string;
  readonly task_id: string;
  readonly creator_agent_id: string;
  readonly title: string;
  readonly description: string;
  readonly category: string;
  readonly requirements: string;
  readonly tags: string;
  readonly reward: Stored;
  readonly fee_bps: number;
  readonly priority: number;
  readonly effort_ms: number | null;
  readonly deadline_ms: number | null;
  readonly claim_timeout_ms: number | null;
  readonly dispute_window_ms: number;
  readonly state: MarketplaceTaskState;
  readonly state_ms: number;
  readonly due_ms: number | null;
  readonly held_until_ms: number | null;
  readonly worker_org_id: string;
  readonly worker_agent_id: string;
  readonly deliveries: number;
  readonly rating: number;
  readonly paid: Stored;
  readonly create_ms: number;
};

/** What directories show of its creator and of its worker: the numbers of Visibility, null of those that have no profile, and whether the organisation is disabled. */
export type ShownRow = TaskRow & {
  readonly creator_visibility: number | null;
  readonly creator_disabled: number;
  readonly worker_visibility: number | null;
  readonly worker_disabled: number | null;
};

const names = [
  ...["org_id", "task_id", "creator_agent_id", "title", "description", "category", "requirements", "tags", "reward"],
  ...["fee_bps", "priority", "effort_ms", "deadline_ms", "claim_timeout_ms", "dispute_window_ms", "state", "state_ms"],
  ...["due_ms", "held_until_ms", "worker_org_id", "worker_agent_id", "deliveries", "rating", "paid", "create_ms"],
] as const satisfies readonly (keyof TaskRow)[];

const columns = sql`t.seq, t.org_id, t.task_id, t.creator_agent_id, t.title, t.description, t.category, t.requirements, t.tags, t.reward, t.fee_bps, t.priority, t.effort_ms,
  t.deadline_ms, t.claim_timeout_ms, t.dispute_window_ms, t.state, t.state_ms, t.due_ms, t.held_until_ms, t.worker_org_id, t.worker_agent_id, t.deliveries, t.rating, t.paid,
  t.create_ms`;

/** Of a task `t` with those who have to do with it, each by its key. */
export const shownColumns = sql`${columns}, cp.visibility as creator_visibility, co.disabled as creator_disabled, wp.visibility as worker_visibility, wo.disabled as worker_disabled`;
export const withParties = sql`join organization co on co.org_id = t.org_id
  left join directory_profile cp on cp.org_id = t.org_id and cp.agent_id = t.creator_agent_id
  left join organization wo on wo.org_id = t.worker_org_id
  left join directory_profile wp on wp.org_id = t.worker_org_id and wp.agent_id = t.worker_agent_id`;

/** Adds a task. `words`: what it is found by. */
export const insertTask = (tx: Tx, row: Omit<TaskRow, "seq">, words: string): Promise<number> =>
  tx.run(sql`
    insert into marketplace_task (words, org_id, task_id, creator_agent_id, title, description, category, requirements, tags, reward, fee_bps, priority, effort_ms, deadline_ms,
      claim_timeout_ms, dispute_window_ms, state, state_ms, due_ms, held_until_ms, worker_org_id, worker_agent_id, deliveries, rating, paid, create_ms)
    values (${words}, ${join(names.map((name) => row[name]))})`);

/** A task of any organisation, by its id alone. */
export const findTask = (db: Queryable, taskId: string): Promise<ShownRow | undefined> =>
  db.one<ShownRow>(sql`select ${shownColumns} from marketplace_task t ${withParties} where t.task_id = ${taskId}`);

/** The same, held for a change: whoever changes a task holds it before agents and accounts. */
export const lockTaskRow = (tx: Tx, taskId: string): Promise<TaskRow | undefined> =>
  tx.one<TaskRow>(sql`select ${columns} from marketplace_task t where t.task_id = ${taskId} ${tx.dialect.forUpdate}`);

/** What changes of a task in its life. */
export const updateTask = (tx: Tx, row: TaskRow): Promise<number> =>
  tx.run(sql`
    update marketplace_task set state = ${row.state}, state_ms = ${row.state_ms}, due_ms = ${row.due_ms}, held_until_ms = ${row.held_until_ms},
      worker_org_id = ${row.worker_org_id}, worker_agent_id = ${row.worker_agent_id}, deliveries = ${row.deliveries}, rating = ${row.rating}, paid = ${row.paid}
    where org_id = ${row.org_id} and task_id = ${row.task_id}`);

const counted = async (db: Queryable, found: Sql): Promise<number> =>
  (await db.one<{ n: number }>(sql`select count(*) as n from (${found}) counted`))?.n ?? 0;

/** How many tasks of an organisation have not ended, counted up to the limit. */
export const countLive = (db: Queryable, orgId: string): Promise<number> =>
  counted(
    db,
    sql`select 1 as one from marketplace_task where org_id = ${orgId} and state < 5 limit ${limits.liveTasks}`,
  );

/** How many tasks an agent has claimed and not delivered, counted up to the limit. Those whose time is over count until they are swept. */
export const countClaims = (db: Queryable, orgId: string, agentId: string): Promise<number> =>
  counted(
    db,
    sql`select 1 as one from marketplace_task where worker_org_id = ${orgId} and worker_agent_id = ${agentId} and state = 2 limit ${limits.claims}`,
  );

/** A task that time has something to do with. */
export type DueTask = { readonly due_ms: number; readonly seq: number; readonly task_id: string };

/** Those whose time has come, the longest due first, after a place among them. */
export const dueTasks = (
  db: Queryable,
  now: number,
  after: Pick<DueTask, "due_ms" | "seq">,
  limit: number,
): Promise<DueTask[]> =>
  db.all<DueTask>(sql`
    select due_ms, seq, task_id from marketplace_task where due_ms <= ${now} and (due_ms, seq) > (${after.due_ms}, ${after.seq}) order by due_ms, seq limit ${limit}`);

/** What the rule looks at. */
export const lifeOf = (row: TaskRow): Life => ({
  state: row.state,
  sinceMs: row.state_ms,
  deadlineMs: row.deadline_ms,
  claimTimeoutMs: row.claim_timeout_ms,
  disputeWindowMs: row.dispute_window_ms,
  heldUntilMs: row.held_until_ms,
  worker: row.worker_agent_id,
});

/** The row of a task that has come into another state. `workerOrgId`: of an agent that claims it. */
export const withLife = <Row extends TaskRow>(row: Row, life: Life, workerOrgId = row.worker_org_id): Row => ({
  ...row,
  state: life.state,
  state_ms: life.sinceMs,
  due_ms: nextByTime(life)?.atMs ?? null,
  held_until_ms: life.heldUntilMs,
  worker_agent_id: life.worker,
  worker_org_id: life.worker === "" ? "" : workerOrgId,
});

/** A task as it is now, whether that is written down already or not, and by what it came to be so last, if it is not. */
export function asOf<Row extends TaskRow>(row: Row, now: number): { readonly row: Row; readonly act?: TimedAct } {
  const last = stepsUntil(lifeOf(row), now).at(-1);
  return last ? { row: withLife(row, last.life), act: last.act } : { row };
}

/** Who is shown as its worker: also of one that is open again, while it is kept for that. */
export const shownWorker = (row: TaskRow, now: number): string =>
  row.state === MarketplaceTaskState.OPEN && heldUntil(lifeOf(row), now) === undefined ? "" : row.worker_agent_id;
