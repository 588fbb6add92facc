import { readFileSync } from "node:fs";
import { fromJson, getOption } from "@bufbuild/protobuf";
import { durationMs, timestampFromMs, timestampMs, ValueSchema } from "@bufbuild/protobuf/wkt";
import { type CallOptions, Code } from "@connectrpc/connect";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  QuotaFailureSchema,
  RetryInfoSchema,
} from "../gen/google/rpc/error_details_pb.ts";
import { access, Role } from "../gen/moltwire/api/v1/access_pb.ts";
import { ErrorReason } from "../gen/moltwire/api/v1/error_reason_pb.ts";
import { TrustTier } from "../gen/moltwire/bus/v1/agent_pb.ts";
import { BudgetPeriod, BudgetScope } from "../gen/moltwire/bus/v1/budget_pb.ts";
import { Pattern } from "../gen/moltwire/lab/v1/scenario_pb.ts";
import { Fault, type ReasonName, toConnectError } from "../src/errors.ts";
import { slidingWindow } from "../src/rpc/limits.ts";
import { services } from "../src/services.ts";
import { version } from "../src/version.ts";
import { contract, httpEndpoint } from "./bus-fixtures/bus.ts";
import { deadUrl } from "./bus-fixtures/http-agent.ts";
import {
  type Clients,
  dialects,
  eventually,
  fakeClock,
  type Org,
  type OrgAgent,
  type Protocol,
  refusal,
  start,
  unique,
  type World,
} from "./harness.ts";
import { write } from "./memory-fixtures/memory.ts";
import { addContract } from "./rpc-fixtures/contract.ts";

const protocols: Protocol[] = ["connect", "connect-json", "grpc", "grpc-web"];
const input = fromJson(ValueSchema, "x");
const minute = 60_000;

/** Opens a feed, and leaves it when its first message is there. */
async function glance(as: Clients, options: CallOptions = {}): Promise<void> {
  const leave = new AbortController();
  for await (const _ of as.traces.tailTraces({}, { ...options, signal: leave.signal })) break;
  leave.abort();
}

describe("the limit of requests", () => {
  /** What the limit means, said naively: a request is let in unless as many as the limit were in the 60 s that end with it. */
  const naive = (usual: number) => {
    const taken: number[] = [];
    return (at: number, count: number, limit = usual) => {
      const inWindow = taken.filter((time) => time > at - minute);
      const remaining = Math.max(0, limit - inWindow.length);
      if (count > limit) return { allowed: false, remaining, retryAfterMs: undefined };
      if (count > remaining)
        return { allowed: false, remaining, retryAfterMs: inWindow.at(-(limit - count + 1))! + minute - at };
      taken.push(...Array<number>(count).fill(at));
      return { allowed: true, remaining: remaining - count, retryAfterMs: 0 };
    };
  };
  /** Calls that come now slowly, now fast, now at once, and now after a long while. */
  const phase = fc.record({
    calls: fc.integer({ min: 1, max: 80 }),
    gapMs: fc.constantFrom(0, 1, 333, 2_000, 7_000, minute),
  });
  const waits = fc
    .array(phase, { maxLength: 8 })
    .map((phases) => phases.flatMap(({ calls, gapMs }) => Array.from({ length: calls }, (_, i) => (i % 3) * gapMs)));

  test("is what it says in any sliding minute, for each agent by itself, whatever the times", () => {
    const property = fc.property(fc.integer({ min: 1, max: 70 }), waits, (limit, pauses) => {
      const clock = fakeClock(1_000_000);
      const limiter = slidingWindow(limit, clock);
      const oracles = [naive(limit), naive(limit)];
      for (const [i, ms] of pauses.entries()) {
        clock.advance(ms);
        const who = i % 5 === 0 ? 1 : 0;
        const count = 1 + (ms % 7 === 0 ? i % 4 : 0);
        expect(limiter.take(`agent ${who}`, count)).toEqual({ limit, ...oracles[who]!(clock.now(), count) });
      }
    });
    fc.assert(property, { numRuns: 300, seed: 6658 });
  });

  test("is what it is at each request, where it is raised and lowered between them", () => {
    const limits = fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1, maxLength: 20 });
    const property = fc.property(limits, waits, (most, pauses) => {
      const clock = fakeClock(1_000_000);
      const limiter = slidingWindow(0, clock);
      const oracle = naive(0);
      for (const [i, ms] of pauses.entries()) {
        clock.advance(ms);
        const [limit, count] = [most[Math.trunc(i / 9) % most.length]!, 1 + (ms % 7 === 0 ? i % 4 : 0)];
        expect(limiter.take("key", count, 0, limit)).toEqual({ limit, ...oracle(clock.now(), count, limit) });
      }
    });
    fc.assert(property, { numRuns: 300, seed: 7 });
  });

  test("a refused request is let in after exactly the time it was told, and not before", () => {
    const clock = fakeClock();
    const limiter = slidingWindow(3, clock);
    for (let i = 0; i < 3; i++, clock.advance(100)) limiter.take("a");
    const { retryAfterMs } = limiter.take("a");
    expect(retryAfterMs).toBe(minute - 300);
    clock.advance(retryAfterMs! - 1);
    expect(limiter.take("a").allowed).toBe(false);
    clock.advance(1);
    expect(limiter.take("a").allowed).toBe(true);
  });

  test("a clock that steps back refuses nobody for longer than the window", () => {
    let now = 10_000_000;
    const limiter = slidingWindow(2, { ...fakeClock(), now: () => now });
    limiter.take("a");
    limiter.take("a");
    now -= 3_600_000;
    expect(limiter.take("a")).toMatchObject({ allowed: false, retryAfterMs: minute });
    now += minute;
    expect(limiter.take("a").allowed).toBe(true);
  });

  test("a limit that is lowered holds at once, and one that is raised lets more in", () => {
    let now = 0;
    const limiter = slidingWindow(40, { ...fakeClock(), now: () => now });
    const take = (limit?: number) => limiter.take("a", 1, 0, limit);
    for (; now < 30; now++) expect(take().allowed).toBe(true);
    // Of the 30 in the window 26 have to leave it before one of five is free.
    expect(take(5)).toEqual({ limit: 5, remaining: 0, retryAfterMs: 25 + minute - 30, allowed: false });
    expect(take(100)).toMatchObject({ remaining: 69, allowed: true });
    now = minute + 25;
    expect(take(5)).toMatchObject({ remaining: 0, retryAfterMs: 1, allowed: false });
    now = minute + 26;
    expect(take(5)).toMatchObject({ remaining: 0, allowed: true });
  });

  test("nought is no limit", () => {
    const limiter = slidingWindow(0, fakeClock());
    for (let i = 0; i < 1_000; i++) expect(limiter.take("a").allowed).toBe(true);
  });
});

