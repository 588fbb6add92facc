import { frame } from "../../wire-fixtures/raw.ts";
import { flooding, times } from "./flood.ts";

/** 100,000 SETTINGS frames, each of which wants an acknowledgement. */
export const settingsFlood = flooding("SETTINGS flood", {
  first: Buffer.alloc(0),
  block: times(1_000, frame(4, 0, 0, Buffer.from([0, 4, 0, 0, 255, 255]))),
  blocks: 100,
});
