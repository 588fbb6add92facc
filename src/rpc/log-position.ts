import type { LogPosition } from "../db/log.ts";
import type { Cursors, Position } from "./cursor.ts";

export const logStart: LogPosition = { xid: 0, seq: 0 };

/** The cursors of one log of one organisation: as text for clients, and back (INVALID_PAGE_TOKEN). */
export function logCursors(cursors: Cursors, log: string, orgId: string) {
  const scope = [log, orgId];
  return {
    encode: ({ xid, seq }: LogPosition): string => cursors.encode(scope, [xid, seq]),
    decode(token: string, field = "after_cursor"): LogPosition {
      const [xid, seq] = cursors.decode(scope, token, field) as Position & [number, number];
      return { xid, seq };
    },
  };
}
