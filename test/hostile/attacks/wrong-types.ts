import { callers, jsonCallers } from "../../wire-fixtures/callers.ts";
import { openAsker } from "../ask.ts";
import type { Attack } from "../attack.ts";

const values = [
  "1",
  "-1.5",
  "1e400",
  '"x"',
  "true",
  "null",
  "[]",
  "{}",
  '[{"a":1}]',
  '{"seconds":1}',
  '"\\ud800"',
  '"\\u0000"',
  "{",
  "",
];
const fields = [
  "contractId",
  "contractVersion",
  "labels",
  "returnImmediately",
  "targetAgentId",
  "taskId",
  "orgId",
  "cursor",
  "no such",
];

/** JSON whose values are of other types than the fields', by every protocol that takes JSON. */
export const wrongTypes: Attack = {
  name: "wrong types in JSON",
  right: /^(ok|invalid_argument|not_found|permission_denied)$/,
  perSecond: 250,
  atOnce: 32,
  twin: "valid",
  begin(target, choose) {
    const { ask, end } = openAsker(target);
    return {
      one() {
        const name = choose.pick(jsonCallers);
        const members = Array.from(
          { length: choose.int(1, 4) },
          () => `"${choose.pick(fields)}":${choose.pick(values)}`,
        );
        const text = choose.chance(0.1) ? choose.pick(values) : `{${members.join(",")}}`;
        return ask(name, callers[name].wrap(Buffer.from(text)));
      },
      end,
    };
  },
};
