/** Where the logs of an organisation begin, once their oldest rows are no longer kept. */
import { type Queryable, sql, type Tx } from "../db/db.ts";
import type { LogPosition } from "../db/log.ts";
import { Fault } from "../errors.ts";
import { logStart } from "../rpc/log-position.ts";

/** As cursors name them. */
export type KeptLog = "traces" | "events";

/** The last row that is no longer kept: a reader that has seen it has missed nothing. */
export const logFloor = async (db: Queryable, orgId: string, log: KeptLog): Promise<LogPosition> =>
  (await db.one<LogPosition>(sql`select xid, seq from log_floor where org_id = ${orgId} and log = ${log}`)) ?? logStart;

/** Notes that everything to a position may be gone. It never goes back. */
export const raiseFloor = (tx: Tx, orgId: string, log: KeptLog, { xid, seq }: LogPosition): Promise<number> =>
  tx.run(sql`
    insert into log_floor (org_id, log, xid, seq) values (${orgId}, ${log}, ${xid}, ${seq})
    on conflict (org_id, log) do update set xid = ${xid}, seq = ${seq}
    where log_floor.xid < ${xid} or (log_floor.xid = ${xid} and log_floor.seq < ${seq})`);

/** Whether a row of a log comes before another. */
export const isBefore = (a: LogPosition, b: LogPosition): boolean =>
  a.xid < b.xid || (a.xid === b.xid && a.seq < b.seq);

/** Throws CURSOR_EXPIRED, with the oldest cursor there is, for a position after which something is gone. */
export function checkKept(position: LogPosition, floor: LogPosition, encode: (at: LogPosition) => string): void {
  if (isBefore(position, floor))
    throw new Fault("CURSOR_EXPIRED", "what came after this cursor is no longer kept: begin anew, or with the oldest", {
      oldest_cursor: encode(floor),
    });
}

/**
 * For who follows a log from a position: to be called with each stretch that was read, after it was. Throws as {@link checkKept} when retention has overtaken the reader, which it can
 * only do to one that has more to read than a stretch. Who begins before the floor, with what goes on from there, knows that others have gone.
 */
export function followKept(
  db: Queryable,
  orgId: string,
  log: KeptLog,
  { position, floor, encode }: { position: LogPosition; floor: LogPosition; encode: (at: LogPosition) => string },
): (after: LogPosition, isFull: boolean) => Promise<void> {
  let isBehind = !isBefore(position, floor);
  return async (after, isFull) => {
    if (isBehind) checkKept(after, await logFloor(db, orgId, log), encode);
    isBehind = isFull && !isBefore(after, floor);
  };
}
