import { monitorEventLoopDelay } from "node:perf_hooks";
import { durationFromMs, timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TrustTier } from "../gen/moltwire/bus/v1/agent_pb.ts";
import { PolicyVerdict } from "../gen/moltwire/bus/v1/policy_pb.ts";
import { Misfire, Overlap } from "../gen/moltwire/queue/v1/schedule_pb.ts";
import type { Clock } from "../src/clock.ts";
import { sql } from "../src/db/db.ts";
import {
  dialects,
  eventually,
  fakeClock,
  type Org,
  type OrgAgent,
  refusal,
  start,
  unique,
  type World,
} from "./harness.ts";
import { claim, get as getJob, json, jsonOf, leaseOf, stateOf, swept } from "./queue-fixtures/jobs.ts";
import { create, get, iso, jobsOf, type SettingsInit, ticked, time, timesOf } from "./queue-fixtures/schedules.ts";

const ms = durationFromMs;
const minuteMs = 60_000;

describe.each(dialects)("a schedule on %s", (dialect) => {
  let clock = fakeClock();
  let world: World;
  let org: Org;
  let agent: OrgAgent;
  beforeAll(async () => {
    clock = fakeClock(Date.parse("2026-06-01T00:00:00Z"));
    world = await start(dialect, { clock, schedulesPerAgent: 40 });
    org = await world.org();
  });
  afterAll(() => world[Symbol.asyncDispose]());

  /** An agent of its own for each test: nothing of one is in another's lists. */
  const anyAgent = async () => (agent = await org.agent());
  const pass = async (forMs: number) => {
    clock.advance(forMs);
    await ticked(world);
  };
  /** Goes to the next time at which a quarter of an hour begins. */
  const toQuarter = () => pass(15 * minuteMs - (clock.now() % (15 * minuteMs)));
  const here = () => new Date(clock.now()).toISOString().slice(0, 16);

  test("makes a job at each of its times, with all that its owner said", async () => {
    const { as, agentId } = await anyAgent();
    await toQuarter();
    const queue = unique("q");
    const job = {
      queue,
      payload: json({ report: "daily" }),
      priority: 8,
      maxAttempts: 2,
      tags: { a: "b" },
      timeout: ms(90_000),
      backoff: { initial: ms(5) },
    };
    const schedule = await create(as, " */15 * * * * ", { name: "quarters", job });
    expect(schedule).toMatchObject({
      agentId,
      revision: 1n,
      runCount: 0n,
      missedCount: 0n,
      skippedCount: 0n,
      lastJobId: "",
    });
    expect(schedule.scheduleId).toMatch(/^sch_[0-9a-f]{32}$/);
    expect(schedule.settings).toMatchObject({
      ...{ name: "quarters", disabled: false, misfire: Misfire.ONCE, overlap: Overlap.ALLOW },
      timing: { cron: "*/15 * * * *", timeZone: "UTC" },
      job: { queue, priority: 8, maxAttempts: 2, tags: { a: "b" } },
      catchUp: { seconds: 86_400n },
    });
    expect(schedule.settings!.job!.payload).toBeUndefined();
    expect(timestampMs(schedule.nextTime!)).toBe(clock.now() + 15 * minuteMs);
    expect(await jobsOf(world, schedule)).toEqual([]);

    const expected: string[] = [];
    for (let n = 0; n < 3; n++) {
      await pass(15 * minuteMs);
      expected.push(here());
    }
    expect(await timesOf(world, schedule)).toEqual(expected);
    const leased = await claim(as, { queues: [queue], maxJobs: 10 });
    expect(leased).toHaveLength(3);
    expect(leased[0]!.job).toMatchObject({
      scheduleId: schedule.scheduleId,
      priority: 8,
      maxAttempts: 2,
      tags: { a: "b" },
      submitterAgentId: "",
    });
    expect(leased.map(({ job }) => iso(job!.nominalTime).slice(0, 16))).toEqual(expected);
    expect(jsonOf(leased[0]!.job!.payload)).toEqual({ report: "daily" });
    expect(new Set(leased.map(({ job }) => job!.traceId)).size).toBe(3);
    const now = await get(as, schedule.scheduleId);
    expect(now).toMatchObject({ runCount: 3n, missedCount: 0n, skippedCount: 0n, lastJobId: leased[2]!.job!.jobId });
    expect(jsonOf(now.settings!.job!.payload)).toEqual({ report: "daily" });
    expect([iso(now.lastNominalTime), iso(now.lastRunTime)]).toEqual([`${here()}:00.000Z`, `${here()}:00.000Z`]);
    expect(timestampMs(now.nextTime!)).toBe(clock.now() + 15 * minuteMs);
  });

  test("fires by itself when its time has come, to the millisecond of the server's clock", async () => {
    const { as } = await anyAgent();
    await toQuarter();
    const schedule = await create(as, "* * * * *");
    clock.advance(minuteMs - 1);
    expect(await jobsOf(world, schedule)).toEqual([]);
    await eventually(async () => {
      clock.advance(1);
      return (await jobsOf(world, schedule)).length > 0;
    });
    await as.schedules.deleteSchedule({ scheduleId: schedule.scheduleId });
  });

  test("lets its jobs be claimed later by chance, and keeps the nominal time", async () => {
    const { as } = await anyAgent();
    await toQuarter();
    const queue = unique("jitter");
    const schedule = await create(as, "*/15 * * * *", { job: { queue }, jitter: ms(10 * minuteMs) });
    const late: number[] = [];
    for (let n = 0; n < 6; n++) {
      await pass(15 * minuteMs);
      const job = (await jobsOf(world, schedule)).at(-1)!;
      expect(job.nominal_ms).toBe(clock.now());
      late.push(job.run_ms - clock.now());
      expect(job.state).toBe(late.at(-1)! > 0 ? 1 : 2);
    }
    expect(Math.min(...late)).toBeGreaterThanOrEqual(0);
    expect(Math.max(...late)).toBeLessThanOrEqual(10 * minuteMs);
    expect(new Set(late).size).toBeGreaterThan(3);
    clock.advance(10 * minuteMs);
    await swept(world);
    expect(await claim(as, { queues: [queue], maxJobs: 100 })).toHaveLength(6);
    await as.schedules.deleteSchedule({ scheduleId: schedule.scheduleId });
  });

  describe("when nobody took its times", () => {
    const cases: [string, SettingsInit, number, number][] = [
      ["SKIP", { misfire: Misfire.SKIP }, 0, 4],
      ["ONCE", { misfire: Misfire.ONCE }, 1, 3],
      ["ALL", { misfire: Misfire.ALL }, 4, 0],
      ["ALL within half an hour", { misfire: Misfire.ALL, catchUp: ms(30 * minuteMs) }, 2, 2],
      ["ONCE within a minute", { misfire: Misfire.ONCE, catchUp: ms(minuteMs) }, 0, 4],
    ];
    test.each(cases)("misfire %s", async (_, settings, runs, missed) => {
      const { as } = await anyAgent();
      await toQuarter();
      const schedule = await create(as, "*/15 * * * *", settings);
      const begun = clock.now();
      await pass(62 * minuteMs); // four times, the last two minutes ago
      const all = [1, 2, 3, 4].map((n) => new Date(begun + n * 15 * minuteMs).toISOString().slice(0, 16));
      expect(await timesOf(world, schedule)).toEqual(runs === 0 ? [] : all.slice(-runs));
      expect(await get(as, schedule.scheduleId)).toMatchObject({ runCount: BigInt(runs), missedCount: BigInt(missed) });
      await pass(13 * minuteMs); // and goes on
      expect((await get(as, schedule.scheduleId)).runCount).toBe(BigInt(runs + 1));
    });

    test("of ALL the latest 100 make a job, and the rest is missed", async () => {
      const { as } = await anyAgent();
      await toQuarter();
      const schedule = await create(as, "* * * * *", { misfire: Misfire.ALL });
      await pass(250 * minuteMs);
      const jobs = await jobsOf(world, schedule);
      expect(jobs).toHaveLength(100);
      expect([jobs[0]!.nominal_ms, jobs.at(-1)!.nominal_ms]).toEqual([clock.now() - 99 * minuteMs, clock.now()]);
      expect(await get(as, schedule.scheduleId)).toMatchObject({ runCount: 100n, missedCount: 150n });
      await as.schedules.deleteSchedule({ scheduleId: schedule.scheduleId });
    });
  });

  test("makes no job twice when the clock is set back, and goes on where it was", async () => {
    const { as } = await anyAgent();
    await toQuarter();
    const schedule = await create(as, "*/15 * * * *");
    await pass(15 * minuteMs);
    await pass(15 * minuteMs);
    await pass(-20 * minuteMs);
    await pass(10 * minuteMs); // 15 minutes after the beginning for the second time
    const { schedule: updated } = await as.schedules.updateSchedule({
      scheduleId: schedule.scheduleId,
      change: { timing: { cron: "0,15,30,45 * * * *" } },
      updateMask: { paths: ["timing.cron"] },
    });
    expect(timestampMs(updated!.nextTime!)).toBe(clock.now() + 25 * minuteMs);
    await pass(10 * minuteMs);
    expect(await jobsOf(world, schedule)).toHaveLength(2);
    await pass(15 * minuteMs);
    const nominal = (await jobsOf(world, schedule)).map(({ nominal_ms }) => nominal_ms!);
    expect(nominal).toHaveLength(3);
    expect(nominal.map((timeMs) => timeMs - nominal[0]!)).toEqual([0, 15 * minuteMs, 30 * minuteMs]);
  });

  test("skips its times while a job of it is unfinished, if told", async () => {
    const { as } = await anyAgent();
    await toQuarter();
    const queue = unique("overlap");
    const schedule = await create(as, "*/15 * * * *", { job: { queue }, overlap: Overlap.SKIP, misfire: Misfire.ALL });
    await pass(15 * minuteMs);
    const [leased] = await claim(as, { queues: [queue], lease: ms(3_600_000) });
    await pass(15 * minuteMs);
    await pass(15 * minuteMs);
    expect(await get(as, schedule.scheduleId)).toMatchObject({ runCount: 1n, skippedCount: 2n, missedCount: 0n });
    await as.queues.completeJob(leaseOf(leased!));
    await pass(31 * minuteMs); // two times at once: the second would overlap the first
    expect(await get(as, schedule.scheduleId)).toMatchObject({ runCount: 2n, skippedCount: 3n, missedCount: 0n });
  });

  test("rests while it is disabled, and begins anew when it is enabled", async () => {
    const { as } = await anyAgent();
    await toQuarter();
    const { scheduleId, ...schedule } = await create(as, "*/15 * * * *", { disabled: true });
    expect(schedule.nextTime).toBeUndefined();
    await pass(40 * minuteMs);
    const updated = await as.schedules.updateSchedule({
      scheduleId,
      change: { disabled: false },
      updateMask: { paths: ["disabled"] },
    });
    expect(updated.schedule).toMatchObject({ revision: 2n, runCount: 0n, missedCount: 0n });
    expect(timestampMs(updated.schedule!.nextTime!)).toBe(clock.now() + 5 * minuteMs);
    await pass(5 * minuteMs);
    expect((await get(as, scheduleId)).runCount).toBe(1n);
    await as.schedules.updateSchedule({ scheduleId, change: { disabled: true }, updateMask: { paths: ["disabled"] } });
    await pass(40 * minuteMs);
    expect(await get(as, scheduleId)).toMatchObject({ runCount: 1n, missedCount: 0n });
  });

  test("is changed field by field, and timed anew when its timing changes", async () => {
    const { as } = await anyAgent();
    await toQuarter();
    const job = { payload: json(1), priority: 3, tags: { a: "b" } };
    const { scheduleId } = await create(as, "0 0 1 1 *", { name: "old", job, timing: { timeZone: "Europe/Berlin" } });
    const update = (change: SettingsInit, paths: string[], ifRevision = 0n) =>
      as.schedules.updateSchedule({ scheduleId, change, updateMask: { paths }, ifRevision });
    const named = await update({ name: "new", jitter: ms(1_000) }, ["name"], 1n);
    expect(named.schedule!.settings).toMatchObject({ name: "new", jitter: { seconds: 0n } });
    expect(iso(named.schedule!.nextTime)).toBe("2026-12-31T23:00:00.000Z");
    const retimed = await update({ timing: { cron: "*/5 * * * *" } }, ["timing.cron"]);
    expect(timestampMs(retimed.schedule!.nextTime!)).toBe(clock.now() + 5 * minuteMs);
    expect(retimed.schedule!.settings!.timing!.timeZone).toBe("Europe/Berlin");
    await update({ job: { payload: json({ two: 2 }) } }, ["job.payload", "job.tags"]);
    const { settings } = await get(as, scheduleId);
    expect([jsonOf(settings!.job!.payload), settings!.job!.priority, settings!.job!.tags]).toEqual([{ two: 2 }, 3, {}]);
    await pass(5 * minuteMs);
    const { job_id } = (await jobsOf(world, await get(as, scheduleId)))[0]!;
    expect(jsonOf((await getJob(as, job_id)).payload)).toEqual({ two: 2 });
    await update({ job: { queue: "default" } }, ["job"]);
    expect((await get(as, scheduleId)).settings!.job).toMatchObject({ priority: 5, tags: {} });
    expect((await get(as, scheduleId)).settings!.job!.payload).toBeUndefined();
    expect((await refusal(update({ name: "x" }, ["name"], 2n))).reason).toBe("FAILED_PRECONDITION");
    expect((await refusal(update({}, []))).metadata).toMatchObject({ field: "update_mask" });
    expect((await refusal(update({}, ["run_count"]))).metadata).toMatchObject({ field: "update_mask" });
    expect((await refusal(update({}, ["timing"]))).metadata).toMatchObject({ field: "change.timing.cron" });
    expect((await get(as, scheduleId)).settings!.timing!.cron).toBe("*/5 * * * *");
    await as.schedules.deleteSchedule({ scheduleId });
  });

  test("ends with its deletion, and leaves the jobs that it made", async () => {
    const { as } = await anyAgent();
    await toQuarter();
    const schedule = await create(as, "*/15 * * * *", { job: { payload: json("x") } });
    const { scheduleId } = schedule;
    await pass(15 * minuteMs);
    await as.schedules.deleteSchedule({ scheduleId });
    await pass(15 * minuteMs);
    expect(await jobsOf(world, schedule)).toHaveLength(1);
    expect((await refusal(get(as, scheduleId))).reason).toBe("NOT_FOUND");
    expect((await refusal(as.schedules.deleteSchedule({ scheduleId }))).reason).toBe("NOT_FOUND");
    const left = await world.server.app.db.query.one(
      sql`select 1 as found from queue_schedule_data where schedule_id = ${scheduleId}`,
    );
    expect(left).toBeUndefined();
  });

  test("fires between its start and its end", async () => {
    const { as } = await anyAgent();
    await toQuarter();
    const timing = {
      startTime: timestampFromMs(clock.now() + 20 * minuteMs),
      endTime: timestampFromMs(clock.now() + 45 * minuteMs),
    };
    const schedule = await create(as, "*/15 * * * *", { timing });
    expect(timestampMs(schedule.nextTime!)).toBe(clock.now() + 30 * minuteMs);
    for (let n = 0; n < 6; n++) await pass(15 * minuteMs);
    expect(await jobsOf(world, schedule)).toHaveLength(2);
    const now = await get(as, schedule.scheduleId);
    expect(now.nextTime).toBeUndefined();
    expect(now).toMatchObject({ runCount: 2n, missedCount: 0n });
  });

  test("is triggered now, whatever its state, and once for one idempotency key", async () => {
    const { as } = await anyAgent();
    const queue = unique("triggered");
    const job = { queue, payload: json("now") };
    const schedule = await create(as, "0 0 1 1 *", {
      job,
      disabled: true,
      overlap: Overlap.SKIP,
      jitter: ms(3_600_000),
    });
    const { scheduleId } = schedule;
    const headers = { "idempotency-key": unique("key") };
    const first = await as.schedules.triggerSchedule({ scheduleId }, { headers });
    const again = await as.schedules.triggerSchedule({ scheduleId }, { headers });
    expect(again.job!.jobId).toBe(first.job!.jobId);
    expect(first.job).toMatchObject({ scheduleId, queue });
    expect(first.job!.nominalTime).toBeUndefined();
    expect(stateOf(first.job)).toBe("PENDING");
    await as.schedules.triggerSchedule({ scheduleId });
    expect(await timesOf(world, schedule)).toEqual([null, null]);
    const triggered = await get(as, scheduleId);
    expect([triggered.runCount, triggered.lastNominalTime]).toEqual([2n, undefined]);
    const leased = await claim(as, { queues: [queue], maxJobs: 5 });
    expect(leased.map(({ job: { payload } = {} }) => jsonOf(payload))).toEqual(["now", "now"]);
  });

  test("tells its next times, and those of a draft", async () => {
    const { as } = await anyAgent();
    const { scheduleId } = await create(as, "30 2 * * *", { disabled: true, timing: { timeZone: "Europe/Berlin" } });
    const subject = { case: "scheduleId", value: scheduleId } as const;
    const stored = await as.schedules.previewSchedule({ subject, count: 3, afterTime: time("2027-03-27T00:00:00Z") });
    expect(stored.times.map(({ localTime }) => localTime)).toEqual([
      "2027-03-27T02:30:00+01:00",
      "2027-03-28T03:00:00+02:00",
      "2027-03-29T02:30:00+02:00",
    ]);
    expect(iso(stored.times[1]!.nominalTime)).toBe("2027-03-28T01:00:00.000Z");
    expect((await as.schedules.previewSchedule({ subject })).times).toHaveLength(10);
    const draft = (timing: SettingsInit["timing"], count = 100) =>
      as.schedules.previewSchedule({ subject: { case: "draft", value: timing! }, count });
    const { times } = await draft({ cron: "@daily", timeZone: "Asia/Kathmandu" });
    expect(times).toHaveLength(100);
    expect(times[0]!.localTime).toMatch(/T00:00:00\+05:45$/);
    expect(timestampMs(times[0]!.nominalTime!)).toBeGreaterThan(clock.now());
    expect(
      (await draft({ cron: "@daily", endTime: timestampFromMs(clock.now() + 3 * 86_400_000) })).times,
    ).toHaveLength(3);
    expect((await draft({ cron: "0 0 29 2 *" }, 3)).times.map(({ localTime }) => localTime.slice(0, 10))).toEqual([
      "2028-02-29",
      "2032-02-29",
      "2036-02-29",
    ]);
    expect((await refusal(draft({ cron: "0 0 30 2 *" }))).metadata).toMatchObject({ field: "draft.cron" });
    expect((await refusal(draft({ cron: "@daily", timeZone: "+01:00" }))).metadata).toMatchObject({
      field: "draft.time_zone",
    });
    expect((await refusal(draft({ cron: "@daily" }, 101))).reason).toBe("INVALID_REQUEST");
    expect(
      (await refusal(as.schedules.previewSchedule({ subject, afterTime: { seconds: -1n } }))).metadata,
    ).toMatchObject({ field: "after_time" });
    expect((await get(as, scheduleId)).runCount).toBe(0n);
  });

  describe("is backfilled", () => {
    test("with one job for each past time that made none, in order, however often it is asked", async () => {
      const { as } = await anyAgent();
      await toQuarter();
      const schedule = await create(as, "*/15 * * * *", {
        overlap: Overlap.SKIP,
        jitter: ms(600_000),
        misfire: Misfire.SKIP,
      });
      await pass(15 * minuteMs); // runs
      await pass(47 * minuteMs); // three are missed
      const window = {
        startTime: timestampFromMs(clock.now() - 3_600_000 - 2 * minuteMs),
        endTime: timestampFromMs(clock.now()),
      };
      const ask = (maxJobs = 0) =>
        as.schedules.backfillSchedule({ scheduleId: schedule.scheduleId, ...window, maxJobs });
      const first = await ask(2);
      expect([first.jobs.length, first.more]).toEqual([2, true]);
      expect(first.jobs.every((job) => stateOf(job) === "PENDING")).toBe(true);
      const second = await ask();
      expect([second.jobs.length, second.more]).toEqual([2, false]);
      expect((await ask()).jobs).toEqual([]);
      const nominal = (await jobsOf(world, schedule)).map(({ nominal_ms }) => nominal_ms!);
      expect(nominal.map((timeMs) => (timeMs - nominal[0]!) / minuteMs)).toEqual([0, 15, 30, 45, 60]);
      expect(await get(as, schedule.scheduleId)).toMatchObject({ runCount: 5n, missedCount: 3n });
    });

    test("and a time that comes meanwhile makes no second job", async () => {
      const { as } = await anyAgent();
      await toQuarter();
      const schedule = await create(as, "*/15 * * * *");
      const { scheduleId } = schedule;
      const { db } = world.server.app;
      // Held back from the server's own look, as if it were slow.
      await db.tx((tx) => tx.run(sql`update queue_schedule set due_ms = null where schedule_id = ${scheduleId}`));
      clock.advance(16 * minuteMs);
      const window = { startTime: timestampFromMs(clock.now() - 5 * minuteMs), endTime: timestampFromMs(clock.now()) };
      expect((await as.schedules.backfillSchedule({ scheduleId, ...window })).jobs).toHaveLength(1);
      await db.tx((tx) => tx.run(sql`update queue_schedule set due_ms = next_ms where schedule_id = ${scheduleId}`));
      await ticked(world);
      expect(await jobsOf(world, schedule)).toHaveLength(1);
      expect(await get(as, scheduleId)).toMatchObject({ runCount: 1n, missedCount: 0n });
      expect(timestampMs((await get(as, scheduleId)).nextTime!)).toBe(clock.now() + 14 * minuteMs);
    });

    test("with payloads that are together more than one submit takes", async () => {
      const { as } = await anyAgent();
      await toQuarter();
      const job = { payload: json("x".repeat(100_000)) };
      const schedule = await create(as, "*/15 * * * *", { job, disabled: true });
      const window = { startTime: timestampFromMs(clock.now() - 86_400_000), endTime: timestampFromMs(clock.now()) };
      const { jobs, more } = await as.schedules.backfillSchedule({ scheduleId: schedule.scheduleId, ...window });
      expect([jobs.length, more]).toEqual([96, false]);
      const nominal = (await jobsOf(world, schedule)).map(({ nominal_ms }) => nominal_ms);
      expect(jobs.map(({ nominalTime }) => timestampMs(nominalTime!))).toEqual(nominal);
      expect(new Set(nominal).size).toBe(96);
    });

    test("not beyond what is known, nor into the future", async () => {
      const { as } = await anyAgent();
      const { scheduleId } = await create(as, "@daily");
      const day = 86_400_000;
      const ask = (from: number, to: number) =>
        refusal(
          as.schedules.backfillSchedule({
            scheduleId,
            startTime: timestampFromMs(clock.now() + from),
            endTime: timestampFromMs(clock.now() + to),
          }),
        );
      expect((await ask(-32 * day, 0)).metadata).toMatchObject({ field: "start_time" });
      expect((await ask(-day, 1)).metadata).toMatchObject({ field: "end_time" });
      expect((await ask(-day, -day)).metadata).toMatchObject({ field: "end_time" });
      expect(
        (await refusal(as.schedules.backfillSchedule({ scheduleId, startTime: timestampFromMs(clock.now()) }))).reason,
      ).toBe("INVALID_REQUEST");
    });
  });

  test.each<[string, SettingsInit, string]>([
    ["no cron", { timing: { cron: "" } }, "settings.timing.cron"],
    ["seconds", { timing: { cron: "0 0 * * * *" } }, "settings.timing.cron"],
    ["a date that never comes", { timing: { cron: "0 0 30 2 *" } }, "settings.timing.cron"],
    ["@reboot", { timing: { cron: "@reboot" } }, "settings.timing.cron"],
    ["a cron of 257 characters", { timing: { cron: `${"1,".repeat(124)}1 * * * *` } }, "settings.timing.cron"],
    ["a zone that is none", { timing: { timeZone: "Mars/Olympus" } }, "settings.timing.time_zone"],
    ["an offset", { timing: { timeZone: "+02:00" } }, "settings.timing.time_zone"],
    [
      "an end before the start",
      { timing: { startTime: time("2027-01-02T00:00Z"), endTime: time("2027-01-01T00:00Z") } },
      "settings.timing.end_time",
    ],
    ["a start that is too far", { timing: { startTime: time("9500-01-01T00:00Z") } }, "settings.timing.start_time"],
    ["a name of 129 characters", { name: "n".repeat(129) }, "settings.name"],
    ["a catch-up window of 59 s", { catchUp: ms(59_000) }, "settings.catch_up"],
    ["a catch-up window of 32 days", { catchUp: ms(32 * 86_400_000) }, "settings.catch_up"],
    ["jitter of more than an hour", { jitter: ms(3_600_001) }, "settings.jitter"],
    ["a misfire that is none", { misfire: 9 as Misfire }, "settings.misfire"],
    ["an overlap that is none", { overlap: 9 as Overlap }, "settings.overlap"],
    ["a queue that is none", { job: { queue: "/x" } }, "settings.job.queue"],
    ["priority 11", { job: { priority: 11 } }, "settings.job.priority"],
    ["101 attempts", { job: { maxAttempts: 101 } }, "settings.job.max_attempts"],
    [
      "17 tags",
      { job: { tags: Object.fromEntries(Array.from({ length: 17 }, (_, n) => [`t${n}`, ""])) } },
      "settings.job.tags",
    ],
    ["a payload of more than 100 KB", { job: { payload: json("x".repeat(102_401)) } }, "settings.job.payload"],
  ])("is refused with %s, naming the field", async (_, settings, field) => {
    const { as } = await anyAgent();
    const { reason, metadata, error } = await refusal(create(as, "@daily", settings));
    expect(reason).toBe(field.endsWith("payload") ? "PAYLOAD_TOO_LARGE" : "INVALID_REQUEST");
    expect(`${metadata.field ?? ""} ${error.message}`).toContain(field);
    expect((await as.schedules.listSchedules({})).schedules).toEqual([]);
  });

  test("is listed page by page, oldest first, without payload", async () => {
    const { as, agentId } = await anyAgent();
    const ids: string[] = [];
    for (let n = 0; n < 7; n++)
      ids.push((await create(as, "@daily", { name: `${n}`, job: { payload: json(n) } })).scheduleId);
    const listed: string[] = [];
    for (let pageToken = "", first = true; first || pageToken; first = false) {
      const page = await as.schedules.listSchedules({ pageSize: 3, pageToken });
      expect(page.schedules.length).toBeLessThanOrEqual(3);
      expect(page.schedules.every(({ settings }) => settings!.job!.payload === undefined)).toBe(true);
      listed.push(...page.schedules.map(({ scheduleId }) => scheduleId));
      pageToken = page.nextPageToken;
    }
    expect(listed).toEqual(ids);
    const ofAdmin = await org.admin.schedules.listSchedules({ agentId, pageSize: 250 });
    expect(ofAdmin.schedules.map(({ scheduleId }) => scheduleId)).toEqual(ids);
    const other = await org.agent();
    const { nextPageToken } = await as.schedules.listSchedules({ pageSize: 3 });
    expect((await refusal(other.as.schedules.listSchedules({ pageToken: nextPageToken }))).reason).toBe(
      "INVALID_PAGE_TOKEN",
    );
    expect((await refusal(as.schedules.listSchedules({ pageSize: 251 }))).reason).toBe("INVALID_REQUEST");
  });

  test("there are so many of an agent as its quota lets, also when asked for at once", async () => {
    const { as } = await anyAgent();
    const asked = await Promise.allSettled(Array.from({ length: 45 }, () => create(as, "@yearly")));
    expect(asked.filter(({ status }) => status === "fulfilled")).toHaveLength(40);
    const { code, reason, metadata } = await refusal(create(as, "@yearly"));
    expect([code, reason]).toEqual(["ResourceExhausted", "QUOTA_EXCEEDED"]);
    expect(metadata).toMatchObject({ resource: "schedules", limit: "40", used: "40" });
    const { schedules } = await as.schedules.listSchedules({ pageSize: 1 });
    await as.schedules.deleteSchedule({ scheduleId: schedules[0]!.scheduleId });
    await create(as, "@yearly");
  });

  describe("is its agent's own", () => {
    test("and to others of the organisation as if it were not there, unless a policy lets them", async () => {
      const owner = await anyAgent();
      const mate = await org.agent();
      const { scheduleId } = await create(owner.as, "@daily", { name: "mine" });
      const nothing = `sch_${"0".repeat(32)}`;
      const window = { startTime: timestampFromMs(clock.now() - 1_000), endTime: timestampFromMs(clock.now()) };
      const calls = (by: OrgAgent, id: string) => [
        get(by.as, id),
        by.as.schedules.updateSchedule({ scheduleId: id, change: { name: "x" }, updateMask: { paths: ["name"] } }),
        by.as.schedules.triggerSchedule({ scheduleId: id }),
        by.as.schedules.previewSchedule({ subject: { case: "scheduleId", value: id } }),
        by.as.schedules.backfillSchedule({ scheduleId: id, ...window }),
        by.as.schedules.deleteSchedule({ scheduleId: id }),
      ];
      const said = async (id: string) =>
        Promise.all(
          calls(mate, id).map(async (call) => {
            const { code, reason, error } = await refusal(call);
            return `${code} ${reason} ${error.message}`.replaceAll(id, "<id>");
          }),
        );
      expect(await said(scheduleId)).toEqual(await said(nothing));
      expect((await said(scheduleId))[0]).toContain("NOT_FOUND");
      expect((await mate.as.schedules.listSchedules({ agentId: owner.agentId })).schedules).toEqual([]);
      const foreign = await refusal(create(mate.as, "@daily", {}, owner.agentId));
      const unknown = await refusal(create(mate.as, "@daily", {}, `agt_${"0".repeat(32)}`));
      expect([foreign.code, foreign.reason]).toEqual([unknown.code, unknown.reason]);

      const cedarText = `permit (principal == Agent::"${mate.agentId}", action == Action::"read_schedule", resource == Schedule::"${scheduleId}");`;
      await org.admin.policies.putPolicy({ policyId: unique("policy"), cedarText });
      expect((await get(mate.as, scheduleId)).settings!.name).toBe("mine");
      const { schedules } = await mate.as.schedules.listSchedules({ agentId: owner.agentId });
      expect(schedules.map((one) => one.scheduleId)).toEqual([scheduleId]);
      expect((await refusal(mate.as.schedules.deleteSchedule({ scheduleId }))).reason).toBe("NOT_FOUND");
      const ask = (action: string, type: string, id: string) =>
        org.admin.policies.testPolicy({
          subject: {
            case: "question",
            value: { principal: { type: "Agent", id: mate.agentId }, action, resource: { type, id } },
          },
        });
      const verdictOf = async (action: string, type: string, id: string) =>
        (await ask(action, type, id)).answer!.verdict;
      expect(await verdictOf("read_schedule", "Schedule", scheduleId)).toBe(PolicyVerdict.ALLOW);
      expect(await verdictOf("write_schedule", "Schedule", scheduleId)).toBe(PolicyVerdict.DENY);
      expect(await verdictOf("claim_job", "Queue", "any/queue")).toBe(PolicyVerdict.ALLOW);
      expect(await verdictOf("claim_job", "Queue", `${owner.agentId}/private`)).toBe(PolicyVerdict.DENY);
      expect((await refusal(ask("read_schedule", "Schedule", nothing))).reason).toBe("NOT_FOUND");
    });

    test("and an administrator's too, who names the agent of a new one", async () => {
      const { as, agentId } = await anyAgent();
      const schedule = await create(org.admin, "@daily", { name: "given" }, agentId);
      expect((await get(as, schedule.scheduleId)).settings!.name).toBe("given");
      expect((await get(org.admin, schedule.scheduleId)).agentId).toBe(agentId);
      expect((await refusal(create(org.admin, "@daily"))).metadata).toMatchObject({ field: "agent_id" });
      const all = await org.admin.schedules.listSchedules({ pageSize: 250 });
      expect(all.schedules.map(({ scheduleId }) => scheduleId)).toContain(schedule.scheduleId);
      const elsewhere = await world.org();
      expect((await refusal(get(elsewhere.admin, schedule.scheduleId))).reason).toBe("NOT_FOUND");
      expect((await elsewhere.admin.schedules.listSchedules({})).schedules).toEqual([]);
      const byOperator = await world.operator.schedules.getSchedule({
        orgId: org.orgId,
        scheduleId: schedule.scheduleId,
      });
      expect(byOperator.schedule!.settings!.name).toBe("given");
    });

    test("of any tier, into queues that it may use", async () => {
      const vendor = await org.agent({ trustTier: TrustTier.PUBLIC_VENDOR });
      expect((await refusal(create(vendor.as, "@daily"))).reason).toBe("POLICY_DENIED");
      await toQuarter();
      const queue = `${vendor.agentId}/own`;
      const { scheduleId } = await create(vendor.as, "*/15 * * * *", { job: { queue } });
      const move = vendor.as.schedules.updateSchedule({
        scheduleId,
        change: { job: { queue: "shared" } },
        updateMask: { paths: ["job.queue"] },
      });
      expect((await refusal(move)).reason).toBe("POLICY_DENIED");
      await pass(15 * minuteMs);
      expect(await claim(vendor.as, { queues: [queue] })).toHaveLength(1);
    });
  });

  describe("misses its times, and says why, while", () => {
    const hindered = async (
      hinder: (agent: OrgAgent) => Promise<unknown>,
      help: (agent: OrgAgent) => Promise<unknown>,
    ) => {
      const owner = await org.agent();
      await toQuarter();
      const schedule = await create(owner.as, "*/15 * * * *", { job: { queue: `q${owner.agentId}` } });
      await pass(15 * minuteMs);
      await hinder(owner);
      await pass(15 * minuteMs);
      await pass(15 * minuteMs);
      const now = await get(org.admin, schedule.scheduleId);
      expect(now).toMatchObject({ runCount: 1n, missedCount: 2n });
      expect(timestampMs(now.lastError!.nominalTime!)).toBe(clock.now());
      await help(owner);
      await pass(15 * minuteMs);
      const after = await get(org.admin, schedule.scheduleId);
      expect([after.runCount, after.lastError]).toEqual([2n, undefined]);
      return now.lastError!.reason;
    };

    test("its agent is disabled", async () => {
      const set = (disabled: boolean) => (owner: OrgAgent) =>
        org.admin.agents.updateAgent({
          agentId: owner.agentId,
          change: { disabled },
          updateMask: { paths: ["disabled"] },
        });
      expect(await hindered(set(true), set(false))).toBe("FAILED_PRECONDITION");
    });

    test("all keys of its agent are revoked", async () => {
      const revoke = async (owner: OrgAgent) => {
        const { apiKeys } = await org.admin.keys.listApiKeys({ agentId: owner.agentId });
        for (const { keyId } of apiKeys) await org.admin.keys.revokeApiKey({ keyId });
      };
      const renew = (owner: OrgAgent) => org.admin.keys.createApiKey({ agentId: owner.agentId });
      expect(await hindered(revoke, renew)).toBe("KEY_REVOKED");
    });

    test("those keys of its agent that were not revoked have expired", async () => {
      const end = async (owner: OrgAgent) => {
        const { apiKeys } = await org.admin.keys.listApiKeys({ agentId: owner.agentId });
        const { apiKey } = await org.admin.keys.rotateApiKey({ keyId: apiKeys[0]!.keyId, overlap: durationFromMs(0) });
        await org.admin.keys.revokeApiKey({ keyId: apiKey!.keyId });
      };
      const renew = (owner: OrgAgent) => org.admin.keys.createApiKey({ agentId: owner.agentId });
      expect(await hindered(end, renew)).toBe("KEY_REVOKED");
      const expire = async (owner: OrgAgent) => {
        const { apiKeys } = await org.admin.keys.listApiKeys({ agentId: owner.agentId });
        await world.server.app.db.tx((tx) =>
          tx.run(sql`update api_key set expire_ms = ${clock.now()} where key_id = ${apiKeys[0]!.keyId}`),
        );
      };
      expect(await hindered(expire, renew)).toBe("KEY_EXPIRED");
    });

    test("a policy forbids its agent the queue", async () => {
      const policyId = unique("forbid");
      const forbid = (owner: OrgAgent) =>
        org.admin.policies.putPolicy({
          policyId,
          cedarText: `forbid (principal == Agent::"${owner.agentId}", action == Action::"enqueue_job", resource);`,
        });
      const reason = await hindered(forbid, () => org.admin.policies.deletePolicy({ policyId }));
      expect(reason).toBe("POLICY_DENIED");
      const { decisions } = await org.admin.policies.listDecisions({ policyId });
      expect(decisions.length).toBeGreaterThanOrEqual(2);
    });

    test("its organisation has too many unfinished jobs", async () => {
      const { db } = world.server.app;
      const change = (by: number) => () =>
        db.tx((tx) =>
          tx.run(sql`
            insert into queue_level (org_id, queue, shard, scheduled, pending, leased, failed) values (${org.orgId}, ${""}, ${99}, ${0}, ${by}, ${0}, ${0})
            on conflict (org_id, queue, shard) do update set pending = queue_level.pending + ${by}`),
        );
      expect(await hindered(change(1_000_000), change(-1_000_000))).toBe("QUOTA_EXCEEDED");
    });
  });

  test("goes with its agent, whose deletion says how many", async () => {
    const owner = await org.agent();
    await toQuarter();
    const schedule = await create(owner.as, "*/15 * * * *", { job: { payload: json(1) } });
    await create(owner.as, "@daily");
    expect((await org.admin.agents.deleteAgent({ agentId: owner.agentId })).deletedSchedules).toBe(2);
    await pass(15 * minuteMs);
    expect(await jobsOf(world, schedule)).toEqual([]);
    expect((await refusal(get(org.admin, schedule.scheduleId))).reason).toBe("NOT_FOUND");
    expect((await refusal(create(org.admin, "@daily", {}, owner.agentId))).reason).toBe("NOT_FOUND");
  });

  test("that the server cannot read keeps no other from its time, and is tried again", async () => {
    const { as } = await anyAgent();
    await toQuarter();
    const broken = await create(as, "*/15 * * * *", { job: { payload: json("broken") } });
    const sound = await create(as, "*/15 * * * *", { job: { payload: json("sound") } });
    const { db } = world.server.app;
    const put = (bytes: Uint8Array) =>
      db.tx((tx) =>
        tx.run(sql`update queue_schedule_data set payload = ${bytes} where schedule_id = ${broken.scheduleId}`),
      );
    const { payload } = (await db.query.one<{ payload: Uint8Array }>(
      sql`select payload from queue_schedule_data where schedule_id = ${broken.scheduleId}`,
    ))!;
    await put(Buffer.from("nonsense"));
    await pass(15 * minuteMs);
    expect([await timesOf(world, broken), await timesOf(world, sound)]).toEqual([[], [here()]]);
    await put(payload);
    await pass(minuteMs);
    expect(await timesOf(world, broken)).toEqual(await timesOf(world, sound));
  });
});

