/** What is too old is deleted here, a bounded number of rows in a transaction, along an index that leads with the organisation. */
import { type Queryable, type Sql, sql, type Tx } from "../db/db.ts";
import { type LogPosition, settled } from "../db/log.ts";
import { lockHead, oldestInChain, removeThroughNumber } from "./audit-chain-store.ts";
import { isBefore, raiseFloor } from "./log-floor.ts";

/** What ages out by the settings of retention. */
export const retentionKinds = ["traces", "events", "decisions", "dead_letters", "audit"] as const;
export type RetentionKind = (typeof retentionKinds)[number];

/** Rows that one transaction deletes at most. */
export const retentionBatch = 500;
/** Traces that one transaction ends at most; each costs two looks into indexes. */
const tracesAtOnce = 50;

/** Whether an organisation has a row of a kind from before a time; each is one look into an index. */
const oldest: Readonly<Record<RetentionKind, (beforeMs: number) => Sql>> = {
  traces: (beforeMs) => sql`select 1 from trace r where r.org_id = one.org_id and r.start_ms < ${beforeMs}`,
  events: (beforeMs) =>
    sql`select 1 from (select e.time_ms from outbox e where e.org_id = one.org_id order by e.xid, e.seq limit 1) oldest where oldest.time_ms < ${beforeMs}`,
  decisions: (beforeMs) => sql`select 1 from policy_decision r where r.org_id = one.org_id and r.time_ms < ${beforeMs}`,
  dead_letters: (beforeMs) =>
    sql`select 1 from dead_letter r where r.org_id = one.org_id and r.create_ms < ${beforeMs}`,
  audit: (beforeMs) =>
    sql`select 1 from (select a.time_ms from audit_event a where a.org_id = one.org_id and a.number is not null order by a.number limit 1) oldest where oldest.time_ms < ${beforeMs}`,
};

/** The next organisations by their ids, each with whether it has anything of a kind from before a time. */
export const organizationsWithOld = (
  db: Queryable,
  kind: RetentionKind,
  beforeMs: number,
  after: string,
  limit: number,
): Promise<{ org_id: string; due: number }[]> =>
  db.all(sql`
    select one.org_id, exists (${oldest[kind](beforeMs)}) as due
    from (select org_id from organization where org_id > ${after} order by org_id limit ${limit}) one order by one.org_id`);

/** A place among an organisation's traces, by their start. */
export type TracePosition = readonly [startMs: number, traceId: string];
export const firstTrace: TracePosition = [0, ""];

/** What a transaction deleted, and whether there may be more; for traces, where to look next. */
export type Removed = { readonly rows: number; readonly more: boolean; readonly next?: TracePosition };

/**
 * The first rows of a walk that has found the last of them. PostgreSQL gets them by their places: told where they end it may guess that this is half of the table,
 * above all in a log that was restored, whose `xid` is 0 throughout, and read all of it.
 */
const those = ({ dialect }: Tx, table: Sql, walk: Sql, upToLast: Sql): Sql =>
  dialect.name === "sqlite" ? upToLast : sql`ctid = any (array(select ctid from ${table} where ${walk}))`;

/**
 * The same of a log, and none after the last, whoever else has removed some meanwhile: what comes next may not be old, and no floor would tell of it. A
 * condition on the few that were limited is no reason to look for others.
 */
const thoseInLog = ({ dialect }: Tx, table: Sql, walk: Sql, { xid, seq }: LogPosition): Sql =>
  dialect.name === "sqlite"
    ? sql`xid = 0 and seq <= ${seq}`
    : sql`ctid = any (array(
        select w.ctid from (select ctid, xid, seq from ${table} where ${walk}) w where (w.xid, w.seq) <= (${xid}, ${seq})))`;

/** The beginning of the log of events, as far as it is old; the rest of the log is not looked at. */
export async function removeEvents(tx: Tx, orgId: string, beforeMs: number): Promise<Removed> {
  const found = await oldestEvents(tx, orgId);
  const kept = found.findIndex(({ time_ms }) => time_ms >= beforeMs);
  const old = kept < 0 ? found : found.slice(0, kept);
  const last = old.at(-1);
  if (!last) return { rows: 0, more: false };
  const walk = sql`org_id = ${orgId} and ${settled(tx.dialect)} order by xid, seq limit ${old.length}`;
  const rows = await tx.run(
    sql`delete from outbox where org_id = ${orgId} and ${thoseInLog(tx, sql`outbox`, walk, last)}`,
  );
  await raiseFloor(tx, orgId, "events", last);
  return { rows, more: old.length === retentionBatch };
}

/** Settled ones: none will ever appear before them. */
export const oldestEvents = (db: Queryable, orgId: string): Promise<(LogPosition & { time_ms: number })[]> =>
  db.all(sql`
    select xid, seq, time_ms from outbox where org_id = ${orgId} and ${settled(db.dialect)} order by xid, seq limit ${retentionBatch}`);

export async function removeDecisions(tx: Tx, orgId: string, beforeMs: number): Promise<Removed> {
  const found = await oldestDecisions(tx, orgId, beforeMs);
  const last = found.at(-1);
  if (!last) return { rows: 0, more: false };
  const walk = sql`org_id = ${orgId} and time_ms < ${beforeMs} order by time_ms, decision_id, nth limit ${found.length}`;
  const upTo = sql`time_ms <= ${last.time_ms} and (time_ms < ${last.time_ms} or decision_id <= ${last.id})`;
  const rows = await tx.run(
    sql`delete from policy_decision where org_id = ${orgId} and ${those(tx, sql`policy_decision`, walk, upTo)}`,
  );
  return { rows, more: found.length === retentionBatch };
}

