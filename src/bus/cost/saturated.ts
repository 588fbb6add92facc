import { type Sql, sql } from "../../db/db.ts";

/** The most that a counter of tokens or micro-credits shows. */
export const maxCount = Number.MAX_SAFE_INTEGER;

/** A counter with an amount added. It stops at {@link maxCount}: absurd numbers from an agent must not keep a task from its end. */
export const plus = (counter: Sql, amount: number): Sql =>
  sql`case when ${counter} > ${maxCount - amount} then ${maxCount} else ${counter} + ${amount} end`;

/** A counter with an amount taken off, never below 0. */
export const minus = (counter: Sql, amount: number): Sql =>
  sql`case when ${counter} < ${amount} then 0 else ${counter} - ${amount} end`;

/** A sum as a counter takes it. */
export const counted = (sum: number | bigint): number => Math.min(Number(sum), maxCount);
