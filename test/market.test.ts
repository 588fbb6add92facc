import { durationFromMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { CollaborationSide } from "../gen/moltwire/directory/v1/directory_service_pb.ts";
import { Visibility } from "../gen/moltwire/directory/v1/profile_pb.ts";
import { TransactionKind } from "../gen/moltwire/exchange/v1/ledger_pb.ts";
import { ReviewVerdict, MarketplaceTaskState as State } from "../gen/moltwire/exchange/v1/marketplace_pb.ts";
import { TaskSide } from "../gen/moltwire/exchange/v1/marketplace_service_pb.ts";
import { sql } from "../src/db/db.ts";
import { walkLength } from "../src/exchange/market/list-store.ts";
import { findTask, insertTask } from "../src/exchange/market/store.ts";
import { credits } from "./exchange-fixtures/ledger.ts";
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
  work,
} from "./exchange-fixtures/market.ts";
import { type Clients, dialects, fakeClock, type Org, type OrgAgent, refusal, unique, type World } from "./harness.ts";

const hour = 3_600_000;
const day = 24 * hour;

describe.each(dialects)("%s", (dialect) => {
  const clock = fakeClock();
  let world: World;
  let [home, away]: Org[] = [];
  let [creator, worker]: OrgAgent[] = [];
  beforeAll(async () => {
    ({ world, home, away, creator, worker } = await openMarket(dialect, clock));
  });
  afterAll(() => closeBalanced(world));

  const eventsOf = (by: Clients, taskId: string) => eventsAbout(world, by, taskId);

  test("a reward goes from the creator into escrow, and when the result is accepted to the worker, in full", async () => {
    const [mine, other] = [await agentWith(home!, 20), await away!.agent()];
    const task = await post(mine.as, {
      ...{ description: "All of it", rewardMicros: credits(12.5), priority: 7, tags: ["urgent"], requirements: [] },
      estimatedEffort: durationFromMs(2 * hour),
    });
    expect(task).toMatchObject({
      ...{ taskId: expect.stringMatching(/^mkt_[0-9a-f]{32}$/), creatorAgentId: mine.agentId, state: State.OPEN },
      ...{ title: "Sum it up", rewardMicros: credits(12.5), feeBasisPoints: 0, priority: 7, deliveries: 0 },
    });
    expect([await available(mine.as), await available(home!.admin, task.taskId)]).toEqual([
      credits(7.5),
      credits(12.5),
    ]);
    const claimed = (await other.as.market.claimTask({ taskId: task.taskId })).task!;
    expect(claimed).toMatchObject({ state: State.CLAIMED, workerAgentId: other.agentId, workerOrgId: away!.orgId });
    await other.as.market.deliverTask({ taskId: task.taskId, result: result({ sum: 42 }) });
    expect(resultOf(await get(mine.as, task.taskId))).toEqual({ sum: 42 });
    const done = (await accept(mine.as, task.taskId, 4)).task!;
    expect(done).toMatchObject({ state: State.COMPLETED, paidMicros: credits(12.5), rating: 4 });
    expect([await available(other.as), await available(home!.admin, task.taskId)]).toEqual([credits(12.5), 0n]);
    const [line] = (await other.as.billing.listTransactions({})).transactions;
    expect(line).toMatchObject({
      ...{ kind: TransactionKind.MARKETPLACE_PAYMENT, amountMicros: credits(12.5), reference: task.taskId },
      counterpartyOrgId: home!.orgId,
    });
    expect(await eventsOf(mine.as, task.taskId)).toEqual([
      ["claimed", "CLAIM"],
      ["delivered", "DELIVER"],
    ]);
    expect(await eventsOf(other.as, task.taskId)).toEqual([["reviewed", "ACCEPT"]]);
    // 0.7 × 4 + 0.3 × 5.
    const stats = await other.as.status.getStats({});
    expect(stats).toMatchObject({ reputation: 4.3, marketplaceTasksWorked: 1n, creditsMicros: credits(12.5) });
    expect((await mine.as.status.getStats({})).marketplaceTasksPosted).toBe(1n);
    const { collaborations } = await other.as.directory.listCollaborations({ side: CollaborationSide.RECEIVED });
    expect(collaborations).toMatchObject([
      { agentId: mine.agentId, rating: 4, evidence: { case: "marketplaceTaskId", value: task.taskId } },
    ]);
  });

  test("who has too little posts nothing", async () => {
    const poor = await agentWith(home!, 1);
    const title = unique("dear");
    const refused = await refusal(post(poor.as, { title, rewardMicros: credits(1) + 1n }));
    expect(refused).toMatchObject({ code: "FailedPrecondition", reason: "INSUFFICIENT_CREDITS" });
    expect(await available(poor.as)).toBe(credits(1));
    expect(await listed(home!.admin, { text: title })).toEqual([]);
    // Nor do ten at once post more than there is.
    const posts = await Promise.allSettled(
      Array.from({ length: 10 }, () => post(poor.as, { title, rewardMicros: credits(0.3) })),
    );
    expect(posts.filter(({ status }) => status === "fulfilled")).toHaveLength(3);
    expect(await available(poor.as)).toBe(credits(0.1));
    expect(await listed(home!.admin, { text: title })).toHaveLength(3);
  });

  test("an administrator posts from the organisation's wallet, or for an agent from the agent's", async () => {
    const org = await world.org();
    const agent = await agentWith(org, 10);
    const own = await post(org.admin);
    expect([own.creatorOrgId, own.creatorAgentId]).toEqual([org.orgId, ""]);
    const forAgent = await post(org.admin, { agentId: agent.agentId });
    expect(forAgent.creatorAgentId).toBe(agent.agentId);
    expect([await available(org.admin), await available(agent.as)]).toEqual([credits(985), credits(5)]);
    for (const agentId of [worker!.agentId, "agt_none"])
      expect((await refusal(post(org.admin, { agentId }))).reason).toBe("NOT_FOUND");
    await org.admin.market.cancelTask({ taskId: own.taskId });
    await agent.as.market.cancelTask({ taskId: forAgent.taskId });
    expect([await available(org.admin), await available(agent.as)]).toEqual([credits(990), credits(10)]);
  });

  test("rewards that are negative, nothing or too many, and whatever else cannot be, are refused with the field named", async () => {
    const wrong: [Parameters<typeof post>[1], string][] = [
      ...[-1n, 0n, credits(1_000_000_000) + 1n, 2n ** 63n - 1n, -(2n ** 63n)].map(
        (rewardMicros): [Parameters<typeof post>[1], string] => [{ rewardMicros }, "reward_micros"],
      ),
      [{ title: "" }, "title"],
      [{ title: "x".repeat(257) }, "title"],
      [{ description: "x".repeat(5_001) }, "description"],
      [{ category: "Not Lower" }, "category"],
      [{ priority: 11 }, "priority"],
      [{ tags: Array.from({ length: 21 }, (_, n) => `t${n}`) }, "tags"],
      [{ requirements: [""] }, "requirements[0]"],
      [{ deadlineTime: timestampFromMs(clock.now()) }, "deadline_time"],
      [{ deadlineTime: timestampFromMs(clock.now() + 367 * day) }, "deadline_time"],
      [{ claimTimeout: durationFromMs(999) }, "claim_timeout"],
      [{ disputeWindow: durationFromMs(8 * day) }, "dispute_window"],
    ];
    for (const [init, field] of wrong) {
      const { code, metadata } = await refusal(post(creator!.as, init));
      expect([code, metadata.field]).toEqual(["InvalidArgument", field]);
    }
  });

  test("of 100 agents that claim a task at once one gets it", async () => {
    const { taskId } = await post(creator!.as);
    const agents = await Promise.all(Array.from({ length: 20 }, () => away!.agent()));
    const claims = Array.from({ length: 100 }, (_, n) => agents[n % agents.length]!.as.market.claimTask({ taskId }));
    const ends = await Promise.allSettled(claims);
    const won = ends.flatMap((end) => (end.status === "fulfilled" ? [end.value.task!.workerAgentId] : []));
    expect(won).toHaveLength(1);
    expect((await get(creator!.as, taskId)).workerAgentId).toBe(won[0]);
    const lost = await refusal(claims[ends.findIndex(({ status }) => status === "rejected")]!);
    expect([lost.reason, lost.metadata.state]).toEqual(["FAILED_PRECONDITION", "CLAIMED"]);
    await creator!.as.market.cancelTask({ taskId });
  });

  test("100 who accept at once pay once", async () => {
    const mine = await away!.agent();
    const { taskId } = await post(creator!.as);
    await work(mine.as, taskId);
    const ends = await Promise.allSettled(Array.from({ length: 100 }, () => accept(creator!.as, taskId, 5)));
    expect(ends.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
    expect([await available(mine.as), await available(home!.admin, taskId)]).toEqual([credits(5), 0n]);
    expect((await mine.as.billing.listTransactions({})).transactions).toHaveLength(1);
    expect((await mine.as.directory.getProfile({})).profile!.ratings).toBe(1n);
  });

  test("of an accept, a cancel and a rejection at once one happens, and the reward goes one way", async () => {
    const mine = await away!.agent();
    for (let n = 0; n < 5; n++) {
      const paidBefore = await available(mine.as).catch(() => 0n);
      const before = await available(creator!.as);
      const { taskId } = await post(creator!.as, { disputeWindow: durationFromMs(0) });
      await mine.as.market.claimTask({ taskId });
      await Promise.allSettled([
        mine.as.market.deliverTask({ taskId, result: result(1) }),
        creator!.as.market.cancelTask({ taskId }),
        accept(creator!.as, taskId),
        reject(creator!.as, taskId),
        creator!.as.market.cancelTask({ taskId }),
      ]);
      await accept(creator!.as, taskId).catch(() => {});
      await creator!.as.market.cancelTask({ taskId }).catch(() => {});
      const paid = (await available(mine.as).catch(() => 0n)) - paidBefore;
      const { state } = await get(creator!.as, taskId);
      expect([State.COMPLETED, State.CANCELED]).toContain(state);
      expect(paid).toBe(state === State.COMPLETED ? credits(5) : 0n);
      expect(await available(creator!.as)).toBe(before - paid);
    }
  });

  test("who claims must have been granted what is required, and may not be the creator or disabled", async () => {
    const [can, cannot] = [
      await away!.agent({ capabilities: ["sum", "read"] }),
      await away!.agent({ capabilities: ["sum"] }),
    ];
    await cannot.as.directory.updateProfile({
      change: { capabilities: ["read"] },
      updateMask: { paths: ["capabilities"] },
    });
    const { taskId } = await post(creator!.as, { requirements: ["sum", "read"] });
    const missing = await refusal(cannot.as.market.claimTask({ taskId }));
    expect([missing.reason, missing.metadata.missing]).toEqual(["FAILED_PRECONDITION", "read"]);
    expect((await refusal(creator!.as.market.claimTask({ taskId }))).error.rawMessage).toMatch(/its own/);
    expect((await refusal(can.as.market.claimTask({ taskId, agentId: cannot.agentId }))).reason).toBe("NOT_FOUND");
    expect((await refusal(away!.admin.market.claimTask({ taskId }))).metadata.field).toBe("agent_id");
    await away!.admin.agents.updateAgent({
      agentId: can.agentId,
      change: { disabled: true },
      updateMask: { paths: ["disabled"] },
    });
    expect((await refusal(can.as.market.claimTask({ taskId }))).error.rawMessage).toMatch(/disabled/);
    await away!.admin.agents.updateAgent({ agentId: can.agentId, change: {}, updateMask: { paths: ["disabled"] } });
    // An administrator claims for the agent it names.
    expect((await away!.admin.market.claimTask({ taskId, agentId: can.agentId })).task!.workerAgentId).toBe(
      can.agentId,
    );
    for (const id of ["mkt_none", taskId.replace(/.{6}$/, "ffffff")])
      expect((await refusal(can.as.market.claimTask({ taskId: id }))).reason).toBe("NOT_FOUND");
    await creator!.as.market.cancelTask({ taskId });
  });

  test("an agent has at most 100 claims at once", async () => {
    const [rich, busy] = [await agentWith(home!, 1), await away!.agent()];
    const tasks = await Promise.all(Array.from({ length: 101 }, () => post(rich.as, { rewardMicros: 1n })));
    const ends = await Promise.allSettled(tasks.map(({ taskId }) => busy.as.market.claimTask({ taskId })));
    expect(ends.filter(({ status }) => status === "fulfilled")).toHaveLength(100);
    const open = tasks[ends.findIndex(({ status }) => status === "rejected")]!;
    expect((await refusal(busy.as.market.claimTask({ taskId: open.taskId }))).reason).toBe("QUOTA_EXCEEDED");
  });

  test("only who claimed a task delivers it, at most 50 KB", async () => {
    const { taskId } = await post(creator!.as);
    const other = await away!.agent();
    const early = await refusal(worker!.as.market.deliverTask({ taskId, result: result(1) }));
    expect([early.reason, early.metadata.state]).toEqual(["FAILED_PRECONDITION", "OPEN"]);
    await worker!.as.market.claimTask({ taskId });
    const foreign = await refusal(other.as.market.deliverTask({ taskId, result: result(1) }));
    expect(foreign).toMatchObject({ code: "PermissionDenied", reason: "MARKETPLACE_PARTY_REQUIRED" });
    expect(foreign.metadata.required_party).toBe("WORKER");
    // An administrator names agents of its own organisation, and no other's, also if it knows their ids.
    const named = { taskId, agentId: worker!.agentId };
    for (const administrator of [home!.admin, (await world.org()).admin]) {
      const delivered = await refusal(administrator.market.deliverTask({ ...named, result: result(1) }));
      expect([delivered.reason, delivered.metadata.required_party]).toEqual(["MARKETPLACE_PARTY_REQUIRED", "WORKER"]);
      const disputed = await refusal(administrator.market.disputeTask({ ...named, reason: "no" }));
      expect([disputed.reason, disputed.metadata.required_party]).toEqual(["MARKETPLACE_PARTY_REQUIRED", "WORKER"]);
    }
    // Two quotes.
    const most = "x".repeat(51_198);
    const tooMuch = await refusal(worker!.as.market.deliverTask({ taskId, result: result(`${most}x`) }));
    expect([tooMuch.reason, tooMuch.metadata]).toMatchObject([
      "PAYLOAD_TOO_LARGE",
      { field: "result", actual: "51201" },
    ]);
    const bytes = { kind: { case: "data", value: new Uint8Array(51_201) } } as const;
    expect((await refusal(worker!.as.market.deliverTask({ taskId, result: bytes }))).code).toBe("InvalidArgument");
    await worker!.as.market.deliverTask({ taskId, result: result(most) });
    expect(resultOf(await get(creator!.as, taskId))).toBe(most);
    expect((await refusal(worker!.as.market.deliverTask({ taskId, result: result(2) }))).metadata.state).toBe(
      "DELIVERED",
    );
    expect((await refusal(accept(worker!.as, taskId))).metadata.required_party).toBe("CREATOR");
    expect((await refusal(accept(other.as, taskId))).metadata.required_party).toBe("CREATOR");
    expect((await refusal(other.as.market.cancelTask({ taskId }))).metadata.required_party).toBe("CREATOR");
    await accept(creator!.as, taskId);
  });

  test("a result is seen by creator and worker and the administrators of theirs, and by nobody else in no answer", async () => {
    const secret = unique("secret");
    const [sibling, colleague] = [await home!.agent(), await away!.agent()];
    const { taskId } = await post(creator!.as);
    await work(worker!.as, taskId, secret);
    for (const by of [creator!.as, worker!.as, home!.admin, away!.admin])
      expect(resultOf(await get(by, taskId))).toBe(secret);
    for (const by of [sibling.as, colleague.as, (await world.org()).admin]) {
      const { state, delivery } = await get(by, taskId);
      expect([state, delivery]).toEqual([State.DELIVERED, undefined]);
      const refused = await refusal(reject(by, taskId, secret));
      expect(JSON.stringify(refused.metadata) + refused.error.rawMessage).not.toContain(secret);
    }
    await reject(creator!.as, taskId, `not ${secret}`);
    // The operator sees that there is one, from wherever it looks, and also what it has done for one of them.
    const { market } = world.operator;
    const looks = [{}, { orgId: home!.orgId }, { orgId: away!.orgId }].map((by) => market.getTask({ ...by, taskId }));
    const { task: other } = await market.postTask({ orgId: home!.orgId, title: "x", category: "x", rewardMicros: 1n });
    const asWorker = { orgId: away!.orgId, agentId: worker!.agentId, taskId: other!.taskId };
    await market.claimTask(asWorker);
    const done = await market.deliverTask({ ...asWorker, result: result(secret) });
    const undone = await market.reviewTask({
      ...{ orgId: home!.orgId, taskId: other!.taskId, verdict: ReviewVerdict.REJECTED, reason: secret },
    });
    for (const { task } of [...(await Promise.all(looks)), done, undone]) {
      expect(task!.delivery).toMatchObject({ number: 1, workerAgentId: worker!.agentId, reason: "" });
      expect(textOf(task!)).not.toContain(secret);
    }
    // Of what its own organisation has offered it is the creator.
    await world.operator.billing.topUp({ amountMicros: 1n });
    const own = (await market.postTask({ title: "x", category: "x", rewardMicros: 1n })).task!;
    await work(worker!.as, own.taskId, "theirs");
    expect(resultOf(await get(world.operator, own.taskId))).toBe("theirs");
    expect((await get(worker!.as, taskId)).delivery).toMatchObject({ number: 1, reason: `not ${secret}`, verdict: 2 });
    clock.advance(day);
    // Who does it next sees nothing of it, and the worker before nothing of theirs.
    await colleague.as.market.claimTask({ taskId });
    expect((await get(colleague.as, taskId)).delivery).toBeUndefined();
    await colleague.as.market.deliverTask({ taskId, result: result("other") });
    expect([resultOf(await get(worker!.as, taskId)), resultOf(await get(colleague.as, taskId))]).toEqual([
      secret,
      "other",
    ]);
    expect(resultOf(await get(creator!.as, taskId))).toBe("other");
    await accept(creator!.as, taskId);
    const all = [State.OPEN, State.COMPLETED, State.DELIVERED];
    for (const by of [world.as(undefined), sibling.as, creator!.as, worker!.as, world.operator])
      for (const state of all)
        expect(JSON.stringify((await by.market.listTasks({ state })).tasks.map(textOf))).not.toContain(secret);
  });
  const textOf = (task: object) =>
    JSON.stringify(task, (_key, it: unknown) => (typeof it === "bigint" ? String(it) : it));

  test("parties are shown to one another, to their own, and to others as the directory shows them", async () => {
    const [shy, open] = [await agentWith(home!, 10), await agentWith(home!, 10)];
    const show = (agent: OrgAgent, visibility: Visibility) =>
      agent.as.directory.updateProfile({ change: { visibility }, updateMask: { paths: ["visibility"] } });
    await show(shy, Visibility.PRIVATE);
    await show(open, Visibility.PUBLIC);
    const [hidden, seen] = [await post(shy.as), await post(open.as)];
    const sibling = await home!.agent();
    const whoFor = async (by: Clients, { taskId }: { taskId: string }) => {
      const { tasks } = await by.market.listTasks({ pageSize: 250 });
      const task = tasks.find((one) => one.taskId === taskId)!;
      return [task.creatorOrgId, task.creatorAgentId];
    };
    for (const by of [world.as(undefined), worker!.as, away!.admin]) {
      expect(await whoFor(by, hidden)).toEqual(["", ""]);
      expect(await whoFor(by, seen)).toEqual([home!.orgId, open.agentId]);
    }
    expect(await whoFor(sibling.as, hidden)).toEqual(["", ""]);
    for (const by of [shy.as, home!.admin, world.operator])
      expect(await whoFor(by, hidden)).toEqual([home!.orgId, shy.agentId]);
    const { task } = await worker!.as.market.claimTask({ taskId: hidden.taskId });
    expect([task!.creatorOrgId, task!.creatorAgentId]).toEqual([home!.orgId, shy.agentId]);
    expect(await get(shy.as, hidden.taskId)).toMatchObject({ workerAgentId: worker!.agentId });
    expect(await get(sibling.as, hidden.taskId)).toMatchObject({
      workerAgentId: "",
      workerOrgId: "",
      creatorAgentId: "",
    });
    await shy.as.market.cancelTask({ taskId: hidden.taskId });
    await open.as.market.cancelTask({ taskId: seen.taskId });
  });

  describe("lists", () => {
    test("are everybody's, by state, category, tag, reward and words, page by page, newest first", async () => {
      const org = await world.org();
      const mark = unique("m").replace("-", "");
      const at = { category: mark, tags: [mark] };
      const [cheap, dear, claimed] = [
        await post(org.admin, { ...at, title: "Translate a poem", rewardMicros: 1n }),
        await post(org.admin, { ...at, title: "Résumé of a book", tags: [mark, "b/w"], rewardMicros: credits(9) }),
        await post(org.admin, { ...at, description: "poems, too" }),
      ].map(({ taskId }) => taskId);
      await worker!.as.market.claimTask({ taskId: claimed! });
      const by = world.as(undefined);
      const find = (request: Parameters<typeof listed>[1]) => listed(by, { category: mark, ...request });
      expect(await find({})).toEqual([dear, cheap]);
      expect(await find({ state: State.CLAIMED })).toEqual([claimed]);
      expect(await find({ tag: "b/w" })).toEqual([dear]);
      expect(await find({ tag: "b" })).toEqual([]);
      expect(await find({ minRewardMicros: 2n })).toEqual([dear]);
      expect(await find({ text: "POEM" })).toEqual([cheap]);
      expect(await find({ text: "poe", state: State.CLAIMED })).toEqual([claimed]);
      expect(await find({ text: "resume book", tag: mark })).toEqual([dear]);
      expect(await find({ text: "resume poem" })).toEqual([]);
      expect(await listed(by, { tag: mark })).toEqual([dear, cheap]);
      expect(await listed(by, { text: mark, minRewardMicros: 1n })).toEqual([dear, cheap]);
      const first = await by.market.listTasks({ category: mark, pageSize: 1 });
      const second = await by.market.listTasks({ category: mark, pageSize: 1, pageToken: first.nextPageToken });
      expect([...first.tasks, ...second.tasks].map(({ taskId }) => taskId)).toEqual([dear, cheap]);
      expect(second.nextPageToken).toBe("");
      const other = await refusal(by.market.listTasks({ pageSize: 1, pageToken: first.nextPageToken }));
      expect(other.reason).toBe("INVALID_PAGE_TOKEN");
      expect((await refusal(by.market.listTasks({ text: "?!" }))).metadata.field).toBe("text");
      expect((await refusal(by.market.listTasks({ text: "a ".repeat(11) }))).metadata.field).toBe("text");
      expect((await refusal(by.market.listTasks({ side: TaskSide.CREATOR }))).metadata.field).toBe("side");
      expect((await refusal(by.market.getTask({ taskId: cheap! }))).reason).toBe("KEY_MISSING");
      const update = (disabled: boolean) =>
        world.operator.organizations.updateOrganization({
          orgId: org.orgId,
          change: { disabled },
          updateMask: { paths: ["disabled"] },
        });
      await update(true);
      expect(await find({})).toEqual([]);
      expect((await refusal(creator!.as.market.getTask({ taskId: cheap! }))).reason).toBe("NOT_FOUND");
      expect((await get(worker!.as, claimed!)).state).toBe(State.CLAIMED);
      await update(false);
    });

    test("show one's own tasks, on either side, in every state", async () => {
      const org = await world.org();
      const [poster, doer] = [await agentWith(org, 20), await org.agent()];
      const [own, ended, byOrg] = [await post(poster.as), await post(poster.as), await post(org.admin)].map(
        ({ taskId }) => taskId,
      );
      await work(doer.as, ended!);
      await accept(poster.as, ended!);
      await doer.as.market.claimTask({ taskId: byOrg! });
      expect(await listed(poster.as, { side: TaskSide.CREATOR })).toEqual([ended, own]);
      expect(await listed(poster.as, { side: TaskSide.CREATOR, state: State.OPEN })).toEqual([own]);
      expect(await listed(poster.as, { side: TaskSide.WORKER })).toEqual([]);
      expect(await listed(doer.as, { side: TaskSide.WORKER })).toEqual([byOrg, ended]);
      expect(await listed(org.admin, { side: TaskSide.CREATOR })).toEqual([byOrg, ended, own]);
      expect(await listed(org.admin, { side: TaskSide.WORKER, agentId: doer.agentId })).toEqual([byOrg, ended]);
      expect((await refusal(poster.as.market.listTasks({ side: TaskSide.WORKER, agentId: doer.agentId }))).reason).toBe(
        "NOT_FOUND",
      );
      expect(await listed(world.operator, { side: TaskSide.CREATOR, orgId: org.orgId })).toEqual([byOrg, ended, own]);
    });
  });

  test("one task that fits among more than a page looks at is found by going on", async () => {
    const dear = await post(creator!.as, { rewardMicros: credits(50) });
    const { db } = world.server.app;
    const row = (await findTask(db.query, dear.taskId))!;
    // Of the lists alone: nothing is paid for them.
    await db.tx(async (tx) => {
      for (let n = 0; n < walkLength + 100; n++)
        await insertTask(tx, { ...row, task_id: `mkt_many${n}`, reward: 1, org_id: away!.orgId }, "");
    });
    const wish = { minRewardMicros: credits(50) };
    const first = await worker!.as.market.listTasks(wish);
    expect([first.tasks, first.nextPageToken]).toEqual([[], expect.stringMatching(/./)]);
    const second = await worker!.as.market.listTasks({ ...wish, pageToken: first.nextPageToken });
    expect(second.tasks.map(({ taskId }) => taskId)).toEqual([dear.taskId]);
    await db.tx((tx) => tx.run(sql`delete from marketplace_task where org_id = ${away!.orgId} and reward = 1`));
    await creator!.as.market.cancelTask({ taskId: dear.taskId });
  });

  test("a repeated call with the same idempotency key claims, delivers and posts once", async () => {
    const headers = { "idempotency-key": unique("key") };
    const before = await available(creator!.as);
    const wish = { title: "once", category: "writing", rewardMicros: credits(1) };
    const [first, again] = [
      await creator!.as.market.postTask(wish, { headers }),
      await creator!.as.market.postTask(wish, { headers }),
    ];
    expect(again).toEqual(first);
    expect(await available(creator!.as)).toBe(before - credits(1));
    const { taskId } = first.task!;
    const claim = () => worker!.as.market.claimTask({ taskId }, { headers });
    expect(await claim()).toEqual(await claim());
    await creator!.as.market.cancelTask({ taskId });
  });
});
