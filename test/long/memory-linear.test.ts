import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import { serverProcess } from "../bus-fixtures/process.ts";
import { storage } from "../bus-fixtures/storage.ts";
import { type Clients, clientsAt, dialects, refusal } from "../harness.ts";
import { isLinearizable, type Operation, type Result, type Step } from "../memory-fixtures/linearizable.ts";
import { get, jsonOf, set } from "../memory-fixtures/memory.ts";

const main = fileURLToPath(new URL("../../src/main.ts", import.meta.url));
const operatorKey = "kR7w2Qz9XvB4nT6mLp3sYf8hJd5gCa1e";
const [clients, keys, stepsEach] = [50, 20, 40];

describe("the checker", () => {
  const op = (step: Step, result: Result, start: number, end: number): Operation => ({ step, result, start, end });
  const write = op({ kind: "set", value: 1 }, { done: true }, 0, 1);

  test.each<[string, boolean, Operation[]]>([
    ["a read of what was written", true, [write, op({ kind: "get" }, { value: 1 }, 2, 3)]],
    ["a read of what was there before", false, [write, op({ kind: "get" }, { value: 0 }, 2, 3)]],
    ["a read beside the write", true, [write, op({ kind: "get" }, { value: 0 }, 0.5, 3)]],
    [
      "two that both replaced the same",
      false,
      [
        write,
        op({ kind: "cas", expected: 1, value: 2 }, { done: true }, 2, 5),
        op({ kind: "cas", expected: 1, value: 3 }, { done: true }, 2, 5),
      ],
    ],
    [
      "a read that goes back",
      false,
      [
        write,
        op({ kind: "set", value: 2 }, { done: true }, 2, 9),
        op({ kind: "get" }, { value: 2 }, 3, 4),
        op({ kind: "get" }, { value: 1 }, 5, 6),
      ],
    ],
    ["a lost write", false, [write, op({ kind: "delete" }, { done: false }, 2, 3)]],
    [
      "a write of which nobody knows, seen later",
      true,
      [
        op({ kind: "set", value: 1 }, undefined, 0, Number.POSITIVE_INFINITY),
        op({ kind: "get" }, { value: 0 }, 2, 3),
        op({ kind: "get" }, { value: 1 }, 4, 5),
      ],
    ],
  ])("%s: %s", (_what, verdict, history) => expect(isLinearizable(history)).toBe(verdict));
});

describe.each(dialects)("on %s", (dialect) => {
  test("fifty clients that set, get, compare and delete twenty keys see one memory, through two crashes of the server", async () => {
    await using place = await storage(dialect);
    const env: Record<string, string> = {
      MOLTWIRE_OPERATOR_KEY: operatorKey,
      MOLTWIRE_PORT: "0",
      MOLTWIRE_RATE_LIMIT: "0",
      MOLTWIRE_LOG_LEVEL: "silent",
      ...("databaseUrl" in place.options
        ? { MOLTWIRE_DATABASE_URL: place.options.databaseUrl! }
        : { MOLTWIRE_DATA: place.folder }),
    };
    const open = () => serverProcess(main, [], env);
    let server = await open();
    let up = Promise.resolve(clientsAt(server.url, operatorKey));
    const { agent } = await (await up).agents.registerAgent({ name: "one" });
    const { secret } = await (await up).keys.createApiKey({ agentId: agent!.agentId, role: Role.AGENT });
    up = Promise.resolve(clientsAt(server.url, secret));
    const histories = Array.from({ length: keys }, (): Operation[] => []);
    const seed = 20_261_121;
    let [lastValue, done] = [0, 0];

    const client = async (id: number) => {
      const chance = random(seed + id);
      const known = new Map<number, { revision: bigint; value: number }>();
      for (let n = 0; n < stepsEach; n++) {
        const key = Math.floor(chance() * keys);
        const as = await up;
        const start = performance.now();
        const step = nextStep(chance(), known.get(key)?.value, () => ++lastValue);
        const result = await perform(as, `key/${key}`, step, known, key);
        const isOpen = result === undefined && step.kind !== "get";
        const end = isOpen ? Number.POSITIVE_INFINITY : performance.now();
        if (result !== undefined || isOpen) histories[key]!.push({ step, result, start, end });
        done++;
      }
    };
    const crashes = (async () => {
      for (const share of [0.3, 0.65]) {
        while (done < share * clients * stepsEach) await new Promise((resolve) => setTimeout(resolve, 5));
        const next = Promise.withResolvers<Clients>();
        up = next.promise;
        await server.kill();
        server = await open();
        next.resolve(clientsAt(server.url, secret));
      }
    })();
    await Promise.all([crashes, ...Array.from({ length: clients }, (_, id) => client(id))]);
    const unknown = histories.flat().filter(({ result }) => result === undefined).length;
    for (const [key, history] of histories.entries()) expect([key, isLinearizable(history)]).toEqual([key, true]);
    expect(histories.flat().length).toBeGreaterThan(clients * stepsEach * 0.8);
    expect(unknown).toBeLessThan(200);
    await server[Symbol.asyncDispose]();
  }, 120_000);
});

/** Numbers from 0 to 1, the same for a seed (mulberry32). */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

function nextStep(draw: number, seen: number | undefined, value: () => number): Step {
  if (draw < 0.4) return { kind: "get" };
  if (draw < 0.6) return { kind: "set", value: value() };
  if (draw < 0.9) return { kind: "cas", expected: seen ?? 0, value: value() };
  return { kind: "delete" };
}

/** Does a step; undefined when the connection broke and nobody knows. `known` is what the client saw last of each key. */
async function perform(
  as: Clients,
  key: string,
  step: Step,
  known: Map<number, { revision: bigint; value: number }>,
  at: number,
): Promise<Result> {
  const call = async (): Promise<Result> => {
    switch (step.kind) {
      case "get": {
        const { revision, value } = await get(as, key);
        known.set(at, { revision, value: jsonOf(value) as number });
        return { value: jsonOf(value) as number };
      }
      case "delete":
        return { done: (await as.memory.deleteEntry({ key })).deleted };
      case "set":
      case "cas": {
        const ifRevision = known.get(at)?.revision ?? 0n;
        const { revision } = await set(as, key, step.value, step.kind === "cas" ? { ifRevision } : {});
        known.set(at, { revision, value: step.value });
        return { done: true };
      }
    }
  };
  const outcome = call();
  try {
    return await outcome;
  } catch {
    const { reason } = await refusal(outcome);
    if (reason === "NOT_FOUND") {
      known.delete(at);
      return { value: 0 };
    }
    return reason === "FAILED_PRECONDITION" ? { done: false } : undefined;
  }
}
