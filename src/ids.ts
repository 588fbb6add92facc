/** Names for new things, and chance. Passed in as `app.ids`, so that a test can replay them. */
import { randomBytes, randomUUIDv7 } from "node:crypto";

/** The prefixes of ids. */
export type IdPrefix =
  | "org"
  | "agt"
  | "key"
  | "tsk"
  | "evt"
  | "aud"
  | "srv"
  | "apr"
  | "dec"
  | "dlq"
  | "bdg"
  | "mem"
  | "job"
  | "sch"
  | "dky"
  | "msg"
  | "chn"
  | "whk"
  | "grt"
  | "inv"
  | "col"
  | "con"
  | "txn"
  | "per"
  | "mkt"
  | "lst"
  | "sub"
  | "rev"
  | "scn";

export type Ids = {
  /** A new id: prefix, `_`, 32 hexadecimal digits of a UUIDv7 (RFC 9562), so that ids sort by time and, of one process, in the order in which they were made. */
  next(prefix: IdPrefix): string;
  /** A W3C trace id: 32 hexadecimal digits. */
  trace(): string;
  /** A W3C span id: 16 hexadecimal digits. */
  span(): string;
  /** Bytes nobody can guess. */
  bytes(count: number): Uint8Array;
  /** From 0 to 1, for jitter. */
  chance(): number;
};

export const randomIds = (uuid: () => string = ascending(randomUUIDv7)): Ids => ({
  next: (prefix) => `${prefix}_${uuid()}`,
  trace: () => chanceHex(16),
  span: () => chanceHex(8),
  bytes: (count) => randomBytes(count),
  chance: () => Math.random(),
});

/**
 * So many random bytes as hexadecimal digits. They are drawn 4 KiB at a time: one draw costs some 2 µs however few it gives, and a governed task needs ten of
 * them, 2.6 % of its processor time.
 */
const chanceHex = drawn(4_096);

function drawn(poolBytes: number): (count: number) => string {
  let pool = Buffer.alloc(0);
  let at = 0;
  return (count) => {
    if (at + count > pool.length) [pool, at] = [randomBytes(poolBytes), 0];
    at += count;
    return pool.toString("hex", at - count, at);
  };
}

const largestCount = 0xfff;

/**
 * UUIDv7s without dashes, each greater than the one before: the 12 bits after the version, which are random otherwise, count those of one millisecond (RFC 9562, section
 * 6.2, method 1). The count begins anywhere in its lower half; one that runs over borrows the next millisecond, and a clock that goes back is not followed.
 */
export function ascending(uuid7: () => string): () => string {
  let lastMs = 0;
  let count = 0;
  return () => {
    const uuid = uuid7();
    const ms = Number.parseInt(uuid.slice(0, 8) + uuid.slice(9, 13), 16);
    if (ms > lastMs) [lastMs, count] = [ms, Number.parseInt(uuid.slice(15, 18), 16) >> 1];
    else if (count < largestCount) count++;
    else [lastMs, count] = [lastMs + 1, 0];
    return `${lastMs.toString(16).padStart(12, "0")}7${count.toString(16).padStart(3, "0")}${uuid.slice(19, 23)}${uuid.slice(24)}`;
  };
}
