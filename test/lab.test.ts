import { durationMs } from "@bufbuild/protobuf/wkt";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Role } from "../gen/moltwire/api/v1/access_pb.ts";
import { TraceEventKind } from "../gen/moltwire/bus/v1/trace_pb.ts";
import { Pattern, PatternSchema, ScenarioEventKind, ScenarioState } from "../gen/moltwire/lab/v1/scenario_pb.ts";
import { keyDigest } from "../src/federation/key-text.ts";
import { serverProcess } from "./bus-fixtures/process.ts";
import { storage } from "./bus-fixtures/storage.ts";
import { clientsAt, dialects, eventually, type Org, refusal, start, type World } from "./harness.ts";
import {
  newScenario,
  patterns,
  play,
  rowsByOrganization,
  runToEnd,
  violationsIn,
  watchToEnd,
} from "./lab-fixtures/lab.ts";

type Results = Awaited<ReturnType<typeof play>>;
const { RUNNING, SUCCEEDED, FAILED, CANCELED, ABORTED, CREATED } = ScenarioState;
const named = (pattern: Pattern): string => PatternSchema.value[pattern]!.localName;
const endless = { pattern: Pattern.CONSENSUS, agentCount: 2, timeoutS: 300 } as const;
const stoppedKey = "lab-stopped-0123456789-abcdefghijklmnopqrstuvwxyz";
const unknownId = `scn_${"0".repeat(32)}`;

