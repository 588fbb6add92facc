import { callers } from "../../wire-fixtures/callers.ts";
import { envelope } from "../../wire-fixtures/raw.ts";
import { callerNames, openAsker, validMessage } from "../ask.ts";
import type { Attack } from "../attack.ts";

/** Whole messages in which bytes are changed, cut off or made of nothing, by every protocol. */
export const mutatedMessages: Attack = {
  name: "mutated and truncated messages",
  right: /^(ok|invalid_argument|not_found|resource_exhausted|unimplemented|failed_precondition|permission_denied)$/,
  perSecond: 250,
  atOnce: 32,
  twin: "valid",
  begin(target, choose) {
    const { ask, end } = openAsker(target);
    return {
      one() {
        const name = choose.pick(callerNames);
        let bytes: Buffer = Buffer.from(validMessage(name, target));
        for (let i = choose.int(1, 4); i > 0; i--) bytes[choose.int(0, bytes.length - 1)] = choose.int(0, 255);
        if (choose.chance(0.5)) bytes = bytes.subarray(0, choose.int(0, bytes.length - 1));
        if (choose.chance(0.2))
          bytes = Buffer.from(Array.from({ length: choose.int(0, 300) }, () => choose.int(0, 255)));
        if (callers[name].wrap !== envelope) return ask(name, bytes);
        // Compressed without a compression is `internal` by the letter of the protocols.
        const flags = choose.chance(0.1) ? choose.int(0, 255) & 0xfe : 0;
        return ask(name, envelope(bytes, flags, choose.chance(0.2) ? choose.int(0, 100) : bytes.length));
      },
      end,
    };
  },
};
