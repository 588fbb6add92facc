import { frame } from "../../wire-fixtures/raw.ts";
import { hpack } from "../hpack.ts";
import { flooding, times } from "./flood.ts";

const head = hpack({
  ":method": "POST",
  ":scheme": "http",
  ":authority": "localhost",
  ":path": "/moltwire.bus.v1.BusService/SubmitTask",
  "content-type": "application/grpc",
});

/** A stream whose body is 100,000 empty DATA frames (CVE-2019-9518). */
export const emptyDataFlood = flooding("empty DATA flood", {
  first: frame(1, 4, 1, head),
  block: times(1_000, frame(0, 0, 1)),
  blocks: 100,
});
