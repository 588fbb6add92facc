import { randomBytes } from "node:crypto";
import { durationFromMs, timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Role } from "../gen/moltwire/api/v1/access_pb.ts";
import { MarketplaceTaskState as State } from "../gen/moltwire/exchange/v1/marketplace_pb.ts";
import { TaskSide } from "../gen/moltwire/exchange/v1/marketplace_service_pb.ts";
import { sql } from "../src/db/db.ts";
import { keyDigest } from "../src/federation/key-text.ts";
import { parseMasterKey } from "../src/vault/master-key.ts";
import { serverProcess } from "./bus-fixtures/process.ts";
import { storage } from "./bus-fixtures/storage.ts";
import { credits, proofOf } from "./exchange-fixtures/ledger.ts";
import {
  accept,
  agentWith,
  available,
  closeBalanced,
  eventsAbout,
  get,
  listed,
  openMarket,
  post,
  reject,
  result,
  resultOf,
  stateOf,
  work,
} from "./exchange-fixtures/market.ts";
import {
  type Clients,
  clientsAt,
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

const hour = 3_600_000;
const day = 24 * hour;
const operatorKey = "market-crash-0123456789-abcdefghijklmnopqrstuvwxyz";
const program = new URL("bus-fixtures/server.ts", import.meta.url).pathname;

describe.each(dialects)("%s", (dialect) => {
  const clock = fakeClock();
  let world: World;
  let [home, away]: Org[] = [];
  let [creator, worker]: OrgAgent[] = [];
  beforeAll(async () => {
    ({ world, home, away, creator, worker } = await openMarket(dialect, clock));
  });
  afterAll(() => closeBalanced(world));

  /** Goes on until time has been written down. */
  const settledAs = (taskId: string, state: State) =>
    eventually(async () => {
      clock.advance(1_000);
      const row = await world.server.app.db.query.one<{ state: number }>(
        sql`select state from marketplace_task where task_id = ${taskId}`,
      );
      return row?.state === state;
    });
  const eventsOf = (by: Clients, taskId: string) => eventsAbout(world, by, taskId);
  describe("a rejected result", () => {
    test("opens the task again: to its worker at once, to others after the dispute window, to the worker no more after three", async () => {
      const [one, other] = [await away!.agent(), await away!.agent()];
      const { taskId } = await post(creator!.as, { disputeWindow: durationFromMs(hour) });
      for (let n = 1; n <= 3; n++) {
        await work(one.as, taskId, n);
        expect((await refusal(creator!.as.market.reviewTask({ taskId, verdict: 2 }))).metadata.field).toBe("reason");
        const { task } = await reject(creator!.as, taskId);
        expect(task).toMatchObject({ state: State.OPEN, workerAgentId: one.agentId, deliveries: n });
        expect(timestampMs(task!.openToAllTime!)).toBe(clock.now() + hour);
      }
      expect((await refusal(one.as.market.claimTask({ taskId }))).metadata.rejections).toBe("3");
      const kept = await refusal(other.as.market.claimTask({ taskId }));
      expect([kept.reason, kept.metadata.open_to_all_time]).toEqual([
        "FAILED_PRECONDITION",
        new Date(clock.now() + hour).toISOString(),
      ]);
      expect((await refusal(creator!.as.market.cancelTask({ taskId }))).metadata.open_to_all_time).toBeDefined();
      clock.advance(hour);
      expect((await refusal(one.as.market.disputeTask({ taskId, reason: "but" }))).metadata.state).toBe("OPEN");
      const { workerAgentId, openToAllTime } = await get(one.as, taskId);
      expect([workerAgentId, openToAllTime]).toEqual(["", undefined]);
      await work(other.as, taskId);
      await accept(creator!.as, taskId);
      expect(await available(other.as)).toBe(credits(5));
      expect((await eventsOf(one.as, taskId)).map(([, cause]) => cause)).toEqual(["REJECT", "REJECT", "REJECT"]);
    });

    test("opens it to everybody at once where there are no disputes", async () => {
      const { taskId } = await post(creator!.as, { disputeWindow: durationFromMs(0) });
      const other = await away!.agent();
      await work(worker!.as, taskId);
      await reject(creator!.as, taskId);
      expect((await refusal(worker!.as.market.disputeTask({ taskId, reason: "but" }))).metadata.state).toBe("OPEN");
      await other.as.market.claimTask({ taskId });
      expect(await eventsOf(worker!.as, taskId)).toEqual([["reviewed", "REJECT"]]);
      await creator!.as.market.cancelTask({ taskId });
      expect(await eventsOf(other.as, taskId)).toEqual([["expired", "CANCEL"]]);
    });

    test("can be disputed by its worker, and the operator divides the reward", async () => {
      const mine = await away!.agent();
      const before = await available(creator!.as);
      const { taskId } = await post(creator!.as);
      await work(mine.as, taskId);
      await reject(creator!.as, taskId);
      expect((await refusal(worker!.as.market.disputeTask({ taskId, reason: "I too" }))).metadata.required_party).toBe(
        "WORKER",
      );
      const { task } = await mine.as.market.disputeTask({ taskId, reason: "it is what was asked for" });
      expect(task!.state).toBe(State.DISPUTED);
      for (const act of [
        () => creator!.as.market.cancelTask({ taskId }),
        () => accept(creator!.as, taskId),
        () => mine.as.market.claimTask({ taskId }),
      ])
        expect((await refusal(act())).metadata.state).toBe("DISPUTED");
      expect((await refusal(creator!.as.market.settleDispute({ taskId, workerMicros: 0n }))).reason).toBe(
        "ROLE_REQUIRED",
      );
      expect(await listed(world.operator, { state: State.DISPUTED })).toEqual([taskId]);
      const disputed = await get(world.operator, taskId);
      expect(disputed.delivery).toMatchObject({ reason: "too long", dispute: "it is what was asked for" });
      expect(resultOf(disputed)).toBe("done");
      const settle = (workerMicros: bigint) =>
        world.operator.market.settleDispute({ taskId, workerMicros, note: "most of it" });
      expect((await refusal(settle(credits(5) + 1n))).metadata.field).toBe("worker_micros");
      const ends = await Promise.allSettled([settle(credits(3)), settle(credits(3)), settle(credits(2))]);
      expect(ends.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
      const settled = await get(mine.as, taskId);
      expect(settled).toMatchObject({ state: State.SETTLED, delivery: { settlement: "most of it" } });
      expect(await available(mine.as)).toBe(settled.paidMicros);
      expect(await available(creator!.as)).toBe(before - settled.paidMicros);
      expect(await available(home!.admin, taskId)).toBe(0n);
      const causes = ["REJECT", "DISPUTE", "SETTLE"];
      expect((await eventsOf(mine.as, taskId)).map(([, cause]) => cause)).toEqual(causes);
      const [audit] = (await world.operator.admin.listAuditEvents({ pageSize: 1 })).auditEvents;
      expect(audit).toMatchObject({
        method: "moltwire.exchange.v1.MarketplaceService/SettleDispute",
        resource: { task_id: taskId },
      });
    });
  });

  describe("time", () => {
    test("ends a claim: the task is open again at that instant, and another gets it", async () => {
      const other = await away!.agent();
      const { taskId } = await post(creator!.as, { claimTimeout: durationFromMs(hour) });
      const { task } = await worker!.as.market.claimTask({ taskId });
      expect(timestampMs(task!.claimExpireTime!)).toBe(clock.now() + hour);
      clock.advance(hour - 1);
      expect((await refusal(other.as.market.claimTask({ taskId }))).metadata.state).toBe("CLAIMED");
      clock.advance(1);
      expect(await get(creator!.as, taskId)).toMatchObject({ state: State.OPEN, workerAgentId: "" });
      expect((await refusal(worker!.as.market.deliverTask({ taskId, result: result(1) }))).reason).toBe(
        "FAILED_PRECONDITION",
      );
      await other.as.market.claimTask({ taskId });
      expect((await get(creator!.as, taskId)).workerAgentId).toBe(other.agentId);
      expect(await eventsOf(worker!.as, taskId)).toEqual([["expired", "RELEASE"]]);
      await creator!.as.market.cancelTask({ taskId });
    });

    test("ends a task at its deadline, open or claimed, and gives the reward back", async () => {
      const before = await available(creator!.as);
      const deadlineTime = timestampFromMs(clock.now() + hour);
      const requirements = ["what-nobody-has"];
      const [open, claimed] = [
        await post(creator!.as, { deadlineTime, requirements }),
        await post(creator!.as, { deadlineTime }),
      ];
      await worker!.as.market.claimTask({ taskId: claimed.taskId });
      expect(await available(creator!.as)).toBe(before - credits(10));
      clock.advance(hour);
      for (const { taskId } of [open, claimed]) {
        const task = await get(world.operator, taskId);
        expect([stateOf(task), timestampMs(task.stateTime!)]).toEqual(["EXPIRED", timestampMs(deadlineTime)]);
        expect(await listed(world.as(undefined))).not.toContain(taskId);
        const { reason, metadata } = await refusal(worker!.as.market.claimTask({ taskId }));
        expect([reason, metadata.state]).toEqual(["FAILED_PRECONDITION", "EXPIRED"]);
        await settledAs(taskId, State.EXPIRED);
      }
      expect(await available(creator!.as)).toBe(before);
      expect(await eventsOf(creator!.as, open.taskId)).toEqual([["expired", "EXPIRE"]]);
      expect(await eventsOf(worker!.as, claimed.taskId)).toEqual([["expired", "EXPIRE"]]);
      expect(await listed(creator!.as, { state: State.EXPIRED })).toEqual(
        expect.arrayContaining([open.taskId, claimed.taskId]),
      );
    });

    test("accepts a result that nobody reviewed in 7 days", async () => {
      const mine = await away!.agent();
      const { taskId } = await post(creator!.as, { deadlineTime: timestampFromMs(clock.now() + hour) });
      const { reviewDueTime } = await work(mine.as, taskId);
      expect(timestampMs(reviewDueTime!)).toBe(clock.now() + 7 * day);
      clock.advance(7 * day - 1);
      expect((await get(mine.as, taskId)).state).toBe(State.DELIVERED);
      clock.advance(1);
      expect(await get(mine.as, taskId)).toMatchObject({ state: State.COMPLETED, paidMicros: credits(5) });
      expect((await refusal(reject(creator!.as, taskId))).metadata.state ?? "COMPLETED").toBe("COMPLETED");
      await settledAs(taskId, State.COMPLETED);
      expect(await available(mine.as)).toBe(credits(5));
      expect((await get(mine.as, taskId)).delivery!.verdict).toBe(1);
      expect(await eventsOf(mine.as, taskId)).toEqual([["reviewed", "AUTO_ACCEPT"]]);
    });

    test("that has come for a task that cannot be paid out keeps no other waiting", async () => {
      const deadlineTime = timestampFromMs(clock.now() + hour);
      const [broken, fine] = [await post(creator!.as, { deadlineTime }), await post(creator!.as, { deadlineTime })];
      const { db } = world.server.app;
      const spoil = (by: bigint) =>
        db.tx((tx) =>
          tx.run(sql`update ledger_account set balance = balance + ${by} where account_id = ${broken.taskId}`),
        );
      await spoil(-1n);
      clock.advance(hour);
      await settledAs(fine.taskId, State.EXPIRED);
      expect(await available(home!.admin, broken.taskId)).toBe(credits(5) - 1n);
      await spoil(1n);
      await settledAs(broken.taskId, State.EXPIRED);
    });
  });

  test("what an agent that is gone is owed goes to its organisation", async () => {
    const org = await world.org();
    const [poster, doer] = [await agentWith(org, 20), await away!.agent()];
    const [paid, back] = [await post(poster.as), await post(poster.as)].map(({ taskId }) => taskId);
    await work(doer.as, paid!);
    await away!.admin.agents.deleteAgent({ agentId: doer.agentId });
    const before = await available(away!.admin);
    expect((await accept(org.admin, paid!, 5)).task!.state).toBe(State.COMPLETED);
    expect(await available(away!.admin)).toBe(before + credits(5));
    await org.admin.agents.deleteAgent({ agentId: poster.agentId });
    expect(await available(org.admin)).toBe(credits(990));
    await org.admin.market.cancelTask({ taskId: back! });
    expect(await available(org.admin)).toBe(credits(995));
  });

  test("a result that can be read no more is paid for all the same, and who reads it is told why", async () => {
    await using sealed = await start(dialect, { masterKeys: [parseMasterKey(randomBytes(32).toString("base64"))] });
    const [org, doing] = [await sealed.org(), await sealed.org()];
    const doer = await doing.agent();
    const [paid, disputed] = [await post(org.admin), await post(org.admin)].map(({ taskId }) => taskId);
    for (const taskId of [paid!, disputed!]) await work(doer.as, taskId);
    await reject(org.admin, disputed!);
    const { orgId } = org;
    const disable = (disabled: boolean) =>
      sealed.operator.organizations.updateOrganization({
        ...{ orgId, change: { disabled }, updateMask: { paths: ["disabled"] } },
      });
    await disable(true);
    await sealed.operator.maintenance.dropOrganizationKeys({ targetOrgId: orgId });
    await disable(false);
    expect((await accept(org.admin, paid!)).task!.state).toBe(State.COMPLETED);
    await doer.as.market.disputeTask({ taskId: disputed!, reason: "but" });
    await sealed.operator.market.settleDispute({ taskId: disputed!, workerMicros: credits(5) });
    expect(await available(doer.as)).toBe(credits(10));
    expect((await refusal(get(doer.as, paid!))).reason).toBe("KEY_DROPPED");
  });

  test("the platform keeps the fee that was set when the task was posted, rounded down", async () => {
    await using dear = await start(dialect, { marketplaceFeeBps: 1_000 });
    const org = await dear.org();
    const doer = await org.agent();
    const fees = () => available(dear.operator, "fees").catch(() => 0n);
    const { taskId, feeBasisPoints } = await post(org.admin, { rewardMicros: credits(5) });
    expect(feeBasisPoints).toBe(1_000);
    await work(doer.as, taskId);
    expect((await accept(org.admin, taskId)).task!.paidMicros).toBe(credits(4.5));
    expect([await available(doer.as), await fees()]).toEqual([credits(4.5), credits(0.5)]);
    const small = await post(org.admin, { rewardMicros: 9n });
    await work(doer.as, small.taskId);
    await accept(org.admin, small.taskId);
    expect([await available(doer.as), await fees()]).toEqual([credits(4.5) + 9n, credits(0.5)]);
    expect((await proofOf(dear.operator)).faults).toEqual([]);
  });

  test("a server that is killed while tasks are posted, claimed, delivered and accepted leaves each reward in one place", async () => {
    await using place = await storage(dialect);
    const options = JSON.stringify({ ...place.options, operatorKeyDigest: keyDigest(operatorKey) });
    const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
    let server = await serverProcess(program, [options]);
    try {
      const operator = clientsAt(server.url, operatorKey);
      const { orgId } = (await operator.organizations.createOrganization({ name: unique("crash") })).organization!;
      const { secret } = await operator.keys.createApiKey({ orgId, role: Role.ORG });
      let as = clientsAt(server.url, secret);
      const agentId = (await as.agents.registerAgent({ name: unique("a") })).agent!.agentId;
      let over = false;
      const lane = async () => {
        while (!over) {
          try {
            const { taskId } = await post(as, { rewardMicros: credits(1) });
            await as.market.claimTask({ taskId, agentId });
            await as.market.deliverTask({ taskId, agentId, result: result(1) });
            await accept(as, taskId);
          } catch {
            await sleep(20);
          }
        }
      };
      const lanes = Promise.all(Array.from({ length: 8 }, lane));
      for (let kill = 0; kill < 2; kill++) {
        await eventually(
          async () => (await available(as, agentId).catch(() => 0n)) >= credits(10 * (kill + 1)),
          240_000,
        );
        await server.kill();
        server = await serverProcess(program, [options]);
        as = clientsAt(server.url, secret);
      }
      over = true;
      await lanes;
      const proof = await proofOf(clientsAt(server.url, operatorKey));
      expect([proof.faults, proof.sumMicros]).toEqual([[], 0n]);
      const tasks = [];
      for (let pageToken = ""; ; ) {
        const page = await as.market.listTasks({ side: TaskSide.CREATOR, pageSize: 250, pageToken });
        tasks.push(...page.tasks);
        if ((pageToken = page.nextPageToken) === "") break;
      }
      const done = tasks.filter(({ state }) => state === State.COMPLETED);
      expect(await available(as, agentId)).toBe(credits(done.length));
      expect(await available(as)).toBe(credits(1_000 - tasks.length));
      for (const { taskId, state } of tasks)
        expect(await available(as, taskId)).toBe(state === State.COMPLETED ? 0n : credits(1));
    } finally {
      await server.kill();
    }
  }, 600_000);
});
