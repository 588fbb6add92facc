import { openAsker } from "../ask.ts";
import type { Attack } from "../attack.ts";

const many = <T>(count: number, of: (i: number) => T): T[] => Array.from({ length: count }, (_, i) => of(i));
const nested = (depth: number): unknown => {
  let value: unknown = 1;
  for (let i = 0; i < depth; i++) value = [value];
  return value;
};

/**
 * Schemas that cost more than they weigh, and inputs that find out. Inputs that a schema accepts are small: a task of 100,000 parts takes long
 * whatever its schema is.
 */
const cases: readonly [schema: object, input: unknown][] = [
  [{ pattern: "^(a+)+$" }, `${"a".repeat(100_000)}!`],
  [{ items: { pattern: "^(a|a)*$" } }, many(1_000, () => `${"a".repeat(100)}!`)],
  [{ pattern: "(a|b)*a(a|b){150}[cd]" }, "ab".repeat(50_000)],
  [{ items: { not: { enum: many(2_000, (i) => -i - 1) } } }, many(100_000, (i) => i)],
  [{ enum: many(2_001, (i) => i) }, 1],
  [{ $ref: "#" }, 1],
  [{ $defs: { a: { $ref: "#/$defs/b" }, b: { $ref: "#/$defs/a" } }, $ref: "#/$defs/a" }, 1],
  [{ items: { $ref: "#" } }, nested(30)],
  [
    {
      $defs: { a: { anyOf: [{ items: { $ref: "#/$defs/a" } }, { items: { $ref: "#/$defs/a" } }] } },
      $ref: "#/$defs/a",
    },
    nested(30),
  ],
  [{ items: { not: { anyOf: many(450, (i) => ({ const: -i - 1 })) } } }, many(100_000, (i) => i)],
  [{ uniqueItems: true }, many(5_000, (i) => [i])],
];

/** Contracts with such schemas are registered, and tasks submitted under those that are accepted. */
export const schemas: Attack = {
  name: "schemas that cost",
  right: /^(ok|invalid_argument|not_found|failed_precondition|resource_exhausted|already_exists)$/,
  perSecond: 5,
  atOnce: 1,
  attempts: 55,
  least: cases.length,
  twin: "valid",
  begin(target, choose) {
    const { ask, end } = openAsker(target);
    const run = choose.int(0, 1_000_000_000);
    let turn = 0;
    const call = (method: string, key: string, message: unknown) =>
      ask("connect+json", Buffer.from(JSON.stringify(message)), {
        path: `/moltwire.bus.v1.${method}`,
        headers: { authorization: `Bearer ${key}` },
      });
    return {
      async one() {
        const at = turn++;
        const [schema, input] = cases[at % cases.length]!;
        const contractId = `hostile-${run}-${at}`;
        const contract = { contractId, version: "1.0.0", capability: "echo", inputSchema: schema, outputSchema: {} };
        const registered = await call("ContractService/RegisterContract", target.adminKey, contract);
        if (registered !== "ok") return registered;
        return call("BusService/SubmitTask", target.key, { contractId, input });
      },
      end,
    };
  },
};
