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
  /** A new id: prefix, `_`, 32 hexadecimal digits of a UUIDv7 (RFC 9562), so that ids sort by time. */
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

export const randomIds = (): Ids => ({
  next: (prefix) => `${prefix}_${randomUUIDv7().replaceAll("-", "")}`,
  trace: () => randomBytes(16).toString("hex"),
  span: () => randomBytes(8).toString("hex"),
  bytes: (count) => randomBytes(count),
  chance: () => Math.random(),
});
