import { frame } from "../../wire-fixtures/raw.ts";
import { flooding, times } from "./flood.ts";

/** 100,000 PING frames, each of which wants an answer. */
export const pingFlood = flooding("PING flood", {
  first: Buffer.alloc(0),
  block: times(1_000, frame(6, 0, 0, Buffer.alloc(8))),
  blocks: 100,
});
