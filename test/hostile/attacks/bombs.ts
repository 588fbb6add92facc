import { brotliCompressSync, gzipSync } from "node:zlib";
import { callers, encodingHeader } from "../../wire-fixtures/callers.ts";
import { envelope } from "../../wire-fixtures/raw.ts";
import { callerNames, openAsker } from "../ask.ts";
import type { Attack } from "../attack.ts";

/** A few kilobytes each that become 20 to 200 MB. */
const zeros = Buffer.alloc(200_000_000);
const bombs = { gzip: gzipSync(zeros), br: brotliCompressSync(zeros.subarray(0, 20_000_000)) };

/** Compressed messages that become 50 to 1,000 times as large, by every protocol. */
export const compressionBombs: Attack = {
  name: "gzip and brotli bombs",
  right: /^resource_exhausted$/,
  perSecond: 20,
  atOnce: 8,
  attempts: 500,
  twin: "valid",
  begin(target, choose) {
    const { ask, end } = openAsker(target);
    return {
      one() {
        const name = choose.pick(callerNames);
        const encoding = choose.pick(["gzip", "br"] as const);
        const body = callers[name].wrap === envelope ? envelope(bombs[encoding], 1) : bombs[encoding];
        return ask(name, body, { headers: { [encodingHeader(name)]: encoding } });
      },
      end,
    };
  },
};
