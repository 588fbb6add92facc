import { callers } from "../../wire-fixtures/callers.ts";
import { callerNames, openAsker } from "../ask.ts";
import type { Attack } from "../attack.ts";

const depth = 10_000;

/** SubmitTaskRequest.input, a list in a list in a list. */
function deepBinary(): Buffer {
  const heads: Buffer[] = [];
  let length = 0;
  const wrap = (tag: number) => {
    const bytes = [tag];
    let rest = length;
    for (; rest > 127; rest >>>= 7) bytes.push((rest & 127) | 128);
    bytes.push(rest);
    length += bytes.length;
    heads.push(Buffer.from(bytes));
  };
  for (let i = 0; i < depth; i++) {
    wrap(0x0a); // ListValue.values
    wrap(0x32); // Value.list_value
  }
  wrap(0x2a); // SubmitTaskRequest.input
  return Buffer.concat(heads.reverse());
}

const binary = deepBinary();
const texts = [
  `{"contractId":"echo","input":${"[".repeat(depth)}${"]".repeat(depth)}}`,
  `{"contractId":"echo","input":${'{"a":'.repeat(depth)}1${"}".repeat(depth)}}`,
  `{"other":${'{"a":'.repeat(depth)}1${"}".repeat(depth)},"contractId":"no such"}`,
  "[".repeat(depth),
].map((text) => Buffer.from(text));

/** Messages nested 10,000 deep, by every protocol. */
export const deepMessages: Attack = {
  name: "messages 10,000 deep",
  right: /^(invalid_argument|not_found)$/,
  perSecond: 150,
  atOnce: 16,
  twin: "valid",
  begin(target, choose) {
    const { ask, end } = openAsker(target);
    return {
      one() {
        const name = choose.pick(callerNames);
        return ask(name, callers[name].wrap(callers[name].type.includes("json") ? choose.pick(texts) : binary));
      },
      end,
    };
  },
};