describe("the reasons of errors", () => {
  const names = Object.keys(ErrorReason).filter((name) => name !== "UNSPECIFIED") as ReasonName[];

  test.each(names)("%s has the code that its comment names", (name) => {
    const { code } = toConnectError(new Fault(name, "why"));
    expect(Code[code]).toBeDefined();
    expect(code).not.toBe(Code.Unknown);
    const proto = readFileSync("proto/moltwire/api/v1/error_reason.proto", "utf8");
    const comment = proto
      .slice(0, proto.indexOf(`ERROR_REASON_${name} =`))
      .split(";")
      .at(-1)!;
    const [, said] = /[Cc]ode ([A-Z_]+)/.exec(comment) ?? [];
    if (said) expect(Code[code].replaceAll(/(?<=[a-z])[A-Z]/g, "_$&").toUpperCase()).toBe(said);
  });
});

describe.each(dialects)("%s", (dialect) => {
  const clock = fakeClock(Date.now());
  let world: World;
  let org: Org;
  let agent: OrgAgent;
  beforeAll(async () => {
    const rateLimitTiers = { [TrustTier.EXTERNAL_PARTNER]: 7, [TrustTier.PUBLIC_VENDOR]: 2 };
    world = await start(dialect, { clock, rateLimit: 5, rateLimitTiers });
    org = await world.org();
    agent = await org.agent();
  });
  afterAll(() => world[Symbol.asyncDispose]());
  const minuteLater = () => clock.advance(minute);

  describe("the limit of requests on the wire", () => {
    test.each(protocols)(
      "over %s the one too many is refused without effect, and told when to come again",
      async (protocol) => {
        minuteLater();
        const as = world.as(agent.key, protocol);
        const contractId = unique("nothing");
        const left: (string | null)[] = [];
        const onHeader = (headers: Headers) => void left.push(headers.get("ratelimit-remaining"));
        for (let i = 0; i < 4; i++, clock.advance(1_000)) await as.agents.listAgents({}, { onHeader });
        expect((await refusal(as.bus.submitTask({ contractId, input }))).reason).toBe("CONTRACT_NOT_FOUND");
        const { reason, code, metadata, error } = await refusal(as.bus.submitTask({ contractId, input }));
        expect([reason, code, metadata]).toEqual([
          "RATE_LIMITED",
          "ResourceExhausted",
          { limit: "5", remaining: "0", window_ms: "60000", trace_id: metadata.trace_id },
        ]);
        expect(left).toEqual(["4", "3", "2", "1"]);
        expect(durationMs(error.findDetails(RetryInfoSchema)[0]!.retryDelay!)).toBe(56_000);
        expect(error.metadata.get("retry-after")).toBe("56");
        expect(error.findDetails(QuotaFailureSchema)[0]?.violations[0]?.subject).toBe(`agent:${agent.agentId}`);
        expect((await org.admin.traces.listTraces({ contractId })).traces).toHaveLength(1);
        clock.advance(56_000);
        await as.agents.listAgents({});
      },
    );

    test("the keys of one agent share its limit; other agents, administrators and the operator have their own or none", async () => {
      minuteLater();
      const { secret } = await org.admin.keys.createApiKey({ agentId: agent.agentId });
      const other = await org.agent();
      const list = (key: string) => world.as(key).agents.listAgents({});
      for (const key of [agent.key, secret, agent.key, secret, agent.key]) await list(key);
      expect((await refusal(list(secret))).reason).toBe("RATE_LIMITED");
      await list(other.key);
      for (let i = 0; i < 10; i++) await Promise.all([list(org.adminKey), list(world.operatorKey)]);
    });

    test("a key can have a limit of its own, an administrator's too, that is changed at once, counts items and is told of where least is left", async () => {
      minuteLater();
      const own = await world.org();
      const { apiKey, secret } = await own.admin.keys.createApiKey({ requestsPerMinute: 3 });
      const keyId = apiKey!.keyId;
      const left: string[] = [];
      const onHeader = (headers: Headers) =>
        void left.push(`${headers.get("ratelimit-remaining")} of ${headers.get("ratelimit-limit")}`);
      const list = (key: string) => world.as(key).agents.listAgents({}, { onHeader });
      for (let i = 0; i < 3; i++, clock.advance(1_000)) await list(secret);
      expect(left.splice(0)).toEqual(["2 of 3", "1 of 3", "0 of 3"]);
      const { metadata, reason, error } = await refusal(list(secret));
      expect([reason, metadata.limit, metadata.remaining, error.metadata.get("retry-after")]).toEqual([
        ...["RATE_LIMITED", "3", "0", "57"],
      ]);
      expect(error.findDetails(QuotaFailureSchema)[0]?.violations[0]?.subject).toBe(`key:${keyId}`);
      await list(own.adminKey);
      const allow = (requestsPerMinute: number) =>
        own.admin.keys.updateApiKey({
          ...{ keyId, change: { requestsPerMinute }, updateMask: { paths: ["requests_per_minute"] } },
        });
      expect((await allow(5)).apiKey?.requestsPerMinute).toBe(5);
      const jobs = [{}, {}, {}];
      expect((await refusal(world.as(secret).queues.submitJobs({ jobs }))).reason).toBe("RATE_LIMITED");
      await list(secret);
      await allow(1);
      expect((await refusal(list(secret))).error.metadata.get("retry-after")).toBe("60");
      const next = await own.admin.keys.rotateApiKey({ keyId });
      expect(next.apiKey?.requestsPerMinute).toBe(1);
      // Of an agent's key both limits hold, and that of the server is the agent's with all of its keys.
      const one = await own.agent();
      const wide = await own.admin.keys.createApiKey({ agentId: one.agentId, requestsPerMinute: 6 });
      const narrow = await own.admin.keys.createApiKey({ agentId: one.agentId, requestsPerMinute: 2 });
      left.splice(0);
      for (const key of [narrow.secret, narrow.secret, wide.secret, wide.secret, wide.secret]) await list(key);
      expect(left).toEqual(["1 of 2", "0 of 2", "2 of 5", "1 of 5", "0 of 5"]);
      for (const [key, limit] of [
        [narrow.secret, "2"],
        [wide.secret, "5"],
      ] as const)
        expect((await refusal(list(key))).metadata.limit).toBe(limit);
    });

    test("an agent of a tier with a limit of its own has that one, from the moment that its tier changes", async () => {
      minuteLater();
      const list = async (key: string, times: number) => {
        const seen: string[] = [];
        const onHeader = (header: Headers) =>
          void seen.push(`${header.get("ratelimit-remaining")} of ${header.get("ratelimit-limit")}`);
        for (let i = 0; i < times; i++) await world.as(key).agents.listAgents({}, { onHeader });
        const { reason, metadata } = await refusal(world.as(key).agents.listAgents({}));
        return [...seen, reason, metadata.limit];
      };
      const { agentId, key } = await org.agent({ trustTier: TrustTier.PUBLIC_VENDOR });
      expect(await list(key, 2)).toEqual(["1 of 2", "0 of 2", "RATE_LIMITED", "2"]);
      const updateMask = { paths: ["trust_tier"] };
      await org.admin.agents.updateAgent({ agentId, change: { trustTier: TrustTier.EXTERNAL_PARTNER }, updateMask });
      const more = ["4 of 7", "3 of 7", "2 of 7", "1 of 7", "0 of 7"];
      expect(await list(key, 5)).toEqual([...more, "RATE_LIMITED", "7"]);
      const usual = ["4 of 5", "3 of 5", "2 of 5", "1 of 5", "0 of 5"];
      const { key: trusted } = await org.agent({ trustTier: TrustTier.INTERNAL_TRUSTED });
      expect(await list(trusted, 5)).toEqual([...usual, "RATE_LIMITED", "5"]);
      // The items of a list count by it as well.
      const keys = (count: number) => ({ keys: Array.from({ length: count }, (_, n) => ({ key: `k${n}` })) });
      const partner = await org.agent({ trustTier: TrustTier.EXTERNAL_PARTNER });
      await partner.as.memory.batchGetEntries(keys(6));
      expect((await refusal(partner.as.memory.batchGetEntries(keys(2)))).metadata).toMatchObject({ limit: "7" });
    });

    test("calls without a good key count against their address, whoever tries; good keys do not", async () => {
      minuteLater();
      const wrong = [undefined, "garbage", `${agent.key.slice(0, -1)}_`];
      const tries = [...wrong, ...wrong].map((key) => world.as(key));
      const reasons: string[] = [];
      for (const as of tries.slice(0, 5)) reasons.push((await refusal(as.agents.listAgents({}))).reason);
      expect(reasons).toEqual(["KEY_MISSING", "KEY_INVALID", "KEY_INVALID", "KEY_MISSING", "KEY_INVALID"]);
      for (const as of tries) {
        const { reason, error } = await refusal(as.agents.listAgents({}));
        expect([reason, error.metadata.get("retry-after")]).toEqual(["RATE_LIMITED", "60"]);
        expect(error.findDetails(QuotaFailureSchema)[0]?.violations[0]?.subject).toBe("address:127.0.0.1");
      }
      expect((await fetch(`${world.url}/metrics`, { headers: { "x-api-key": "garbage" } })).status).toBe(429);
      await agent.as.agents.listAgents({});
      await org.admin.agents.listAgents({});
      minuteLater();
      expect((await fetch(`${world.url}/metrics`, { headers: { "x-api-key": "garbage" } })).status).toBe(401);
      expect((await refusal(world.as("garbage").agents.listAgents({}))).reason).toBe("KEY_INVALID");
    });

    test("calls that are refused for their role count nothing, streams count one, heartbeats none", async () => {
      minuteLater();
      for (let i = 0; i < 6; i++)
        expect((await refusal(agent.as.admin.listAuditEvents({}))).reason).toBe("ROLE_REQUIRED");
      for (let i = 0; i < 6; i++)
        expect((await refusal(agent.as.bus.heartbeatTask({ taskId: "t", leaseToken: "l" }))).reason).toBe("LEASE_LOST");
      for (let i = 0; i < 5; i++) await glance(agent.as);
      expect((await refusal(agent.as.agents.listAgents({}))).reason).toBe("RATE_LIMITED");
      const answer = await fetch(`${world.url}/moltwire.bus.v1.AgentService/ListAgents?encoding=json&message=%7B%7D`, {
        headers: { authorization: `Bearer ${agent.key}` },
      });
      const headers = ["ratelimit-limit", "ratelimit-remaining", "retry-after"].map((name) => answer.headers.get(name));
      expect([answer.status, ...headers]).toEqual([429, "5", "0", "60"]);
    });
  });

  describe("the limit counts each item of a list", () => {
    const writes = (count: number) =>
      Array.from({ length: count }, (_, n) => ({ change: { case: "set", value: write(`k${n}`, n) } }) as const);
    const batches: readonly [string, (as: OrgAgent["as"], count: number) => Promise<unknown>][] = [
      ["SubmitJobs", (as, count) => as.queues.submitJobs({ jobs: Array.from({ length: count }, () => ({})) })],
      ["BatchSetEntries", (as, count) => as.memory.batchSetEntries({ changes: writes(count) })],
      [
        "BatchGetEntries",
        (as, count) =>
          as.memory.batchGetEntries({ keys: writes(count).map(({ change }) => ({ key: change.value.key })) }),
      ],
    ];
    test.each(batches)("of %s, and refuses a list that is too long without effect", async (_, batch) => {
      minuteLater();
      const { as } = await (await world.org()).agent();
      const left: (string | null)[] = [];
      const counting = world.as((await org.agent()).key, "connect", [
        (next) => async (request) => {
          const response = await next(request);
          left.push(response.header.get("ratelimit-remaining"));
          return response;
        },
      ]);
      await batch(counting, 3);
      await batch(counting, 1);
      expect(left).toEqual(["2", "1"]);
      clock.advance(10_000);
      // The call is the one that was left, and its second item has to wait for the oldest.
      const { reason, metadata, error } = await refusal(batch(counting, 2));
      expect([reason, metadata.remaining, error.metadata.get("retry-after")]).toEqual(["RATE_LIMITED", "0", "50"]);
      clock.advance(50_000);
      await batch(counting, 4);
      const never = await refusal(batch(as, 7));
      expect([never.reason, never.error.findDetails(RetryInfoSchema)]).toEqual(["RATE_LIMITED", []]);
      expect(never.error.rawMessage).toMatch(/send fewer at once/);
      expect((await as.queues.listJobs({})).jobs).toEqual([]);
      expect((await as.memory.listEntries({})).entries).toEqual([]);
      // An administrator has no limit.
      const queues = await org.admin.queues.submitJobs({
        jobs: Array.from({ length: 20 }, () => ({ queue: unique("q") })),
      });
      expect(queues.results).toHaveLength(20);
    });
  });

  describe("the trace of a call", () => {
    const given = "0af7651916cd43dd8448eb211c80319c";
    const span = "b7ad6b7169203331";
    const traceOf = async (headers: Record<string, string>) => {
      const seen: (string | null)[] = [];
      await org.admin.agents.listAgents(
        {},
        { headers, onHeader: (header) => void seen.push(header.get("x-trace-id")) },
      );
      return seen[0];
    };

    test.each([
      `00-${given}-${span}-01`,
      `00-${given}-${span}-00`,
      `cc-${given}-${span}-01`,
      `cc-${given}-${span}-01-what-the-future-brings`,
    ])("%s is adopted", async (traceparent) => {
      expect(await traceOf({ traceparent })).toBe(given);
    });

    test.each([
      "",
      "nonsense",
      `ff-${given}-${span}-01`,
      `00-${"0".repeat(32)}-${span}-01`,
      `00-${given}-${"0".repeat(16)}-01`,
      `00-${given.toUpperCase()}-${span}-01`,
      `00-${given}-${span}-01-more`,
      `00-${given}-${span}-01.`,
      `00-${given}-${span}`,
      `00-${given.slice(1)}-${span}-01`,
      `cc-${given}-${span}-01x`,
      `00-${given}-${span}-01, 00-${given}-${span}-01`,
    ])("the malformed %j begins a new trace", async (traceparent) => {
      const traceId = await traceOf({ traceparent });
      expect(traceId).toMatch(/^[0-9a-f]{32}$/);
      expect(traceId).not.toBe(given);
    });

    test("each call without one has a trace of its own", async () => {
      expect(await traceOf({})).not.toBe(await traceOf({}));
    });

    test("a task is of the trace, and its span is under the caller's", async () => {
      const contractId = await addContract(world, org.orgId, { contractId: unique("contract") });
      await org.agent({ capabilities: [contractId], endpoint: { kind: { case: "echo", value: {} } } });
      const headers = { traceparent: `00-${given}-${span}-01` };
      const { task } = await org.admin.bus.submitTask({ contractId, contractVersion: "1.0.0", input }, { headers });
      expect(task).toMatchObject({ traceId: given, parentSpanId: span });
      expect(task!.spanId).toMatch(/^(?!b7ad6b7169203331)[0-9a-f]{16}$/);
    });

    test("refusals and streams name it too", async () => {
      minuteLater();
      const headers = { traceparent: `00-${given}-${span}-01` };
      for (const protocol of protocols) {
        for (const key of ["garbage", agent.key]) {
          const { metadata, error } = await refusal(world.as(key, protocol).admin.listAuditEvents({}, { headers }));
          expect([protocol, metadata.trace_id, error.metadata.get("x-trace-id")]).toEqual([protocol, given, given]);
        }
        const seen: (string | null)[] = [];
        const options = { headers, onHeader: (header: Headers) => void seen.push(header.get("x-trace-id")) };
        await glance(world.as(org.adminKey, protocol), options);
        expect(seen).toEqual([given]);
      }
    });
  });

  describe("audit", () => {
    /** One effective call of each audited method. */
    const acts = async () => {
      const own = await world.org();
      const { orgId, admin } = own;
      const contractId = unique("contract");
      await addContract(world, orgId, { contractId });
      const silent = await own.agent({ capabilities: [contractId], endpoint: { kind: { case: "echo", value: {} } } });
      const caller = await own.agent();
      const { as: planner } = caller;
      const settings = { timing: { cron: "@daily" } };
      const { scheduleId, createTime } = (await planner.schedules.createSchedule({ settings })).schedule!;
      const other = await world.org();
      const onX = { case: "capability", value: "x" } as const;
      const given = await admin.grants.createGrant({ granteeOrgId: other.orgId, subject: onX });
      const { grantId } = given.grant!;
      await other.admin.grants.acceptGrant({ grantId });
      const { inviteId } = (await admin.directory.createInvite({})).invite!;
      const offered = async () =>
        (await other.admin.grants.createGrant({ granteeOrgId: orgId, subject: onX })).grant!.grantId;
      const offer = { title: "t", category: "c", contractId, pricing: { requestMicros: 1n } };
      const { listingId } = (await admin.catalog.publishListing({ offer })).listing!;
      const { webhookId } = (await admin.webhooks.createWebhook({ url: "http://127.0.0.1:9/", eventTypes: ["job.*"] }))
        .webhook!;
      const asked = await contract(own, { approvalRequired: true });
      await own.agent({ capabilities: [asked], endpoint: { kind: { case: "echo", value: {} } } });
      const failing = await contract(own);
      await own.agent({ capabilities: [failing], endpoint: httpEndpoint(await deadUrl()) });
      const submit = async (as: Clients, of: string) =>
        (await as.bus.submitTask({ contractId: of, contractVersion: "1.0.0", input })).task!;
      // By an agent, since nobody decides on what it asked for itself.
      const approvals = [(await submit(planner, asked)).approvalId, (await submit(planner, asked)).approvalId];
      for (let n = 0; n < 2; n++) await submit(admin, failing);
      const letters = (await admin.deadLetters.listDeadLetters({})).deadLetters.map(({ deadLetterId }) => deadLetterId);
      const cedarText = 'permit (principal, action == Action::"claim_job", resource == Queue::"nobodys");';
      const calls: Record<string, (headers: Record<string, string>) => Promise<unknown>> = {
        "moltwire.bus.v1.PolicyService/PutPolicy": (headers) =>
          admin.policies.putPolicy({ policyId: "audited", cedarText }, { headers }),
        "moltwire.bus.v1.PolicyService/DeletePolicy": (headers) =>
          admin.policies.deletePolicy({ policyId: "audited" }, { headers }),
        "moltwire.bus.v1.ApprovalService/Approve": (headers) =>
          admin.approvals.approve({ approvalId: approvals[0]! }, { headers }),
        "moltwire.bus.v1.ApprovalService/Deny": (headers) =>
          admin.approvals.deny({ approvalId: approvals[1]! }, { headers }),
        "moltwire.bus.v1.BudgetService/SetBudget": (headers) =>
          admin.budgets.setBudget(
            { scope: BudgetScope.AGENT, subjectId: silent.agentId, period: BudgetPeriod.DAY, limitTokens: 1n },
            { headers },
          ),
        "moltwire.bus.v1.DeadLetterService/RetryDeadLetter": (headers) =>
          admin.deadLetters.retryDeadLetter({ deadLetterId: letters[0]! }, { headers }),
        "moltwire.bus.v1.DeadLetterService/ResolveDeadLetter": (headers) =>
          admin.deadLetters.resolveDeadLetter({ deadLetterId: letters[1]!, note: "seen" }, { headers }),
        "moltwire.bus.v1.CostService/SetRates": (headers) =>
          admin.costs.setRates({ rates: [{ agentId: silent.agentId, inputPer1000TokensMicros: 1n }] }, { headers }),
        "moltwire.federation.v1.NamespaceService/CreateNamespace": (headers) =>
          admin.namespaces.createNamespace({ name: "audited" }, { headers }),
        "moltwire.federation.v1.GrantService/CreateGrant": (headers) =>
          admin.grants.createGrant({ granteeOrgId: other.orgId, subject: onX }, { headers }),
        "moltwire.federation.v1.GrantService/AcceptGrant": async (headers) =>
          admin.grants.acceptGrant({ grantId: await offered() }, { headers }),
        "moltwire.federation.v1.GrantService/DeclineGrant": async (headers) =>
          admin.grants.declineGrant({ grantId: await offered() }, { headers }),
        "moltwire.federation.v1.GrantService/UpdateGrant": (headers) =>
          admin.grants.updateGrant({ grantId, change: {}, updateMask: { paths: ["purpose"] } }, { headers }),
        "moltwire.federation.v1.GrantService/SuspendGrant": (headers) =>
          admin.grants.suspendGrant({ grantId }, { headers }),
        "moltwire.federation.v1.GrantService/ResumeGrant": (headers) =>
          admin.grants.resumeGrant({ grantId }, { headers }),
        "moltwire.federation.v1.GrantService/RevokeGrant": (headers) =>
          admin.grants.revokeGrant({ grantId }, { headers }),
        "moltwire.federation.v1.OrganizationService/UpdateOrganization": (headers) =>
          admin.organizations.updateOrganization(
            { change: { displayName: "x" }, updateMask: { paths: ["display_name"] } },
            { headers },
          ),
        "moltwire.federation.v1.ApiKeyService/CreateApiKey": (headers) => admin.keys.createApiKey({}, { headers }),
        "moltwire.federation.v1.ApiKeyService/UpdateApiKey": async (headers) =>
          admin.keys.updateApiKey(
            {
              keyId: (await world.operator.keys.listApiKeys({ orgId, agentId: silent.agentId })).apiKeys[0]!.keyId,
              change: { allowedNetworks: ["127.0.0.1"] },
              updateMask: { paths: ["allowed_networks"] },
            },
            { headers },
          ),
        "moltwire.federation.v1.ApiKeyService/RotateApiKey": async (headers) =>
          admin.keys.rotateApiKey(
            { keyId: (await world.operator.keys.listApiKeys({ orgId, agentId: silent.agentId })).apiKeys[0]!.keyId },
            { headers },
          ),
        "moltwire.federation.v1.ApiKeyService/RevokeApiKey": async (headers) =>
          admin.keys.revokeApiKey(
            { keyId: (await world.operator.keys.listApiKeys({ orgId, agentId: silent.agentId })).apiKeys[0]!.keyId },
            { headers },
          ),
        "moltwire.bus.v1.AgentService/RegisterAgent": (headers) =>
          admin.agents.registerAgent({ name: "audited" }, { headers }),
        "moltwire.bus.v1.AgentService/UpdateAgent": (headers) =>
          admin.agents.updateAgent(
            { agentId: silent.agentId, change: {}, updateMask: { paths: ["description"] } },
            { headers },
          ),
        "moltwire.bus.v1.AgentService/DeleteAgent": (headers) =>
          admin.agents.deleteAgent({ agentId: silent.agentId }, { headers }),
        "moltwire.bus.v1.ContractService/RegisterContract": (headers) =>
          admin.contracts.registerContract({ contractId, version: "1.1.0" }, { headers }),
        "moltwire.bus.v1.ContractService/DeprecateContract": (headers) =>
          admin.contracts.deprecateContract({ contractId, version: "1.0.0" }, { headers }),
        "moltwire.directory.v1.DirectoryService/CreateInvite": (headers) =>
          admin.directory.createInvite({}, { headers }),
        "moltwire.exchange.v1.BillingService/TransferCredits": (headers) =>
          admin.billing.transferCredits({ toAgentId: caller.agentId, amountMicros: 1n }, { headers }),
        "moltwire.exchange.v1.CatalogService/PublishListing": (headers) =>
          admin.catalog.publishListing({ offer }, { headers }),
        "moltwire.exchange.v1.CatalogService/UpdateListing": (headers) =>
          admin.catalog.updateListing({ listingId, offer }, { headers }),
        "moltwire.exchange.v1.CatalogService/UnpublishListing": (headers) =>
          admin.catalog.unpublishListing({ listingId }, { headers }),
        "moltwire.lab.v1.ScenarioService/RunScenario": async (headers) => {
          const { scenario } = await admin.scenarios.createScenario({ pattern: Pattern.CONSENSUS, agentCount: 2 });
          return await admin.scenarios.runScenario({ scenarioId: scenario!.scenarioId }, { headers });
        },
        "moltwire.directory.v1.DirectoryService/RevokeInvite": async (headers) =>
          admin.directory.revokeInvite({ inviteId }, { headers }),
        "moltwire.queue.v1.QueueService/RedriveJob": async (headers) => {
          const jobId = (await admin.queues.submitJob({ job: {} })).job!.jobId;
          const leaseToken = (await admin.queues.claimJobs({})).jobs[0]!.leaseToken;
          await admin.queues.failJob({ jobId, leaseToken, retryable: false });
          return await admin.queues.redriveJob({ subject: { case: "jobId", value: jobId } }, { headers });
        },
        "moltwire.queue.v1.ScheduleService/BackfillSchedule": (headers) => {
          const startTime = timestampFromMs(timestampMs(createTime!) - 86_400_000);
          return admin.schedules.backfillSchedule({ scheduleId, startTime, endTime: createTime! }, { headers });
        },
        "moltwire.queue.v1.ScheduleService/DeleteSchedule": (headers) =>
          admin.schedules.deleteSchedule({ scheduleId }, { headers }),
        "moltwire.webhook.v1.WebhookService/CreateWebhook": (headers) =>
          admin.webhooks.createWebhook({ url: "http://127.0.0.1:9/", eventTypes: ["*"] }, { headers }),
        "moltwire.webhook.v1.WebhookService/UpdateWebhook": (headers) =>
          admin.webhooks.updateWebhook(
            { webhookId, change: { description: "x" }, updateMask: { paths: ["description"] } },
            { headers },
          ),
        "moltwire.webhook.v1.WebhookService/RotateSecret": (headers) =>
          admin.webhooks.rotateSecret({ webhookId }, { headers }),
        "moltwire.webhook.v1.WebhookService/DeleteWebhook": (headers) =>
          admin.webhooks.deleteWebhook({ webhookId }, { headers }),
      };
      return { own, calls };
    };
    /** Audited methods that the table above has no call of, and who tests them. */
    const elsewhere = new Set([
      "moltwire.federation.v1.OrganizationService/CreateOrganization", // below: it is done in the operator's organisation
      "moltwire.bus.v1.BusService/CancelTask", // with the tasks
      "moltwire.ops.v1.SessionService/SignIn", // with the console
      "moltwire.ops.v1.MaintenanceService/SetAdminPassword",
      "moltwire.ops.v1.MaintenanceService/RotateVault", // with the vault, as the next
      "moltwire.ops.v1.MaintenanceService/DropOrganizationKeys",
      "moltwire.ops.v1.MaintenanceService/Backup", // with the backups
      "moltwire.ops.v1.AdminService/RevealPayload", // with the isolation: it is the operator's
      "moltwire.exchange.v1.BillingService/TopUp", // with the ledger: it is the operator's
      "moltwire.federation.v1.PeerService/AddPeer", // with the peers, as the next: they are the operator's
      "moltwire.federation.v1.PeerService/RemovePeer",
      "moltwire.federation.v1.PeerService/RotatePeerKey",
      "moltwire.federation.v1.PeerService/SyncPeer",
      "moltwire.exchange.v1.MarketplaceService/SettleDispute", // with the marketplace: it is the operator's
      "moltwire.exchange.v1.SubscriptionService/Subscribe", // with the subscriptions: it takes another organisation
      "moltwire.exchange.v1.SubscriptionService/CancelSubscription",
      "moltwire.exchange.v1.ReviewService/CreateReview", // with the listings, as the next
      "moltwire.exchange.v1.ReviewService/RespondToReview",
    ]);

    test("every effective call of an audited method is one row: who, what, to what, in which trace", async () => {
      const { own, calls } = await acts();
      const built = [];
      for (const method of services
        .flatMap((service) => service.methods)
        .filter((one) => getOption(one, access).audited)) {
        const name = `${method.parent.typeName}/${method.name}`;
        if (!elsewhere.has(name)) built.push(name);
      }
      expect(Object.keys(calls).sort()).toEqual(built.sort());
      const { apiKeys } = await own.admin.keys.listApiKeys({});
      let before = (await own.admin.admin.listAuditEvents({ pageSize: 250 })).auditEvents.length;
      for (const [method, call] of Object.entries(calls)) {
        const traceId = unique("").replace("-", "").padEnd(32, "0");
        await call({ traceparent: `00-${traceId}-${"1".repeat(16)}-01` });
        const { auditEvents } = await own.admin.admin.listAuditEvents({ pageSize: 250 });
        expect([method, auditEvents.length]).toEqual([method, ++before]);
        expect(auditEvents[0]).toMatchObject({
          method,
          traceId,
          role: Role.ORG,
          keyId: apiKeys[0]!.keyId,
          orgId: own.orgId,
        });
        expect(auditEvents[0]!.auditId).toMatch(/^aud_[0-9a-f]{32}$/);
        expect(auditEvents[0]!.requestSha256).toMatch(/^[0-9a-f]{64}$/);
        if (!method.includes("Organization")) expect(Object.keys(auditEvents[0]!.resource).length).toBeGreaterThan(0);
      }
    });

    test("what is refused or only read leaves no row; what the operator does, one in the organisation it was done in", async () => {
      const own = await world.org();
      const one = await own.agent();
      const rows = async () => (await own.admin.admin.listAuditEvents({})).auditEvents;
      const before = (await rows()).length;
      minuteLater();
      await refusal(own.admin.agents.registerAgent({ name: "" }));
      await refusal(own.admin.agents.deleteAgent({ agentId: "agt_none" }));
      await refusal(one.as.agents.deleteAgent({ agentId: one.agentId }));
      await refusal(own.admin.keys.createApiKey({ role: Role.OPERATOR }));
      await refusal(own.admin.bus.cancelTask({ taskId: "tsk_none" }));
      await own.admin.agents.listAgents({});
      expect(await rows()).toHaveLength(before);
      const { agent: made } = await world.operator.agents.registerAgent({ orgId: own.orgId, name: "by-operator" });
      expect((await rows())[0]).toMatchObject({
        role: Role.OPERATOR,
        resource: { agent_id: made!.agentId, org_id: own.orgId },
      });
      const { organization } = await world.operator.organizations.createOrganization({ name: unique("o") });
      const home = (await world.operator.admin.listAuditEvents({ pageSize: 1 })).auditEvents;
      expect(home[0]?.resource).toEqual({ org_id: organization!.orgId });
    });

    test("rows are paged, newest first, and each is seen once", async () => {
      const own = await world.org();
      for (let i = 0; i < 7; i++) await own.admin.keys.createApiKey({ name: String(i) });
      const seen: string[] = [];
      for (let pageToken = "", pages = 0; pages < 10; pages++) {
        const page = await own.admin.admin.listAuditEvents({ pageSize: 3, pageToken });
        seen.push(...page.auditEvents.map(({ auditId }) => auditId));
        pageToken = page.nextPageToken;
        if (!pageToken) break;
      }
      const all = (await own.admin.admin.listAuditEvents({})).auditEvents;
      expect(seen).toEqual(all.map(({ auditId }) => auditId));
      expect(all).toHaveLength(8);
    });
  });

  describe("what everybody may see, and what only the operator", () => {
    test("the status is version and health to all, and counts to the operator", async () => {
      for (const key of [undefined, org.adminKey]) {
        const { details, ...status } = await world.as(key).status.getStatus({});
        expect([details, status]).toEqual([undefined, expect.objectContaining({ version, healthy: true })]);
      }
      const { secret } = await world.operator.keys.createApiKey({ role: Role.OPERATOR, scopes: ["tasks:read"] });
      expect((await world.as(secret).status.getStatus({})).details).toBeUndefined();
      const leave = new AbortController();
      const openStreams = async () => (await world.operator.status.getStatus({})).details?.openStreams;
      await eventually(async () => (await openStreams()) === 0n);
      await org.admin.traces.tailTraces({}, { signal: leave.signal })[Symbol.asyncIterator]().next();
      const { details } = await world.operator.status.getStatus({});
      const { organizations } = await world.operator.organizations.listOrganizations({ pageSize: 250 });
      expect(details).toMatchObject({
        engine: dialect,
        encryptionAtRest: false,
        organizations: BigInt(organizations.length),
        openStreams: 1n,
      });
      leave.abort();
      await eventually(async () => (await openStreams()) === 0n);
    });

    test("/metrics is for the operator alone", async () => {
      minuteLater();
      const get = async (key?: string) => {
        const answer = await fetch(`${world.url}/metrics`, {
          headers: key === undefined ? {} : { authorization: `Bearer ${key}` },
        });
        return { status: answer.status, text: await answer.text(), traceId: answer.headers.get("x-trace-id") };
      };
      for (const [key, status, reason] of [
        [undefined, 401, "KEY_MISSING"],
        ["garbage", 401, "KEY_INVALID"],
        [agent.key, 403, "ROLE_REQUIRED"],
        [org.adminKey, 403, "ROLE_REQUIRED"],
      ] as const) {
        const answer = await get(key);
        const [info] = JSON.parse(answer.text).details;
        expect([answer.status, info.debug.reason, info.debug.metadata.trace_id]).toEqual([
          status,
          reason,
          answer.traceId,
        ]);
      }
      const { status, text } = await get(world.operatorKey);
      expect(status).toBe(200);
      expect(text).toMatch(/^moltwire_rpc_seconds_count\{.*ListAgents.*\} \d+$/m);
    });

    test("/ lists the methods to programs and tells people how to call one", async () => {
      const methods = services.flatMap((service) =>
        service.methods.map((method) => `${service.typeName}/${method.name}`),
      );
      const json = await fetch(world.url, { headers: { accept: "application/json" } });
      expect(await json.json()).toEqual({ name: "moltwire", version, methods });
      const text = await (await fetch(world.url)).text();
      for (const method of methods) expect(text).toContain(`  ${method}\n`);
    });
  });

  describe("errors", () => {
    test.each(protocols)("over %s one has its reason, domain, trace and every wrong field", async (protocol) => {
      const { error, code } = await refusal(
        world.as(org.adminKey, protocol).agents.registerAgent({ name: "", description: "d".repeat(600) }),
      );
      expect(code).toBe("InvalidArgument");
      expect(error.findDetails(ErrorInfoSchema)).toEqual([
        expect.objectContaining({
          reason: "INVALID_REQUEST",
          domain: "moltwire.dev",
          metadata: { field: "name", trace_id: error.metadata.get("x-trace-id") },
        }),
      ]);
      const fields = error
        .findDetails(BadRequestSchema)[0]!
        .fieldViolations.map(({ field, description }) => [field, description.length > 5]);
      expect(fields).toEqual(
        expect.arrayContaining([
          ["name", true],
          ["description", true],
        ]),
      );
    });

    test.each(protocols)("over %s a fault of the server's own tells its trace and nothing else", async (protocol) => {
      await using broken = await start(dialect);
      const as = broken.as(broken.operatorKey, protocol);
      await broken.server.app.db.tx((tx) => tx.script("alter table agent rename to lost_secret_table"));
      const calls = [() => as.agents.listAgents({}), () => as.agents.registerAgent({ name: "a" })];
      for (const call of calls) {
        const { code, reason, metadata, error } = await refusal(call());
        const traceId = error.metadata.get("x-trace-id");
        expect([code, reason, metadata]).toEqual(["Internal", "INTERNAL", { trace_id: traceId }]);
        expect(error.rawMessage).toBe(`internal fault; the server's log tells more under trace id ${traceId}`);
        expect(JSON.stringify([...error.metadata])).not.toMatch(/lost_secret_table|select|relation|no such table/i);
        expect(error.findDetails(ErrorInfoSchema)).toHaveLength(1);
      }
    });

    test("a fault in the middle of a stream is told as one", async () => {
      await using broken = await start(dialect);
      const stream = broken.operator.traces.tailTraces({})[Symbol.asyncIterator]();
      await stream.next();
      await broken.server.app.db.tx((tx) => tx.script("alter table trace_event rename to lost_secret_table"));
      const end = refusal((async () => void (await stream.next()))());
      await broken.server.app.db.tx(async (tx) => tx.ring(`traces:${broken.server.homeOrgId}`));
      expect(await end).toMatchObject({ code: "Internal", reason: "INTERNAL" });
    });

    test("storage that has stopped is told as a server that stops", async () => {
      const stopped = await start(dialect);
      await stopped.server.app.db.close();
      const { code, reason } = await refusal(stopped.operator.agents.listAgents({}));
      expect([code, reason]).toEqual(["Unavailable", "SHUTTING_DOWN"]);
      await stopped.server.close().catch(() => {});
    });

    test("a stop ends open feeds with their cursor", async () => {
      const first = await start(dialect);
      const stream = first.operator.traces.tailTraces({})[Symbol.asyncIterator]();
      const { value: opened } = await stream.next();
      const end = refusal(
        (async () => {
          while (!(await stream.next()).done);
        })(),
      );
      await first.server.close();
      const { code, reason, metadata } = await end;
      expect([code, reason, metadata.cursor]).toEqual(["Unavailable", "SHUTTING_DOWN", opened!.cursor]);
      await first[Symbol.asyncDispose]();
    });
  });
});
