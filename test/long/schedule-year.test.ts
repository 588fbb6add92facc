/** A year of schedules over the wire, while clocks are changed in three zones: how many jobs there are, and at which instants around each change. */
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { describe, expect, test } from "vitest";
import { Misfire, type Schedule } from "../../gen/moltwire/queue/v1/schedule_pb.ts";
import { dialects, fakeClock, start, type World } from "../harness.ts";
import { create, get, jobsOf, ticked } from "../queue-fixtures/schedules.ts";

const dayMs = 86_400_000;

/** Of each expression how many jobs a year makes, and their instants (UTC) from one time to another. */
type Case = {
  readonly cron: string;
  readonly count: number;
  readonly around: Readonly<Record<string, readonly string[]>>;
};

/** From the midnight at which the year 2026 begins in the zone, to the one at which it ends. */
type ZoneYear = { readonly timeZone: string; readonly begin: string; readonly cases: readonly Case[] };

const zones: readonly ZoneYear[] = [
  {
    timeZone: "Europe/Berlin",
    begin: "2025-12-31T23:00Z",
    // 29 March 2:00 → 3:00 at 1:00 UTC; 25 October 3:00 → 2:00 at 1:00 UTC.
    cases: [
      { cron: "0 * * * *", count: 8_760, around: {} },
      { cron: "0 12 * * *", count: 365, around: { "2026-03-28/2026-03-30": ["2026-03-28T11:00", "2026-03-29T10:00"] } },
      {
        cron: "30 2 * * *",
        count: 365,
        around: {
          "2026-03-28/2026-03-31": ["2026-03-28T01:30", "2026-03-29T01:00", "2026-03-30T00:30"],
          "2026-10-24/2026-10-27": ["2026-10-24T00:30", "2026-10-25T00:30", "2026-10-26T01:30"],
        },
      },
      // The two that the gap skips are one.
      {
        cron: "0,30 2 * * *",
        count: 729,
        around: {
          "2026-03-29/2026-03-30": ["2026-03-29T01:00"],
          "2026-10-25/2026-10-26": ["2026-10-25T00:00", "2026-10-25T00:30"],
        },
      },
      // Four in the hour that comes twice, not eight.
      {
        cron: "*/15 2 * * *",
        count: 1_457,
        around: {
          "2026-03-29/2026-03-30": ["2026-03-29T01:00"],
          "2026-10-25/2026-10-26": ["2026-10-25T00:00", "2026-10-25T00:15", "2026-10-25T00:30", "2026-10-25T00:45"],
        },
      },
    ],
  },
  {
    timeZone: "America/New_York",
    begin: "2026-01-01T05:00Z",
    // 8 March 2:00 → 3:00 at 7:00 UTC; 1 November 2:00 → 1:00 at 6:00 UTC.
    cases: [
      { cron: "15 * * * *", count: 8_760, around: {} },
      {
        cron: "30 1 * * *",
        count: 365,
        around: { "2026-11-01/2026-11-03": ["2026-11-01T05:30", "2026-11-02T06:30"] },
      },
      {
        cron: "5 2 * * SUN",
        count: 52,
        around: { "2026-03-02/2026-03-16": ["2026-03-08T07:00", "2026-03-15T06:05"] },
      },
    ],
  },
  {
    timeZone: "Australia/Lord_Howe",
    begin: "2025-12-31T13:00Z",
    // 5 April 2:00 → 1:30 at 15:00 UTC of the 4th; 4 October 2:00 → 2:30 at 15:30 UTC of the 3rd. Half an hour.
    cases: [
      { cron: "0 * * * *", count: 8_759, around: {} },
      {
        cron: "45 1 * * *",
        count: 365,
        around: { "2026-04-03/2026-04-06": ["2026-04-03T14:45", "2026-04-04T14:45", "2026-04-05T15:15"] },
      },
      {
        cron: "15 2 * * *",
        count: 365,
        around: { "2026-10-02/2026-10-05": ["2026-10-02T15:45", "2026-10-03T15:30", "2026-10-04T15:15"] },
      },
      {
        cron: "*/15 1 * * *",
        count: 1_460,
        around: {
          "2026-04-04T14:00Z/2026-04-04T16:00Z": [
            "2026-04-04T14:00",
            "2026-04-04T14:15",
            "2026-04-04T14:30",
            "2026-04-04T14:45",
          ],
        },
      },
    ],
  },
];

describe.each(dialects)("on %s", (dialect) => {
  test.each(zones)(
    "a year in $timeZone has exactly its times",
    async ({ timeZone, begin, cases }) => {
      const clock = fakeClock(Date.parse(begin) - 1);
      await using world = await start(dialect, { clock });
      const org = await world.org();
      const { as } = await org.agent();
      const made: Schedule[] = [];
      const settings = { misfire: Misfire.ALL, catchUp: durationFromMs(5 * dayMs), timing: { timeZone } };
      for (const { cron } of cases) made.push(await create(as, cron, settings));
      // Steps in which no schedule has more times than it makes up for at once.
      for (let day = 0; day < 365; day += 4) {
        clock.advance(Math.min(4, 365 - day) * dayMs);
        await ticked(world);
      }
      for (const [n, { cron, count, around }] of cases.entries()) {
        const times = await nominal(world, made[n]!);
        expect([cron, times.length, new Set(times).size]).toEqual([cron, count, count]);
        expect(await get(as, made[n]!.scheduleId)).toMatchObject({ runCount: BigInt(count), missedCount: 0n });
        for (const [stretch, expected] of Object.entries(around)) {
          const [from, to] = stretch.split("/").map((text) => Date.parse(text)) as [number, number];
          const found = times.filter((timeMs) => timeMs >= from && timeMs < to);
          expect([cron, found.map((timeMs) => new Date(timeMs).toISOString().slice(0, 16))]).toEqual([cron, expected]);
        }
      }
    },
    120_000,
  );
});

const nominal = async (world: World, schedule: Schedule): Promise<number[]> =>
  (await jobsOf(world, schedule)).map(({ nominal_ms }) => nominal_ms!);
