import { frame } from "../../wire-fixtures/raw.ts";
import { hpack } from "../hpack.ts";
import { flooding, times } from "./flood.ts";

/** Headers that go on for 100,000 CONTINUATION frames (CVE-2024-27316). */
export const continuationFlood = flooding("CONTINUATION flood", {
  first: frame(1, 0, 1, hpack({ ":method": "GET" })),
  block: times(1_000, frame(9, 0, 1, hpack({ "x-a": "b" }))),
  blocks: 100,
});
