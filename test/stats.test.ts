import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { durationMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TrustTier } from "../gen/moltwire/bus/v1/agent_pb.ts";
import { Outcome } from "../gen/moltwire/directory/v1/collaboration_pb.ts";
import type { GetSlaResponse } from "../gen/moltwire/ops/v1/status_service_pb.ts";
import { sql } from "../src/db/db.ts";
import { selfCheck } from "../src/ops/self-check.ts";
import { nameOf, value } from "./bus-fixtures/bus.ts";
import { migratedDatabase } from "./engines.ts";
import { dialects, fakeClock, refusal, start, unique, type World } from "./harness.ts";
import { addContract } from "./rpc-fixtures/contract.ts";

const minute = 60_000;

describe.each(dialects)("%s", (dialect) => {
  describe("the status", () => {
    test("tells anybody version, uptime and encryption, and the operator alone engine and counts", async () => {
      const clock = fakeClock();
      const rateLimitTiers = { [TrustTier.PUBLIC_VENDOR]: 60, [TrustTier.INTERNAL_TRUSTED]: 0 };
      await using world = await start(dialect, { clock, rateLimit: 120, rateLimitTiers });
      clock.advance(90_000);
      const seen = await world.as(undefined).status.getStatus({});
      expect(seen).toMatchObject({ healthy: true, encryptionAtRest: false });
      expect([durationMs(seen.uptime!), seen.details]).toEqual([90_000, undefined]);
      const { admin } = await world.org();
      expect((await admin.status.getStatus({})).details).toBeUndefined();
      const { details } = await world.operator.status.getStatus({});
      expect(details).toMatchObject({ engine: dialect, agents: 1n });
      const limits = details!.rateLimits.map(({ trustTier, requestsPerMinute }) => [
        nameOf(TrustTier, trustTier),
        requestsPerMinute,
      ]);
      expect(Object.fromEntries(limits)).toEqual({
        ...{ INTERNAL_TRUSTED: 0, INTERNAL_RESTRICTED: 120, EXTERNAL_PARTNER: 120, PUBLIC_VENDOR: 60 },
      });
    });
  });

  describe("the statistics of an agent", () => {
    let world: World;
    beforeAll(async () => {
      world = await start(dialect);
    });
    afterAll(() => world[Symbol.asyncDispose]());

    test("count what it has and did, also what is not written down yet", async () => {
      const org = await world.org();
      const capability = unique("can");
      const contractId = await addContract(world, org.orgId, { contractId: unique("contract"), capability });
      const endpoint = { kind: { case: "echo", value: {} } } as const;
      const [agent, worker] = [await org.agent(), await org.agent({ capabilities: [capability], endpoint })];
      const data = { kind: { case: "data", value: Buffer.from("v") } } as const;
      await agent.as.memory.setEntry({ write: { key: "a", value: data } });
      await agent.as.memory.setEntry({ write: { key: "b", value: data } });
      await agent.as.sharedMemory.publishSharedEntry({ write: { namespace: unique("ns"), key: "a", value: data } });
      await agent.as.queues.submitJobs({ jobs: [{}, {}, {}] });
      const { task } = await agent.as.bus.submitTask({ contractId, contractVersion: "1.0.0", input: value({}) });
      const payload = { kind: { case: "data", value: Buffer.from("hi") } } as const;
      for (const to of [agent, worker, worker])
        await agent.as.relay.send({ to: { case: "toAgentId", value: to.agentId }, payload });
      await agent.as.webhooks.createWebhook({ url: "http://127.0.0.1:9/", eventTypes: ["job.failed"] });
      for (const cron of ["@daily", "@hourly"])
        await agent.as.schedules.createSchedule({ settings: { timing: { cron } } });
      const log = { partnerAgentId: worker.agentId, outcome: Outcome.SUCCESS, rating: 4 };
      await agent.as.directory.logCollaboration({ ...log, evidence: { case: "taskId", value: task!.taskId } });
      const own = await agent.as.status.getStats({});
      expect(own).toMatchObject({
        ...{ agentId: agent.agentId, requests: 13n, memoryKeys: 2n, sharedMemoryKeys: 1n, jobsSubmitted: 3n },
        ...{
          tasksSubmitted: 1n,
          tasksReceived: 0n,
          collaborationsGiven: 1n,
          collaborationsReceived: 0n,
          reputation: 0,
        },
        ...{ messagesSent: 3n, messagesReceived: 1n, webhooks: 1n, schedules: 2n },
      });
      await world.server.app.activity.flush();
      const { agentId } = agent;
      const written = await org.admin.status.getStats({ agentId });
      expect(written).toMatchObject({ requests: 13n, jobsSubmitted: 3n, messagesSent: 3n });
      expect(written.lastSeenTime).toBeDefined();
      expect((await agent.as.status.getStats({})).requests).toBe(14n);
      await world.server.app.activity.flush();
      expect((await agent.as.status.getStats({})).requests).toBe(15n);
      const other = await worker.as.status.getStats({});
      expect(other).toMatchObject({
        messagesSent: 0n,
        messagesReceived: 2n,
        tasksReceived: 1n,
        collaborationsReceived: 1n,
        reputation: 4.3,
      });
    });

    test("are its own and its administrators' to see", async () => {
      const org = await world.org();
      const [agent, sibling] = [await org.agent(), await org.agent()];
      const { agentId } = agent;
      const stranger = (await world.org()).admin;
      for (const call of [() => sibling.as.status.getStats({ agentId }), () => stranger.status.getStats({ agentId })])
        expect((await refusal(call())).reason).toBe("NOT_FOUND");
      expect((await refusal(org.admin.status.getStats({}))).metadata.field).toBe("agent_id");
      expect((await world.operator.status.getStats({ orgId: org.orgId, agentId })).agentId).toBe(agentId);
    });
  });

  describe("the SLA", () => {
    /** What its hours and its days come to: minutes up and all, of each. */
    const timeline = ({ hours, days }: GetSlaResponse) =>
      [hours, days].flatMap((slices) => [
        slices.reduce((sum, { minutesUp }) => sum + minutesUp, 0),
        slices.reduce((sum, { minutesTotal }) => sum + minutesTotal, 0),
      ]);

    test("counts each minute in which the server wrote and read, and each in which it did not as down", async () => {
      const clock = fakeClock();
      await using world = await start(dialect, { clock });
      const { status } = world.as(undefined);
      const check = selfCheck(world.server.app);
      const began = clock.now();
      const first = await status.getSla({});
      expect(first).toMatchObject({ targetPercent: 99.9, day: { uptimePercent: 100, minutesUp: 1, minutesTotal: 1 } });
      expect(timestampMs(first.sinceTime!)).toBe(began);
      for (let n = 0; n < 2; n++) {
        clock.advance(minute);
        await check();
      }
      clock.advance(10 * minute);
      await check();
      const { day, week, month } = await status.getSla({});
      for (const window of [day, week, month]) {
        expect(window).toMatchObject({ minutesUp: 4, minutesTotal: 13 });
        expect(window!.uptimePercent).toBeCloseTo((100 * 4) / 13, 9);
        expect(durationMs(window!.meanResponse!)).toBeGreaterThan(0);
      }
      expect(timeline(await status.getSla({}))).toEqual([4, 13, 4, 13]);
      clock.advance(24 * 60 * minute);
      await check();
      const next = await status.getSla({});
      expect(next.day).toMatchObject({ minutesUp: 1, minutesTotal: 1_440 });
      expect(next.week).toMatchObject({ minutesUp: 5, minutesTotal: 13 + 1_440 });
      expect(timeline(next).slice(2)).toEqual([5, 13 + 1_440]);
      const { hours, days } = next;
      expect([hours.length, hours.at(-1)!.minutesUp, days.at(-1)!.minutesUp]).toEqual([24, 1, 1]);
      const begins = hours.map(({ startTime }) => timestampMs(startTime!));
      expect(begins.every((ms, index) => ms % (60 * minute) === 0 && ms === begins[0]! + index * 60 * minute)).toBe(
        true,
      );
    });

    test("counts a minute whose check failed, at its first write or at its last, as down", async () => {
      const moved = fakeClock();
      // The server's own checks never come: whichever of them met the fault, or came too late for it, would be chance.
      const clock = { ...moved, after: () => ({ cancel() {} }) };
      await using world = await start(dialect, { clock });
      const { app } = world.server;
      const check = selfCheck(app);
      const refused =
        dialect === "sqlite"
          ? ([
              sql`create trigger broken before update on self_check begin select raise(abort, 'the disk is full'); end`,
              sql`drop trigger broken`,
            ] as const)
          : ([
              sql`alter table self_check add constraint broken check (took_us < 0) not valid`,
              sql`alter table self_check drop constraint broken`,
            ] as const);
      const away = [
        sql`alter table self_check rename to self_check_away`,
        sql`alter table self_check_away rename to self_check`,
      ] as const;
      for (const [fault, mend] of [away, refused]) {
        moved.advance(minute);
        await app.db.tx((tx) => tx.run(fault));
        await expect(check()).rejects.toThrow();
        await app.db.tx((tx) => tx.run(mend));
      }
      moved.advance(minute);
      await check();
      expect((await world.as(undefined).status.getSla({})).day).toMatchObject({ minutesUp: 2, minutesTotal: 4 });
      const rows = await app.db.query.all(sql`select took_us >= 0 as up from self_check order by minute`);
      expect(rows.map((row) => Boolean((row as { up: unknown }).up))).toEqual([true, false, true]);
    });

    test("counts the time in which the server was not running as down", async () => {
      const database = dialect === "postgres" ? await migratedDatabase() : undefined;
      const data = mkdtempSync(join(tmpdir(), "sla-"));
      try {
        const storage = { data, ...(database && { databaseUrl: database.url }) };
        const began = fakeClock().now();
        {
          await using _before = await start(dialect, { ...storage, clock: fakeClock(began) });
        }
        await using after = await start(dialect, { ...storage, clock: fakeClock(began + 60 * minute) });
        expect((await after.as(undefined).status.getSla({})).day).toMatchObject({ minutesUp: 2, minutesTotal: 61 });
      } finally {
        rmSync(data, { recursive: true, force: true });
        await database?.drop();
      }
    });

    test("keeps 31 days, and still counts what was down before them", async () => {
      const clock = fakeClock();
      await using world = await start(dialect, { clock });
      const check = selfCheck(world.server.app);
      clock.advance(40 * 24 * 60 * minute);
      await check();
      const { month } = await world.as(undefined).status.getSla({});
      expect(month).toMatchObject({ minutesUp: 1, minutesTotal: 43_200 });
      const row = await world.server.app.db.query.one<{ n: number }>(sql`select count(*) as n from self_check`);
      expect(row?.n).toBe(1);
    });
  });
});
