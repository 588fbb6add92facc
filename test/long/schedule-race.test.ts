import { durationFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { describe, expect, test } from "vitest";
import { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import { Misfire, Overlap } from "../../gen/moltwire/queue/v1/schedule_pb.ts";
import { keyDigest } from "../../src/federation/key-text.ts";
import { type ServerProcess, serverProcess } from "../bus-fixtures/process.ts";
import { storage } from "../bus-fixtures/storage.ts";
import { freshDatabase } from "../engines.ts";
import { type Clients, clientsAt, dialects, fakeClock, start, unique } from "../harness.ts";
import { create, get, jobsOf, ticked } from "../queue-fixtures/schedules.ts";

const minuteMs = 60_000;

test.skipIf(!dialects.includes("postgres"))(
  "four servers of one database that race for the same times make one job for each",
  async () => {
    const database = await freshDatabase();
    const clock = fakeClock(Date.parse("2026-06-01T00:00:00Z"));
    const options = { clock, databaseUrl: database.url };
    const first = await start("postgres", options);
    const others = await Promise.all([1, 2, 3].map(() => start("postgres", options)));
    const worlds = [first, ...others];
    try {
      const org = await first.org();
      const { as } = await org.agent();
      const kinds = [{}, { misfire: Misfire.ALL }, { overlap: Overlap.SKIP }, { jitter: durationFromMs(30_000) }];
      const schedules = await Promise.all(Array.from({ length: 60 }, (_, n) => create(as, "* * * * *", kinds[n % 4])));
      const rounds = 12;
      for (let round = 1; round <= rounds; round++) {
        clock.advance(minuteMs);
        const { scheduleId } = schedules[round]!;
        const window = {
          startTime: { seconds: BigInt(clock.now() / 1_000 - 60) },
          endTime: { seconds: BigInt(clock.now() / 1_000) },
        };
        // A backfill of the minute before joins in.
        await Promise.all([...worlds.map(ticked), as.schedules.backfillSchedule({ scheduleId, ...window })]);
      }
      const wrong: string[] = [];
      for (const [n, schedule] of schedules.entries()) {
        const times = (await jobsOf(first, schedule)).map(({ nominal_ms }) => nominal_ms);
        const { runCount, skippedCount, missedCount } = await get(as, schedule.scheduleId);
        if (new Set(times).size !== times.length) wrong.push(`${n}: a time twice`);
        if (Number(runCount) !== times.length) wrong.push(`${n}: counted ${runCount} and made ${times.length}`);
        if (n % 4 !== 2 && times.length < rounds) wrong.push(`${n}: only ${times.length} of ${rounds}`);
        if (missedCount !== 0n) wrong.push(`${n}: missed ${missedCount}`);
        if (n % 4 === 2 && Number(skippedCount) !== rounds - 1) wrong.push(`${n}: skipped ${skippedCount}`);
      }
      expect(wrong).toEqual([]);
    } finally {
      await Promise.all(others.map((world) => world[Symbol.asyncDispose]()));
      await first[Symbol.asyncDispose]();
      await database.drop();
    }
  },
  120_000,
);

const operatorKey = "schedule-crash-0123456789-abcdefghijklmnopqrstuvwxyz";
const program = new URL("../bus-fixtures/fast-server.ts", import.meta.url).pathname;
const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

describe.each(dialects)("kill -9 around the times on %s", (dialect) => {
  test("no time makes two jobs, and none is lost that can be made up for", async () => {
    await using place = await storage(dialect);
    // A minute of schedules takes 100 ms, and servers are killed a few milliseconds after one began.
    const speed = 600;
    const fromMs = Date.now();
    const options = JSON.stringify({ ...place.options, fromMs, speed, operatorKeyDigest: keyDigest(operatorKey) });
    let server: ServerProcess = await serverProcess(program, [options]);
    try {
      const operator = clientsAt(server.url, operatorKey);
      const { agent } = await operator.agents.registerAgent({ name: unique("owner") });
      const { secret: key } = await operator.keys.createApiKey({ agentId: agent!.agentId, role: Role.AGENT });
      let as: Clients = clientsAt(server.url, key);
      const schedules = await Promise.all(
        Array.from({ length: 10 }, (_, n) =>
          create(as, "* * * * *", {
            misfire: Misfire.ALL,
            catchUp: durationFromMs(86_400_000),
            job: { queue: `crash-${n}` },
          }),
        ),
      );
      const kills = 6;
      for (let kill = 0; kill < kills; kill++) {
        const now = fromMs + (Date.now() + 700 - fromMs) * speed;
        const nextMs = fromMs + (Math.ceil(now / minuteMs) * minuteMs - fromMs) / speed;
        await sleep(nextMs - Date.now() + kill * 3);
        await server.kill();
        server = await serverProcess(program, [options]);
        as = clientsAt(server.url, key);
      }
      await sleep(500);
      for (const { scheduleId } of schedules)
        await as.schedules.updateSchedule({
          scheduleId,
          change: { disabled: true },
          updateMask: { paths: ["disabled"] },
        });
      let runs = 0;
      for (const { scheduleId, createTime, settings } of schedules) {
        const times = await nominalTimes(as, settings!.job!.queue);
        const { runCount, missedCount, lastNominalTime } = await get(as, scheduleId);
        expect(new Set(times).size).toBe(times.length);
        expect(Number(runCount)).toBe(times.length);
        // Each minute from the beginning, but for those that an outage was too long to make up for.
        const minutes =
          (timestampMs(lastNominalTime!) - Math.floor(timestampMs(createTime!) / minuteMs) * minuteMs) / minuteMs;
        expect(times.length + Number(missedCount)).toBe(minutes);
        runs += times.length;
      }
      console.log(`${dialect}: ${runs} times of ${schedules.length} schedules over ${kills} kills`);
      expect(runs).toBeGreaterThan(schedules.length * kills);
    } finally {
      await server.kill();
    }
  }, 120_000);
});

async function nominalTimes(as: Clients, queue: string): Promise<number[]> {
  const times: number[] = [];
  for (let pageToken = "", first = true; first || pageToken; first = false) {
    const page = await as.queues.listJobs({ queue, pageSize: 250, pageToken });
    times.push(...page.jobs.map(({ nominalTime }) => timestampMs(nominalTime!)));
    pageToken = page.nextPageToken;
  }
  return times;
}