describe.each(dialects)("%s", (dialect) => {
  let world: World;
  let org: Org;
  /** A server at which an agent has two calls a minute: no run comes to its end there. */
  let busy: World;
  let occupied: Org;
  beforeAll(async () => {
    world = await start(dialect);
    org = await world.org();
    busy = await start(dialect, { rateLimit: 2 });
    occupied = await busy.org();
  });
  afterAll(async () => {
    await world[Symbol.asyncDispose]();
    await busy[Symbol.asyncDispose]();
  });
  /** Until nothing of a run at the busy server is left. */
  const gone = (scenarioId: string) =>
    eventually(async () => {
      const { scenarios } = await occupied.admin.scenarios.listScenarios({ pageSize: 250 });
      return !scenarios.find((one) => one.scenarioId === scenarioId)!.cleaning;
    });
  const stateOf = async (scenarioId: string) => {
    const { scenarios } = await org.admin.scenarios.listScenarios({ pageSize: 250 });
    return scenarios.find((one) => one.scenarioId === scenarioId)!;
  };

  test.each(patterns.map((pattern) => [named(pattern), pattern] as const))(
    "%s is played for real and succeeds: its properties hold, all agents come to their end, and there is something measured",
    async (_name, pattern) => {
      const results = await play(org.admin, { pattern, agentCount: 5, seed: 11n });
      expect([results.reason, violationsIn(results)]).toEqual(["", []]);
      expect(results).toMatchObject({ state: SUCCEEDED, run: 1, faultCount: 0 });
      expect(results.participants.map(({ completed }) => completed)).toEqual(Array(5).fill(true));
      expect(results.safety.length).toBeGreaterThanOrEqual(2);
      expect(results.measures.latency_max_ms).toBeGreaterThan(0);
      expect(results.participants.reduce((sum, { calls }) => sum + calls, 0)).toBe(results.measures.calls);
    },
  );

  test("what the patterns measure is what they did: terms, one decision, all jobs evenly, all messages, the lowest bid", async () => {
    const of = (pattern: Pattern) => play(org.admin, { pattern, agentCount: 6, seed: 5n });
    const election = await of(Pattern.LEADER_ELECTION);
    expect(election.measures.terms).toBeGreaterThanOrEqual(3);
    const consensus = await of(Pattern.CONSENSUS);
    expect(consensus.measures).toMatchObject({ decided: 6 });
    const balancing = await of(Pattern.LOAD_BALANCING);
    expect(balancing.measures).toMatchObject({ jobs: 60, completed: 60 });
    expect(balancing.measures.deviation).toBeLessThanOrEqual(0.2);
    const fanout = await of(Pattern.PUB_SUB_FANOUT);
    expect(fanout.measures).toMatchObject({ published: 20, arrived: 100, delivery_rate: 1 });
    const auction = await of(Pattern.TASK_AUCTION);
    const bids = Object.values(auction.plan!.choices).map(Number);
    expect(auction.measures).toMatchObject({ bids: 5, winning_bid: Math.min(...bids) });
  });

  test.each(patterns.map((pattern) => [named(pattern), pattern] as const))(
    "%s with a twentieth of all calls and messages lost, delays, crashes and a partition: nothing unsafe, and the same seed gives the same",
    async (_name, pattern) => {
      const wish = {
        pattern,
        agentCount: 5,
        seed: 42n,
        faults: { drop: 0.05, delay: 0.1, crash: 0.3, partition: 0.5 },
      };
      // Of an organisation of its own: two runs at once are what one may have.
      const { admin } = await world.org();
      const [one, other] = (await Promise.all([play(admin, wish), play(admin, wish)])) as [Results, Results];
      expect([...violationsIn(one), ...violationsIn(other)]).toEqual([]);
      expect(one.plan).toEqual(other.plan);
      expect(one.plan!.faults.length).toBeGreaterThan(0);
      expect(one.faultCount).toBeGreaterThan(0);
      // Who takes part for so long as to crash depends on time; nobody else does.
      const planned = one.plan!.faults.flatMap((fault) => /^crash\/(\d+) /.exec(fault)?.[1] ?? []).map(Number);
      for (const { agent, crashes } of [...one.participants, ...other.participants])
        if (crashes > 0) expect(planned).toContain(agent);
    },
  );

  test("where nothing depends on time, two runs of one seed meet the very same faults", async () => {
    const wish = { pattern: Pattern.CONSENSUS, agentCount: 6, seed: 8n, faults: { drop: 0.1, delay: 0.2 } };
    const [one, other] = [await play(org.admin, wish), await play(org.admin, wish)];
    expect(one.faults.length).toBeGreaterThan(5);
    expect(one.faults).toEqual(other.faults);
    const another = await play(org.admin, { ...wish, seed: 9n });
    expect(another.faults).not.toEqual(one.faults);
    expect(another.plan).not.toEqual(one.plan);
  });

  test("the events tell a run from its beginning to its end, in order, also to who resumes in the middle", async () => {
    const { scenarioId } = await newScenario(org.admin, { pattern: Pattern.CONSENSUS, agentCount: 3 });
    const watching = watchToEnd(org.admin, scenarioId);
    await org.admin.scenarios.runScenario({ scenarioId });
    const events = await watching;
    expect(events.map(({ sequence }) => Number(sequence))).toEqual(events.map((_, n) => n + 1));
    expect(events[0]!.kind).toBe(ScenarioEventKind.STARTED);
    expect(events[1]!.kind).toBe(ScenarioEventKind.PLAYING);
    expect(events.at(-1)!.kind).toBe(ScenarioEventKind.ENDED);
    expect(events.filter(({ kind }) => kind === ScenarioEventKind.AGENT_ENDED)).toHaveLength(3);
    const rest = [];
    for await (const { event } of org.admin.scenarios.watchScenario({ scenarioId, afterSequence: events[2]!.sequence }))
      if (event.case === "scenarioEvent") rest.push(event.value);
    expect(rest).toEqual(events.slice(3));
    // Another run goes on counting, and what was told of the one before is gone.
    await runToEnd(org.admin, scenarioId);
    const second = await watchToEnd(org.admin, scenarioId);
    expect(second[0]!.sequence).toBe(events.at(-1)!.sequence + 1n);
    expect(new Set(second.map(({ run }) => run))).toEqual(new Set([2]));
  });

  test("a run leaves its trace in the caller's organisation, and nothing else anywhere: no agent, key, message, memory, job or row", async () => {
    const before = await rowsByOrganization(world.server.app.db);
    const organizations = new Set(Object.keys(before).map((name) => name.split(" ")[0]));
    for (const pattern of patterns) {
      const { scenarioId } = await newScenario(org.admin, {
        pattern,
        agentCount: 3,
        faults: { drop: 0.1, crash: 0.5 },
      });
      await runToEnd(org.admin, scenarioId);
      expect((await stateOf(scenarioId)).cleaning).toBe(false);
      const { traceId } = await stateOf(scenarioId);
      await world.settled();
      const { events } = await org.admin.traces.getTrace({ traceId });
      expect(events.map(({ kind, details }) => [kind, details!.state])).toEqual([
        [TraceEventKind.SCENARIO, "RUNNING"],
        [TraceEventKind.SCENARIO, expect.stringMatching(/^(SUCCEEDED|FAILED)$/)],
      ]);
    }
    const after = await rowsByOrganization(world.server.app.db);
    const left = Object.keys(after).filter((name) => !organizations.has(name.split(" ")[0]!));
    expect(left).toEqual([]);
    const grown = Object.keys(after).filter((name) => after[name] !== before[name]);
    const own = ["audit_event", "audit_head", "lab_scenario", "lab_event", "trace", "trace_event"];
    for (const name of grown) expect(own).toContain(name.split(" ")[1]);
    expect(
      (await world.operator.organizations.listOrganizations({ pageSize: 250 })).organizations.map(({ name }) => name),
    ).not.toContainEqual(expect.stringMatching(/^org-[0-9a-f]{32}$/));
  });

  test("a canceled run is CANCELED at once, its stream ends, and a moment later nothing of it is left", async () => {
    const { db } = busy.server.app;
    const before = await rowsByOrganization(db);
    const scenario = await newScenario(occupied.admin, { ...endless, agentCount: 10 });
    const { scenarioId } = scenario;
    await occupied.admin.scenarios.runScenario({ scenarioId });
    const watching = watchToEnd(occupied.admin, scenarioId);
    const newcomers = async () =>
      Object.keys(await rowsByOrganization(db)).filter(
        (name) => !name.startsWith(`${occupied.orgId} `) && !(name in before),
      );
    await eventually(async () => (await newcomers()).some((name) => name.endsWith(" relay_message")));
    const canceled = await occupied.admin.scenarios.cancelScenario({ scenarioId });
    expect(canceled.scenario).toMatchObject({ state: CANCELED, cleaning: true });
    expect((await watching).at(-1)).toMatchObject({ kind: ScenarioEventKind.ENDED, message: "the run was canceled" });
    await gone(scenarioId);
    expect(await newcomers()).toEqual([]);
    const { results } = await occupied.admin.scenarios.getScenarioResults({ scenarioId });
    expect(results).toMatchObject({ state: CANCELED, run: 1, safety: [], reason: "it was canceled" });
    expect(await refusal(occupied.admin.scenarios.cancelScenario({ scenarioId }))).toMatchObject({
      reason: "FAILED_PRECONDITION",
      metadata: { state: "CANCELED" },
    });
  });

  test("the calls of the agents are limited as anybody's; a run whose time is over fails and says so, with what was seen until then", async () => {
    const { scenarioId } = await newScenario(occupied.admin, { ...endless, timeoutS: 5 });
    const results = await runToEnd(occupied.admin, scenarioId);
    expect(results).toMatchObject({
      state: FAILED,
      reason: "the time of 5 s was over before all agents had come to their end",
    });
    expect(violationsIn(results)).toEqual([]);
    expect(results.participants.map(({ completed }) => completed)).toEqual([false, false]);
    expect(durationMs(results.duration!)).toBeGreaterThan(4_900);
    // Nobody calls again before there is room: what was let in, and one that was refused.
    for (const { calls } of results.participants) expect(calls).toBeLessThanOrEqual(4);
    const headers = { authorization: `Bearer ${busy.operatorKey}` };
    const told = await (await fetch(`${busy.url}/metrics`, { headers })).text();
    expect(told).toMatch(/^moltwire_rpc_errors_total\{reason="RATE_LIMITED"\} [1-9]/m);
  });

  test("where everything is lost nobody gets anywhere, and the run fails soon instead of spinning", async () => {
    const lost = async (pattern: Pattern) => {
      const { admin } = await world.org();
      const results = await play(admin, { pattern, agentCount: 3, timeoutS: 300, faults: { drop: 1 } });
      expect([named(pattern), results.state, violationsIn(results)]).toEqual([named(pattern), FAILED, []]);
      expect(results.measures.calls).toBeLessThan(200);
      expect(results.reason).not.toMatch(/^the time of/);
    };
    await Promise.all(patterns.map(lost));
  });

  test("two runs of an organisation at once, and not a third; another organisation is not in the way", async () => {
    const ids = await Promise.all([1, 2, 3].map(async () => (await newScenario(occupied.admin, endless)).scenarioId));
    const { scenarios } = occupied.admin;
    const begun = await Promise.allSettled(ids.map((scenarioId) => scenarios.runScenario({ scenarioId })));
    expect(begun.filter(({ status }) => status === "fulfilled")).toHaveLength(2);
    const third = ids.find((_, n) => begun[n]!.status === "rejected")!;
    expect(await refusal(scenarios.runScenario({ scenarioId: third }))).toMatchObject({
      ...{ code: "ResourceExhausted", reason: "QUOTA_EXCEEDED" },
      metadata: { resource: "running_scenarios", limit: "2" },
    });
    const other = await busy.org();
    const theirs = await newScenario(other.admin, endless);
    await other.admin.scenarios.runScenario({ scenarioId: theirs.scenarioId });
    await other.admin.scenarios.cancelScenario({ scenarioId: theirs.scenarioId });
    const running = ids.filter((id) => id !== third);
    expect(await refusal(scenarios.runScenario({ scenarioId: running[0]! }))).toMatchObject({
      ...{ reason: "FAILED_PRECONDITION", metadata: { state: "RUNNING" } },
    });
    for (const scenarioId of running) await scenarios.cancelScenario({ scenarioId });
    for (const scenarioId of running) await gone(scenarioId);
    await scenarios.runScenario({ scenarioId: third });
    await scenarios.cancelScenario({ scenarioId: third });
    await gone(third);
  });

  test("a server takes eight runs at once, and says when to come again", async () => {
    const parties = await Promise.all([1, 2, 3, 4, 5].map(() => busy.org()));
    const begun: (() => Promise<unknown>)[] = [];
    for (const { admin } of parties.slice(0, 4))
      for (const { scenarioId } of [await newScenario(admin, endless), await newScenario(admin, endless)]) {
        await admin.scenarios.runScenario({ scenarioId });
        begun.push(() => admin.scenarios.cancelScenario({ scenarioId }));
      }
    const ninth = await newScenario(parties[4]!.admin, endless);
    const refused = await refusal(parties[4]!.admin.scenarios.runScenario({ scenarioId: ninth.scenarioId }));
    expect(refused).toMatchObject({ code: "Unavailable", reason: "OVERLOADED" });
    for (const cancel of begun) await cancel();
    await eventually(() =>
      parties[4]!.admin.scenarios.runScenario({ scenarioId: ninth.scenarioId }).catch(() => undefined),
    );
  });

  test("a server that stops ends its runs as ABORTED and leaves nothing of them", async () => {
    await using place = await storage(dialect);
    const options = { ...place.options, rateLimit: 2, operatorKeyDigest: keyDigest(stoppedKey) };
    const first = await start(dialect, options);
    const { scenarioId } = await newScenario(first.as(stoppedKey), endless);
    await first.as(stoppedKey).scenarios.runScenario({ scenarioId });
    await first[Symbol.asyncDispose]();
    await using second = await start(dialect, options);
    const [scenario] = (await second.as(stoppedKey).scenarios.listScenarios({})).scenarios;
    expect(scenario).toMatchObject({ scenarioId, state: ABORTED, cleaning: false });
    const organizations = Object.keys(await rowsByOrganization(second.server.app.db)).map((name) => name.split(" ")[0]);
    expect(new Set(organizations)).toEqual(new Set([second.server.homeOrgId]));
  });

  test("a run that is asked for again with its idempotency key is one run", async () => {
    const { scenarioId } = await newScenario(org.admin, { pattern: Pattern.CONSENSUS, agentCount: 2 });
    const headers = { "idempotency-key": `run-${scenarioId}` };
    const answers = [1, 2].map(() => org.admin.scenarios.runScenario({ scenarioId }, { headers }));
    expect((await Promise.all(answers)).map(({ scenario }) => scenario!.run)).toEqual([1, 1]);
    await watchToEnd(org.admin, scenarioId);
    expect((await org.admin.scenarios.runScenario({ scenarioId }, { headers })).scenario!.run).toBe(1);
    expect(await stateOf(scenarioId)).toMatchObject({ run: 1, state: SUCCEEDED });
  });

  test("a scenario is listed newest first, in pages, by pattern and state, with its defaults", async () => {
    const mine = await world.org();
    const made = [];
    for (const pattern of patterns) made.push(await newScenario(mine.admin, { pattern, agentCount: 2 }));
    const first = await mine.admin.scenarios.listScenarios({ pageSize: 3 });
    const second = await mine.admin.scenarios.listScenarios({ pageSize: 3, pageToken: first.nextPageToken });
    expect([...first.scenarios, ...second.scenarios].map(({ scenarioId }) => scenarioId)).toEqual(
      made.map(({ scenarioId }) => scenarioId).toReversed(),
    );
    expect(second.nextPageToken).toBe("");
    const auctions = await mine.admin.scenarios.listScenarios({ pattern: Pattern.TASK_AUCTION, state: CREATED });
    expect(auctions.scenarios.map(({ pattern, state }) => [pattern, state])).toEqual([[Pattern.TASK_AUCTION, CREATED]]);
    expect((await mine.admin.scenarios.listScenarios({ state: RUNNING })).scenarios).toEqual([]);
    const { scenario } = await mine.admin.scenarios.createScenario({ pattern: Pattern.CONSENSUS, agentCount: 2 });
    expect(scenario).toMatchObject({ name: "consensus", run: 0, state: CREATED, orgId: mine.orgId });
    expect(durationMs(scenario!.timeout!)).toBe(60_000);
    const again = await mine.admin.scenarios.createScenario({ pattern: Pattern.CONSENSUS, agentCount: 2 });
    expect(again.scenario!.seed).not.toBe(scenario!.seed);
  });

  test("what is out of its limits is refused, and there are no results before a run has ended", async () => {
    const pattern = Pattern.CONSENSUS;
    const wrong = [
      { pattern, agentCount: 1 },
      { pattern, agentCount: 51 },
      { pattern: Pattern.UNSPECIFIED, agentCount: 2 },
      { pattern, agentCount: 2, timeout: { seconds: 4n } },
      { pattern, agentCount: 2, timeout: { seconds: 301n } },
      { pattern, agentCount: 2, faults: { drop: 1.1 } },
      { pattern, agentCount: 2, seed: -1n },
      { pattern, agentCount: 2, successCriteria: { minParticipation: 2 } },
    ];
    for (const request of wrong)
      expect((await refusal(org.admin.scenarios.createScenario(request))).reason).toBe("INVALID_REQUEST");
    const { scenarioId } = await newScenario(org.admin, { pattern, agentCount: 2 });
    expect(await refusal(org.admin.scenarios.getScenarioResults({ scenarioId }))).toMatchObject({
      reason: "FAILED_PRECONDITION",
      metadata: { state: "CREATED" },
    });
    expect((await refusal(org.admin.scenarios.cancelScenario({ scenarioId }))).metadata.state).toBe("CREATED");
  });

  test("another organisation's scenario is like none, and an agent may not play", async () => {
    const { scenarioId } = await newScenario(org.admin, { pattern: Pattern.CONSENSUS, agentCount: 2 });
    const { admin, agent } = await world.org();
    for (const id of [scenarioId, unknownId]) {
      for (const call of [
        () => admin.scenarios.runScenario({ scenarioId: id }),
        () => admin.scenarios.cancelScenario({ scenarioId: id }),
        () => admin.scenarios.getScenarioResults({ scenarioId: id }),
        () => watchToEnd(admin, id),
      ])
        expect((await refusal(call())).reason).toBe("NOT_FOUND");
    }
    expect((await admin.scenarios.listScenarios({})).scenarios).toEqual([]);
    const { as } = await agent();
    expect((await refusal(as.scenarios.createScenario({ pattern: Pattern.CONSENSUS, agentCount: 2 }))).reason).toBe(
      "ROLE_REQUIRED",
    );
  });
});

