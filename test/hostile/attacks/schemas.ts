import { openAsker } from "../ask.ts";
import type { Attack, Target } from "../attack.ts";

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

/** The longest that the server may do nothing else for one of them, in milliseconds. */
const maxStallMs = 100;
/** Of several tries the shortest counts, since others use the processors too. */
const maxTries = 5;

/** Contracts with such schemas are registered, and tasks submitted under those that are accepted; at each the server tells how long its event loop stood still. */
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
    const call = async (method: string, key: string, message: unknown) => {
      const stall = await watchStall(target);
      const told = await ask("connect+json", Buffer.from(JSON.stringify(message)), {
        path: `/moltwire.bus.v1.${method}`,
        headers: { authorization: `Bearer ${key}` },
      });
      return { told, stallMs: await stall() };
    };
    /** How the attempt ended, and how long the server stood still for it at most. */
    async function attempt(at: number, contractId: string): Promise<{ told: string; stallMs: number }> {
      const [schema, input] = cases[at % cases.length]!;
      // Named, so that it is no schema that the server has compiled before.
      const inputSchema = { ...schema, title: contractId };
      const contract = { contractId, version: "1.0.0", capability: "echo", inputSchema, outputSchema: {} };
      const registered = await call("ContractService/RegisterContract", target.adminKey, contract);
      if (registered.told !== "ok") return registered;
      const submitted = await call("BusService/SubmitTask", target.key, { contractId, input });
      return { ...submitted, stallMs: Math.max(registered.stallMs, submitted.stallMs) };
    }
    return {
      async one() {
        const at = turn++;
        let shortestMs = Infinity;
        for (let tries = 0; tries < maxTries; tries++) {
          const { told, stallMs } = await attempt(at, `hostile-${run}-${at}-${tries}`);
          if (stallMs <= maxStallMs) return told;
          shortestMs = Math.min(shortestMs, stallMs);
        }
        return `schema ${at % cases.length} held the server for ${shortestMs.toFixed(0)} ms`;
      },
      end,
    };
  },
};

const samplingMs = 10;

/**
 * Reads the server's metrics, and tells at the next reading how long its event loop stood still in between at most, in milliseconds: by its own measure, or by the
 * processor time that it has used, if that is less, since a machine that others use lets it wait as well.
 */
async function watchStall(target: Target): Promise<() => Promise<number>> {
  const before = await readMetrics(target);
  return async () => {
    const after = await readMetrics(target);
    return Math.min(after.longestMs - samplingMs, after.cpuMs - before.cpuMs);
  };
}

async function readMetrics({ port, isTls, operatorKey }: Target): Promise<{ longestMs: number; cpuMs: number }> {
  const url = `${isTls ? "https" : "http"}://127.0.0.1:${port}/metrics`;
  const text = await (await fetch(url, { headers: { authorization: `Bearer ${operatorKey}` } })).text();
  const milliseconds = (name: string): number => {
    const [, seconds] = new RegExp(`^${name} (\\S+)$`, "m").exec(text) ?? [];
    if (seconds === undefined) throw new Error(`the server does not tell ${name}`);
    return Number(seconds) * 1_000;
  };
  // The longest since it was read last.
  return {
    longestMs: milliseconds("nodejs_eventloop_lag_max_seconds"),
    cpuMs: milliseconds("process_cpu_seconds_total"),
  };
}
