import { fromJson, type MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs, ValueSchema } from "@bufbuild/protobuf/wkt";
import type { DeadLetterEnvelopeSchema, DeadLetterSchema } from "../../../gen/moltwire/bus/v1/dead_letter_pb.ts";
import { DeadLetterState } from "../../../gen/moltwire/bus/v1/dead_letter_pb.ts";
import type { App } from "../../app.ts";
import { empty, join, type Queryable, type Sql, sql, type Tx } from "../../db/db.ts";
import type { Position } from "../../rpc/cursor.ts";
import { openFault, openJson, type TaskRow } from "../task-store.ts";

/** A dead letter as it is stored: `state` and `reason` are the numbers of DeadLetterState and ErrorReason. */
export type DeadLetterRow = {
  readonly org_id: string;
  readonly dead_letter_id: string;
  readonly state: number;
  readonly task_id: string;
  readonly trace_id: string;
  readonly caller_agent_id: string;
  readonly target_agent_id: string;
  readonly contract_id: string;
  readonly contract_version: string;
  readonly reason: number;
  readonly create_ms: number;
  readonly resolve_ms: number | null;
  readonly resolved_by: string;
  readonly resolve_note: string;
};

/** With what a list answers of its task; `error` is sealed. */
export type ListedRow = DeadLetterRow & Pick<TaskRow, "attempts" | "error" | "retry_of_dead_letter_id">;

/** A task that tried a dead letter again: `state` is the number of TaskState. */
export type RetryRow = { readonly retry_of_dead_letter_id: string; readonly task_id: string; readonly state: number };

const columns = sql`org_id, dead_letter_id, state, task_id, trace_id, caller_agent_id, target_agent_id, contract_id, contract_version, reason, create_ms,
  resolve_ms, resolved_by, resolve_note`;

export const insertDeadLetter = (tx: Tx, row: DeadLetterRow): Promise<number> =>
  tx.run(sql`
    insert into dead_letter (${columns})
    values (${row.org_id}, ${row.dead_letter_id}, ${row.state}, ${row.task_id}, ${row.trace_id}, ${row.caller_agent_id}, ${row.target_agent_id},
      ${row.contract_id}, ${row.contract_version}, ${row.reason}, ${row.create_ms}, ${row.resolve_ms}, ${row.resolved_by}, ${row.resolve_note})`);

export const findDeadLetter = (db: Queryable, orgId: string, id: string): Promise<DeadLetterRow | undefined> =>
  db.one<DeadLetterRow>(sql`select ${columns} from dead_letter where org_id = ${orgId} and dead_letter_id = ${id}`);

export const lockDeadLetter = (tx: Tx, orgId: string, id: string): Promise<DeadLetterRow | undefined> =>
  tx.one<DeadLetterRow>(
    sql`select ${columns} from dead_letter where org_id = ${orgId} and dead_letter_id = ${id} ${tx.dialect.forUpdate}`,
  );

/** Somebody settled it. */
export const markResolved = (
  tx: Tx,
  { org_id, dead_letter_id }: DeadLetterRow,
  by: string,
  note: string,
  now: number,
): Promise<number> =>
  tx.run(sql`
    update dead_letter set state = ${DeadLetterState.RESOLVED}, resolve_ms = ${now}, resolved_by = ${by}, resolve_note = ${note}
    where org_id = ${org_id} and dead_letter_id = ${dead_letter_id}`);

/** It was tried again. How it was resolved before stays written down. */
export const markRetried = (tx: Tx, { org_id, dead_letter_id }: DeadLetterRow): Promise<number> =>
  tx.run(
    sql`update dead_letter set state = ${DeadLetterState.RETRIED} where org_id = ${org_id} and dead_letter_id = ${dead_letter_id}`,
  );

/** The retries of some dead letters, oldest first; by the partial index on tasks that are retries. */
export const retriesOf = async (db: Queryable, orgId: string, ids: readonly string[]): Promise<RetryRow[]> =>
  ids.length === 0
    ? []
    : db.all<RetryRow>(sql`
        select retry_of_dead_letter_id, task_id, state from task
        where org_id = ${orgId} and retry_of_dead_letter_id <> '' and retry_of_dead_letter_id in (${join([...ids])})
        order by retry_of_dead_letter_id, task_id`);

export type DeadLetterFilter = {
  readonly taskId: string;
  readonly traceId: string;
  readonly callerAgentId: string;
  readonly targetAgentId: string;
  readonly contractId: string;
  readonly contractVersion: string;
  /** 0: any. */
  readonly reason: number;
  /** 0: any. */
  readonly state: number;
  /** Failed at this time or later, and before that. */
  readonly startMs: number | null;
  readonly endMs: number | null;
};