test.each(dialects)("on an idle server of %s a job is there within a second of its time", async (dialect) => {
  // The machine's own clock, set so that a minute begins soon after all is there.
  let aheadMs = 0;
  const clock: Clock = {
    now: () => Date.now() + aheadMs,
    after: (afterMs, run) => {
      const timer = setTimeout(run, afterMs);
      return { cancel: () => clearTimeout(timer) };
    },
    sleep: () => new Promise(() => {}),
  };
  await using world = await start(dialect, { clock });
  const org = await world.org();
  const { as } = await org.agent();
  aheadMs = 60_000 - ((Date.now() + 1_500) % 60_000);
  const schedule = await create(as, "* * * * *");
  // What the machine itself needs comes on top: for its event loop to turn, and for storage to answer.
  const turns = monitorEventLoopDelay({ resolution: 10 });
  turns.enable();
  let slowestMs = 0;
  const [job] = await eventually(async () => {
    const askedMs = performance.now();
    const jobs = await jobsOf(world, schedule);
    slowestMs = Math.max(slowestMs, performance.now() - askedMs);
    return jobs.length > 0 && jobs;
  });
  turns.disable();
  const lateMs = job!.create_ms - job!.nominal_ms!;
  console.log(`${dialect}: ${lateMs} ms late`);
  expect(lateMs).toBeGreaterThanOrEqual(0);
  expect(lateMs).toBeLessThanOrEqual(1_000 + turns.max / 1e6 + 10 * slowestMs);
});
