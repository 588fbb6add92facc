/**
 * The positions of an order-only log (see {@link Dialect}), as conditions that each engine answers by its index on (…, xid, seq).
 *
 * SQLite cannot use the rowid inside a comparison of rows: `(xid, seq) > (0, 400000)` becomes `xid > 0 or …`, which is a scan of the whole log
 * (30 ms where this takes 0.2, at 400,000 rows). Its `xid` is always 0, so the `seq` alone decides.
 */
import { type Dialect, type Sql, sql } from "./db.ts";

/** A place in an order-only log. */
export type LogPosition = { readonly xid: number; readonly seq: number };

/** A position that the query has: given, or in columns of its own. */
export type LogPlace = { readonly xid: number | Sql; readonly seq: number | Sql };

/** The columns of the log as the query names them. */
export type LogColumns = { readonly xid: Sql; readonly seq: Sql };

const unqualified: LogColumns = { xid: sql`xid`, seq: sql`seq` };

/** Rows after a position, committed but perhaps not settled: for reading once, not for following. */
export const committedAfter = ({ name }: Dialect, { xid, seq }: LogPlace, of = unqualified): Sql =>
  name === "sqlite" ? sql`${of.xid} = 0 and ${of.seq} > ${seq}` : sql`(${of.xid}, ${of.seq}) > (${xid}, ${seq})`;

/** Rows after a position among which no other will ever appear: for following. */
export const settledAfter = (dialect: Dialect, position: LogPlace, of = unqualified): Sql =>
  dialect.name === "sqlite"
    ? committedAfter(dialect, position, of)
    : sql`${committedAfter(dialect, position, of)} and ${of.xid} < ${dialect.horizon}`;

/** Rows that are settled. */
export const settled = (dialect: Dialect, of = unqualified): Sql =>
  dialect.name === "sqlite" ? sql`${of.xid} = 0` : sql`${of.xid} < ${dialect.horizon}`;

/** Rows before a position, committed. */
export const committedBefore = ({ name }: Dialect, { xid, seq }: LogPosition, of = unqualified): Sql =>
  name === "sqlite" ? sql`${of.xid} = 0 and ${of.seq} < ${seq}` : sql`(${of.xid}, ${of.seq}) < (${xid}, ${seq})`;
