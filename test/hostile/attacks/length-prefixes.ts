import { callers } from "../../wire-fixtures/callers.ts";
import { envelope } from "../../wire-fixtures/raw.ts";
import { callerNames, openAsker } from "../ask.ts";
import type { Attack } from "../attack.ts";

const names = callerNames.filter((name) => callers[name].wrap === envelope);

/** A prefix that announces up to 4 GiB, of which a little comes and the rest never. */
export const lengthPrefixes: Attack = {
  name: "length prefixes of 4 GiB",
  right: /^resource_exhausted$/,
  perSecond: 250,
  atOnce: 32,
  twin: "valid",
  begin(target, choose) {
    const { ask, end } = openAsker(target);
    return {
      one: () =>
        ask(
          choose.pick(names),
          envelope(Buffer.alloc(choose.int(0, 100)), 0, choose.pick([0xffffffff, 0x7fffffff, 0x80000000, 5_000_000])),
          { end: choose.chance(0.2) },
        ),
      end,
    };
  },
};
