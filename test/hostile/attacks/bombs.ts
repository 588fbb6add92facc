import { bombs } from "../../wire-fixtures/bombs.ts";
import { callers, encodingHeader } from "../../wire-fixtures/callers.ts";
import { envelope } from "../../wire-fixtures/raw.ts";
import { callerNames, openAsker } from "../ask.ts";
import type { Attack } from "../attack.ts";

/** Compressed messages that become 1,000 times as large and more, by every protocol; some say that they do. */
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
        const { encoding, packed } = choose.pick(bombs);
        const body = callers[name].wrap === envelope ? envelope(packed, 1) : packed;
        return ask(name, body, { headers: { [encodingHeader(name)]: encoding } });
      },
      end,
    };
  },
};