describe.each(dialects)("a server dies in the middle of a run on %s", (dialect) => {
  const operatorKey = "lab-death-0123456789-abcdefghijklmnopqrstuvwxyz";
  const program = new URL("./bus-fixtures/server.ts", import.meta.url).pathname;

  test("the next one tells that it was aborted, and nothing of it is left; it can be run again", async () => {
    await using place = await storage(dialect);
    const options = JSON.stringify({ ...place.options, operatorKeyDigest: keyDigest(operatorKey), leaseMs: 1_500 });
    const first = await serverProcess(program, [options]);
    const as = clientsAt(first.url, operatorKey);
    const wish = { pattern: Pattern.LOAD_BALANCING, agentCount: 20, timeoutS: 60, faults: { drop: 0.2 } };
    const { scenarioId } = await newScenario(as, wish);
    await as.scenarios.runScenario({ scenarioId });
    await eventually(async () => {
      const { scenarios } = await as.scenarios.listScenarios({});
      return scenarios[0]!.state === RUNNING;
    });
    await new Promise((resolve) => setTimeout(resolve, 300));
    await first.kill();

    await using world = await start(dialect, {
      ...place.options,
      operatorKeyDigest: keyDigest(operatorKey),
      leaseMs: 1_500,
    });
    const next = clientsAt(world.url, operatorKey);
    await eventually(async () => {
      const [scenario] = (await next.scenarios.listScenarios({})).scenarios;
      return scenario!.state === ABORTED && !scenario!.cleaning;
    });
    const { results } = await next.scenarios.getScenarioResults({ scenarioId });
    expect(results).toMatchObject({ state: ABORTED, run: 1 });
    const rows = Object.keys(await rowsByOrganization(world.server.app.db));
    expect([...new Set(rows.map((name) => name.split(" ")[0]))]).toEqual([world.server.homeOrgId]);
    expect((await next.keys.listApiKeys({})).apiKeys.filter(({ role }) => role === Role.AGENT)).toEqual([]);
    const again = await play(next, { pattern: Pattern.CONSENSUS, agentCount: 3 });
    expect(again.state).toBe(SUCCEEDED);
  });
});