/** By the primary key. */
export const oldestDecisions = (db: Queryable, orgId: string, beforeMs: number): Promise<Oldest[]> =>
  db.all(sql`
    select time_ms, decision_id as id from policy_decision where org_id = ${orgId} and time_ms < ${beforeMs}
    order by time_ms, decision_id, nth limit ${retentionBatch}`);

type Oldest = { readonly time_ms: number; readonly id: string };

/** The beginning of the chain, as far as it is old: what is not chained yet is not looked at. */
export async function removeAudit(tx: Tx, orgId: string, beforeMs: number): Promise<Removed> {
  const head = await lockHead(tx, orgId);
  const found = await oldestInChain(tx, head, retentionBatch);
  const kept = found.findIndex(({ time_ms }) => time_ms >= beforeMs);
  const last = (kept < 0 ? found : found.slice(0, kept)).at(-1);
  if (!last) return { rows: 0, more: false };
  const rows = await removeThroughNumber(tx, orgId, last.number, last.hash);
  return { rows, more: kept < 0 && found.length === retentionBatch };
}

/** In whatever state: what nobody has looked at in so long nobody will. */
export async function removeDeadLetters(tx: Tx, orgId: string, beforeMs: number): Promise<Removed> {
  const found = await oldestDeadLetters(tx, orgId, beforeMs);
  const last = found.at(-1);
  if (!last) return { rows: 0, more: false };
  const walk = sql`org_id = ${orgId} and create_ms < ${beforeMs} order by create_ms, dead_letter_id limit ${found.length}`;
  const upTo = sql`create_ms <= ${last.time_ms} and (create_ms < ${last.time_ms} or dead_letter_id <= ${last.id})`;
  const rows = await tx.run(
    sql`delete from dead_letter where org_id = ${orgId} and ${those(tx, sql`dead_letter`, walk, upTo)}`,
  );
  return { rows, more: found.length === retentionBatch };
}

/** By the index on (org, time, id). */
export const oldestDeadLetters = (db: Queryable, orgId: string, beforeMs: number): Promise<Oldest[]> =>
  db.all(sql`
    select create_ms as time_ms, dead_letter_id as id from dead_letter where org_id = ${orgId} and create_ms < ${beforeMs}
    order by create_ms, dead_letter_id limit ${retentionBatch}`);

/** The next traces from before a time, each with whether all of its tasks ended before it as well; by the index on (org, start, trace). */
export const oldTraces = (
  db: Queryable,
  orgId: string,
  beforeMs: number,
  [startMs, traceId]: TracePosition,
): Promise<{ trace_id: string; start_ms: number; over: number }[]> =>
  db.all(sql`
    select t.trace_id, t.start_ms, not exists (
      select 1 from task k where k.org_id = t.org_id and k.trace_id = t.trace_id and (k.end_ms is null or k.end_ms >= ${beforeMs})) as over
    from trace t where t.org_id = ${orgId} and t.start_ms between ${startMs} and ${beforeMs - 1} and (t.start_ms > ${startMs} or t.trace_id > ${traceId})
    order by t.start_ms, t.trace_id limit ${tracesAtOnce}`);

/** By the index on (org, trace, xid, seq); its tasks are over, so that none will come before. */
export const oldestSteps = (db: Queryable, orgId: string, traceId: string, limit: number): Promise<LogPosition[]> =>
  db.all(sql`
    select xid, seq from trace_event where org_id = ${orgId} and trace_id = ${traceId} order by xid, seq limit ${limit}`);

/**
 * The next traces in which nothing has happened since: their steps, and with the last of these the trace. Those that go on are passed over. A task that joins
 * a trace of this age while that is removed keeps the trace's id, and is found by its own.
 */
export async function removeTraces(tx: Tx, orgId: string, beforeMs: number, after: TracePosition): Promise<Removed> {
  const traces = await oldTraces(tx, orgId, beforeMs, after);
  let floor: LogPosition | undefined;
  let rows = 0;
  let next = after;
  for (const { trace_id, start_ms, over } of traces) {
    if (over) {
      const room = retentionBatch - rows;
      const found = await oldestSteps(tx, orgId, trace_id, room);
      const last = found.at(-1);
      if (last) {
        const ofTrace = sql`org_id = ${orgId} and trace_id = ${trace_id}`;
        const walk = sql`${ofTrace} order by xid, seq limit ${found.length}`;
        rows += await tx.run(
          sql`delete from trace_event where ${ofTrace} and ${thoseInLog(tx, sql`trace_event`, walk, last)}`,
        );
        if (!floor || isBefore(floor, last)) floor = last;
      }
      if (found.length === room) break; // the rest of it is the next transaction's
      await tx.run(sql`delete from trace where org_id = ${orgId} and trace_id = ${trace_id}`);
    }
    next = [start_ms, trace_id];
  }
  if (floor) await raiseFloor(tx, orgId, "traces", floor);
  return { rows, next, more: next === after ? rows > 0 : rows >= retentionBatch || traces.length === tracesAtOnce };
}
