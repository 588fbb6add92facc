/** How the server watches itself: in each minute it writes a row and reads it back. A minute without a finished row was down. */
import type { App } from "../app.ts";
import { type Queryable, sql, type Tx } from "../db/db.ts";

export const minuteMs = 60_000;
const keptMinutes = 31 * 24 * 60;
const maxTookMs = 10_000;
const sinceName = "self_check_since";
/** A check that is not finished. */
const unfinished = -1;
const sweepBatch = 1_000;

export const minuteOf = (ms: number): number => Math.floor(ms / minuteMs);

/**
 * Checks once in each minute, however often it is called, so that timers that are late leave no gap. Of replicas the first one is enough. Throws when storage
 * does not answer.
 */
export function selfCheck(app: Pick<App, "db" | "clock">): () => Promise<void> {
  let checked = -1;
  return async () => {
    const minute = minuteOf(app.clock.now());
    if (minute === checked) return;
    const began = performance.now();
    await app.db.tx((tx) => begin(tx, minute));
    const found = await app.db.query.one(sql`select minute from self_check where minute = ${minute}`);
    const tookMs = performance.now() - began;
    if (!found) throw new Error("what was written could not be read");
    if (tookMs > maxTookMs) throw new Error(`storage took ${Math.round(tookMs)} ms`);
    await app.db.tx((tx) => finish(tx, minute, Math.round(tookMs * 1_000)));
    checked = minute;
  };
}

async function begin(tx: Tx, minute: number): Promise<void> {
  await tx.run(
    sql`insert into setting (name, value) values (${sinceName}, ${Buffer.from(String(minute))}) on conflict do nothing`,
  );
  await tx.run(sql`insert into self_check (minute, took_us) values (${minute}, ${unfinished}) on conflict do nothing`);
  await tx.run(sql`
    delete from self_check where minute in (select minute from self_check where minute < ${minute - keptMinutes} order by minute limit ${sweepBatch})`);
}

const finish = (tx: Tx, minute: number, tookUs: number): Promise<number> =>
  tx.run(sql`update self_check set took_us = ${tookUs} where minute = ${minute} and took_us = ${unfinished}`);

/** The first minute that counts; undefined before the first check. */
export async function checkedSince(db: Queryable): Promise<number | undefined> {
  const row = await db.one<{ value: Uint8Array }>(sql`select value from setting where name = ${sinceName}`);
  return row && Number(Buffer.from(row.value).toString());
}

/** Of a span of minutes, by slices of so many, those with a minute that was up: which, counted from 1970, how many were, and the last one. By the primary key; oldest first. */
export const readCheckSlices = (
  db: Queryable,
  from: number,
  to: number,
  sliceMinutes: number,
): Promise<{ readonly slice: number; readonly up: number; readonly last: number }[]> =>
  db.all(sql`
    select minute / ${sliceMinutes} as slice, count(*) as up, max(minute) as last
    from self_check where minute >= ${from} and minute <= ${to} and took_us >= 0 group by 1 order by 1`);

/** How many minutes of a span were up, how long a check took in the mean, and whether the last minute of the span is among them; by the primary key. */
export async function readChecks(
  db: Queryable,
  from: number,
  to: number,
): Promise<{ readonly up: number; readonly meanUs: number | null; readonly last: boolean }> {
  const row = await db.one<{ up: number; mean_us: number | null; last: number | null }>(sql`
    select count(*) as up, cast(avg(took_us) as double precision) as mean_us, max(minute) as last
    from self_check where minute >= ${from} and minute <= ${to} and took_us >= 0`);
  return { up: row!.up, meanUs: row!.mean_us, last: row!.last === to };
}