/** The last millisecond that a Date can hold. */
const maxMs = 8_640_000_000_000_000;

/**
 * Newest first. Each filter has an index that ends in the order of the list; the walk is along that of the narrowest filter given, and an
 * expression keeps the engine from taking another and sorting. The times are one range of a column: with a comparison of rows beside it SQLite
 * takes the index on the time alone. The tasks are joined to the rows of the page only.
 */
export function listDeadLetters(
  db: Queryable,
  orgId: string,
  filter: DeadLetterFilter,
  after: Position | undefined,
  limit: number,
): Promise<ListedRow[]> {
  const [afterMs, afterId] = (after ?? [maxMs, ""]) as [number, string];
  const lastMs = Math.min(afterMs, (filter.endMs ?? maxMs) - 1);
  const atOnce = after ? sql`and (create_ms < ${afterMs} or dead_letter_id < ${afterId})` : empty;
  return db.all<ListedRow>(sql`
    select d.*, t.attempts, t.error, t.retry_of_dead_letter_id from (
      select ${columns} from dead_letter where org_id = ${orgId} ${conditions(filter)}
        and create_ms between ${filter.startMs ?? 0} and ${lastMs} ${atOnce}
      order by create_ms desc, dead_letter_id desc limit ${limit}
    ) d join task t on t.org_id = d.org_id and t.task_id = d.task_id
    order by d.create_ms desc, d.dead_letter_id desc`);
}

function conditions(filter: DeadLetterFilter): Sql {
  const given = [
    { value: filter.taskId, walked: sql`task_id`, sifted: sql`task_id || ''` },
    { value: filter.traceId, walked: sql`trace_id`, sifted: sql`trace_id || ''` },
    { value: filter.callerAgentId, walked: sql`caller_agent_id`, sifted: sql`caller_agent_id || ''` },
    { value: filter.targetAgentId, walked: sql`target_agent_id`, sifted: sql`target_agent_id || ''` },
    { value: filter.contractId, walked: sql`contract_id`, sifted: sql`contract_id || ''` },
    { value: filter.reason, walked: sql`reason`, sifted: sql`reason + 0` },
    { value: filter.state, walked: sql`state`, sifted: sql`state + 0` },
    { value: filter.contractVersion, walked: sql`contract_version`, sifted: sql`contract_version` },
  ].filter(({ value }) => value !== "" && value !== 0);
  const terms = given.map(({ value, walked, sifted }, n) => sql`and ${n === 0 ? walked : sifted} = ${value}`);
  return terms.length > 0 ? join(terms, " ") : empty;
}

/** A dead letter as a list answers it. */
export const toDeadLetter = (
  app: Pick<App, "vault">,
  row: ListedRow,
  retries: readonly RetryRow[],
): MessageInitShape<typeof DeadLetterSchema> & { readonly $typeName?: never } => ({
  orgId: row.org_id,
  deadLetterId: row.dead_letter_id,
  state: row.state as DeadLetterState,
  taskId: row.task_id,
  traceId: row.trace_id,
  callerAgentId: row.caller_agent_id,
  targetAgentId: row.target_agent_id,
  contractId: row.contract_id,
  contractVersion: row.contract_version,
  ...(row.error && { error: openFault(app, row.org_id, row.task_id, row.error) }),
  attemptCount: row.attempts,
  createTime: timestampFromMs(row.create_ms),
  ...(row.resolve_ms !== null && { resolveTime: timestampFromMs(row.resolve_ms) }),
  resolvedBy: row.resolved_by,
  resolveNote: row.resolve_note,
  retryTaskIds: retries.filter((one) => one.retry_of_dead_letter_id === row.dead_letter_id).map((one) => one.task_id),
  retryOfDeadLetterId: row.retry_of_dead_letter_id,
});

/** A task as it was asked for. */
export const toEnvelope = (
  app: Pick<App, "vault">,
  task: TaskRow,
): MessageInitShape<typeof DeadLetterEnvelopeSchema> => ({
  requestedVersion: task.requested_version,
  input: fromJson(ValueSchema, openJson(app, task.org_id, task.task_id, "input", task.input)),
  requestedAgentId: task.wanted_agent_id,
  labels: JSON.parse(task.labels) as Record<string, string>,
  callerKeyId: task.caller_key_id,
  origin: task.origin,
  grantId: task.grant_id,
  spanId: task.span_id,
  parentSpanId: task.parent_span_id,
  submitTime: timestampFromMs(task.create_ms),
  ...(task.deadline_ms !== null && { deadlineTime: timestampFromMs(task.deadline_ms) }),
});
