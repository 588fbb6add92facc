import { describe, expect, test } from "vitest";
import { PatternSchema, ScenarioState } from "../../gen/moltwire/lab/v1/scenario_pb.ts";
import { dialects, start } from "../harness.ts";
import { patterns, play, violationsIn } from "../lab-fixtures/lab.ts";

/** FULL: 100 seeds for each pattern, on each engine. */
const seeds = process.env.FULL ? 100 : 10;
/** As many as an organisation runs at once. */
const atOnce = 2;
/** However uneven the machine lets them work. */
const wish = { agentCount: 5, faults: { drop: 0.05 }, criteria: { maxDeviation: 10 } };

describe.each(dialects)("on %s, with a twentieth of all calls and messages lost", (dialect) => {
  test.each(patterns.map((pattern) => [PatternSchema.value[pattern]!.localName, pattern] as const))(
    `%s: nothing unsafe with ${seeds} seeds`,
    async (_name, pattern) => {
      await using world = await start(dialect);
      const { admin } = await world.org();
      const told: string[] = [];
      let succeeded = 0;
      let next = 1;
      const player = async () => {
        for (let seed = next++; seed <= seeds; seed = next++) {
          const results = await play(admin, { ...wish, pattern, seed: BigInt(seed) });
          told.push(...violationsIn(results).map((violation) => `seed ${seed}: ${violation}`));
          if (results.state === ScenarioState.SUCCEEDED) succeeded++;
        }
      };
      await Promise.all(Array.from({ length: atOnce }, player));
      expect(told).toEqual([]);
      // Safety is promised; that nearly all come to their end shows that there was something to be unsafe.
      expect(succeeded).toBeGreaterThanOrEqual(Math.floor(seeds * 0.9));
    },
    3_600_000,
  );
});
