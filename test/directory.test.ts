import { timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TrustTier } from "../gen/moltwire/bus/v1/agent_pb.ts";
import { Outcome } from "../gen/moltwire/directory/v1/collaboration_pb.ts";
import { AgentOrder, CollaborationSide } from "../gen/moltwire/directory/v1/directory_service_pb.ts";
import { Availability, type Profile, Visibility } from "../gen/moltwire/directory/v1/profile_pb.ts";
import { insertAgent } from "../src/bus/agent-store.ts";
import { readConfig } from "../src/config.ts";
import { walkLength } from "../src/directory/search-store.ts";
import { value } from "./bus-fixtures/bus.ts";
import { accept, post, work } from "./exchange-fixtures/market.ts";
import {
  type Clients,
  dialects,
  fakeClock,
  type Org,
  type OrgAgent,
  refusal,
  start,
  unique,
  type World,
} from "./harness.ts";
import { addContract } from "./rpc-fixtures/contract.ts";

const idsOf = ({ profiles }: { readonly profiles: readonly Profile[] }) => profiles.map(({ agentId }) => agentId);
const show = (agent: OrgAgent, visibility: Visibility, more: { description?: string; capabilities?: string[] } = {}) =>
  agent.as.directory.updateProfile({
    change: { visibility, ...more },
    updateMask: { paths: ["visibility", ...Object.keys(more)] },
  });

const plainAgent = (org_id: string, agent_id: string, name: string, rare: boolean) => ({
  ...{
    org_id,
    agent_id,
    name,
    description: "",
    endpoint: null,
    metadata: "{}",
    disabled: 0,
    namespace: "",
    breaker: "",
    allowed_tools: "[]",
  },
  ...{ trust_tier: rare ? TrustTier.EXTERNAL_PARTNER : TrustTier.INTERNAL_TRUSTED, capabilities: '["common"]' },
  ...{ create_ms: 1, update_ms: 1, revision: 1, weight: 1 },
});

describe.each(dialects)("%s", (dialect) => {
  const clock = fakeClock();
  let world: World;
  beforeAll(async () => {
    world = await start(dialect, { clock });
  });
  afterAll(() => world[Symbol.asyncDispose]());

  describe("registration", () => {
    const register = (of: World, name: string, invite = "") => of.as(undefined).directory.register({ name, invite });

    test("by an invite leads into the organisation that made it, with its tier, as often as it says and no oftener", async () => {
      const org = await world.org();
      const { invite, secret } = await org.admin.directory.createInvite({
        maxUses: 2,
        trustTier: TrustTier.EXTERNAL_PARTNER,
      });
      expect(invite).toMatchObject({ orgId: org.orgId, maxUses: 2, trustTier: TrustTier.EXTERNAL_PARTNER });
      const [one, two] = [await register(world, "scout", secret), await register(world, "scout", secret)];
      for (const made of [one, two]) {
        expect(made).toMatchObject({ orgId: org.orgId, trustTier: TrustTier.EXTERNAL_PARTNER, orgApiKey: "" });
        expect(made.name).toMatch(/^scout-[0-9a-f]{12}$/);
        const { profile } = await world.as(made.apiKey).directory.getProfile({});
        expect(profile).toMatchObject({ agentId: made.agentId, name: made.name, visibility: Visibility.ORG });
      }
      expect(one.agentId).not.toBe(two.agentId);
      const used = await refusal(register(world, "scout", secret));
      const unknown = await refusal(register(world, "scout", "mwi_unknown"));
      expect([used.reason, used.metadata.id]).toEqual(["NOT_FOUND", ""]);
      expect(used.error.rawMessage).toBe(unknown.error.rawMessage);
      const { auditEvents } = await org.admin.admin.listAuditEvents({});
      expect(
        auditEvents.filter(({ method }) => method.endsWith("/Register")).map(({ resource }) => resource.agent_id),
      ).toEqual([two.agentId, one.agentId]);
    });

    test("of twenty who use a single-use invite at once one gets in", async () => {
      const org = await world.org();
      const { secret } = await org.admin.directory.createInvite({});
      const answers = await Promise.allSettled(
        Array.from({ length: 20 }, (_, n) => register(world, `racer-${n}`, secret)),
      );
      expect(answers.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
      expect((await org.admin.agents.listAgents({})).agents).toHaveLength(1);
    });

    test("by an invite past its time is refused, and a failing one does not use it up", async () => {
      const org = await world.org();
      const { secret } = await org.admin.directory.createInvite({ ttl: { seconds: 60n } });
      const bad = await refusal(register(world, "no good", secret));
      expect(bad.reason).toBe("INVALID_REQUEST");
      clock.advance(59_000);
      await register(world, "late", secret);
      const { secret: other } = await org.admin.directory.createInvite({ ttl: { seconds: 60n } });
      clock.advance(60_000);
      expect((await refusal(register(world, "later", other))).reason).toBe("NOT_FOUND");
    });

    test("needs an invite unless the operator says otherwise, and agents make none", async () => {
      const refused = await refusal(register(world, "nobody"));
      expect([refused.reason, refused.metadata.field]).toEqual(["INVALID_REQUEST", "invite"]);
      const agent = await (await world.org()).agent();
      expect((await refusal(agent.as.directory.createInvite({}))).reason).toBe("ROLE_REQUIRED");
    });

    test("by an invite that is taken back is refused; invites are listed, with how often they were used, without secrets", async () => {
      const [org, other] = [await world.org(), await world.org()];
      const make = async (more = {}) => await org.admin.directory.createInvite({ maxUses: 2, ...more });
      const [one, two, short] = [await make(), await make(), await make({ ttl: { seconds: 60n } })];
      await register(world, "first", one.secret);
      const list = async (more = {}) => await org.admin.directory.listInvites(more);
      const page = await list({ pageSize: 2 });
      const rest = await list({ pageSize: 2, pageToken: page.nextPageToken });
      const all = [...page.invites, ...rest.invites];
      expect(all.map(({ inviteId, uses }) => [inviteId, uses])).toEqual([
        [short.invite!.inviteId, 0],
        [two.invite!.inviteId, 0],
        [one.invite!.inviteId, 1],
      ]);
      expect(all[2]).toEqual({ ...one.invite, uses: 1 });
      expect(JSON.stringify(all.map(({ inviteId, orgId }) => [inviteId, orgId]))).not.toContain("mwi_");
      const { inviteId } = one.invite!;
      expect((await other.admin.directory.listInvites({})).invites).toEqual([]);
      expect((await refusal(other.admin.directory.revokeInvite({ inviteId }))).reason).toBe("NOT_FOUND");
      await register(world, "second", two.secret);
      await org.admin.directory.revokeInvite({ inviteId });
      expect((await refusal(register(world, "third", one.secret))).reason).toBe("NOT_FOUND");
      expect((await refusal(org.admin.directory.revokeInvite({ inviteId }))).reason).toBe("NOT_FOUND");
      expect((await org.admin.agents.listAgents({})).agents).toHaveLength(2);
      clock.advance(60_000);
      expect((await list()).invites.map(({ inviteId: id }) => id)).toEqual([two.invite!.inviteId]);
      const { agentId } = await register(world, "fourth", two.secret);
      const { secret: key } = await org.admin.keys.createApiKey({ agentId });
      expect((await refusal(world.as(key).directory.listInvites({}))).reason).toBe("ROLE_REQUIRED");
    });

    test("shows secrets once: a repeat under the same idempotency key makes nothing and names no key", async () => {
      const org = await world.org();
      const { secret } = await org.admin.directory.createInvite({ maxUses: 5 });
      const headers = { "idempotency-key": unique("register") };
      const again = () => world.as(undefined).directory.register({ name: "once", invite: secret }, { headers });
      const [first, second] = [await again(), await again()];
      expect(second).toMatchObject({ agentId: first.agentId, apiKey: "" });
      expect((await org.admin.agents.listAgents({})).agents).toHaveLength(1);
    });

    test("is closed where the operator closed it, for invites too", async () => {
      await using closed = await start(dialect, { registration: "closed" });
      expect((await refusal(register(closed, "nobody"))).reason).toBe("FAILED_PRECONDITION");
      expect((await refusal(closed.operator.directory.createInvite({}))).reason).toBe("FAILED_PRECONDITION");
    });

    test("open leads into the organisation of the setting, whatever names are taken there", async () => {
      await using open = await start(dialect, { registration: "open", registrationOrg: "newcomers" });
      expect((await refusal(register(open, "early"))).metadata).toMatchObject({ setting: "MOLTWIRE_REGISTRATION_ORG" });
      const org = await open.org("newcomers");
      await org.agent({ name: "scout" });
      const made = await register(open, "scout");
      expect(made).toMatchObject({ orgId: org.orgId, trustTier: TrustTier.PUBLIC_VENDOR, orgApiKey: "" });
      const other = await open.org();
      const { secret } = await other.admin.directory.createInvite({});
      expect((await register(open, "scout", secret)).orgId).toBe(other.orgId);
    });

    test("open-own-org gives each an organisation, its name as asked for and the key of its administrator", async () => {
      await using own = await start(dialect, {
        registration: "open-own-org",
        registrationTier: TrustTier.EXTERNAL_PARTNER,
      });
      const [one, two] = [await register(own, "scout"), await register(own, "scout")];
      expect([one.name, two.name, one.trustTier]).toEqual(["scout", "scout", TrustTier.EXTERNAL_PARTNER]);
      expect(one.orgId).not.toBe(two.orgId);
      const { agents } = await own.as(one.orgApiKey).agents.listAgents({});
      expect(agents.map(({ agentId }) => agentId)).toEqual([one.agentId]);
      expect((await refusal(own.as(one.orgApiKey).agents.getAgent({ agentId: two.agentId }))).reason).toBe("NOT_FOUND");
    });

    test("is limited by address to a twelfth of the rate of calls, and so is everybody without a key", async () => {
      const time = fakeClock();
      await using limited = await start(dialect, { registration: "open", rateLimit: 24, clock: time });
      const stranger = limited.as(undefined);
      for (let n = 0; n < 2; n++) await register(limited, `n${n}`);
      const refused = await refusal(register(limited, "third"));
      expect([refused.reason, refused.metadata.limit]).toEqual(["RATE_LIMITED", "2"]);
      for (let n = 0; n < 24; n++) await stranger.status.getStatus({});
      expect((await refusal(stranger.status.getStatus({}))).reason).toBe("RATE_LIMITED");
      await limited.operator.status.getStatus({});
      time.advance(60_001);
      await register(limited, "third");
    });
  });

  describe("a profile", () => {
    test("keeps what its update does not name", async () => {
      const { as } = await (await world.org()).agent({ capabilities: ["granted"] });
      const change = { description: "reads maps", capabilities: ["maps", "routes"], visibility: Visibility.PUBLIC };
      await as.directory.updateProfile({
        change,
        updateMask: { paths: ["description", "capabilities", "visibility"] },
      });
      const { profile } = await as.directory.updateProfile({
        change: { description: "reads old maps" },
        updateMask: { paths: ["description"] },
        ifRevision: 2n,
      });
      expect(profile).toMatchObject({
        ...change,
        description: "reads old maps",
        grantedCapabilities: ["granted"],
        revision: 3n,
      });
      expect((await as.directory.getProfile({})).profile).toEqual(profile);
      const lost = as.directory.updateProfile({ change: {}, updateMask: { paths: ["description"] }, ifRevision: 2n });
      expect((await refusal(lost)).metadata).toMatchObject({ field: "if_revision", revision: "3" });
    });

    test.each([
      ["a description of 513 characters", { description: "x".repeat(513) }, "description"],
      ["21 capabilities", { capabilities: Array.from({ length: 21 }, (_, n) => `c${n}`) }, "capabilities"],
      ["no visibility", {}, "visibility"],
      ["a field that is not its own", {}, "reputation"],
    ])("refuses %s", async (_what, change, path) => {
      const { as } = await (await world.org()).agent();
      expect((await refusal(as.directory.updateProfile({ change, updateMask: { paths: [path] } }))).reason).toBe(
        "INVALID_REQUEST",
      );
    });

    test("is busy until the time it said, and then available by itself", async () => {
      const org = await world.org();
      const { as, agentId } = await org.agent();
      const busyUntilTime = timestampFromMs(clock.now() + 60_000);
      const { profile } = await as.directory.updateStatus({
        change: { busyUntilTime },
        updateMask: { paths: ["busy_until_time"] },
      });
      expect(profile).toMatchObject({ availability: Availability.BUSY, busyUntilTime });
      const available = async () =>
        idsOf(await org.admin.directory.searchAgents({ available: true })).includes(agentId);
      expect(await available()).toBe(false);
      clock.advance(60_000);
      expect(await available()).toBe(true);
      expect((await as.directory.getProfile({})).profile).toMatchObject({ availability: Availability.AVAILABLE });
      const { profile: away } = await as.directory.updateStatus({
        change: { availability: Availability.AWAY, lookingFor: ["maps"] },
        updateMask: { paths: ["availability", "looking_for"] },
      });
      expect(away).toMatchObject({ availability: Availability.AWAY, lookingFor: ["maps"] });
      expect(away?.busyUntilTime).toBeUndefined();
      const past = { busyUntilTime: timestampFromMs(clock.now()) };
      for (const [change, paths] of [
        [past, ["busy_until_time"]],
        [{ ...past, availability: Availability.AWAY }, ["availability", "busy_until_time"]],
        [{ busyUntilTime: timestampFromMs(clock.now() + 400 * 86_400_000) }, ["busy_until_time"]],
      ] as const)
        expect((await refusal(as.directory.updateStatus({ change, updateMask: { paths: [...paths] } }))).reason).toBe(
          "INVALID_REQUEST",
        );
    });

    test("tells when its agent was last seen, to the minute, written at most once in it", async () => {
      const { as, agentId } = await (await world.org()).agent();
      const seen = async () => {
        await world.server.app.activity.flush();
        const { profile } = await world.operator.directory
          .searchAgents({})
          .then(() => as.directory.getProfile({ agentId }));
        return profile!.lastSeenTime && timestampMs(profile!.lastSeenTime);
      };
      await as.directory.getProfile({});
      const first = clock.now();
      expect(await seen()).toBe(first);
      clock.advance(59_000);
      await as.directory.getProfile({});
      expect(await seen()).toBe(first);
      clock.advance(1_000);
      await as.directory.getProfile({});
      expect(await seen()).toBe(first + 60_000);
    });

    test("is changed by its agent and its administrators, and by nobody else", async () => {
      const org = await world.org();
      const [one, other] = [await org.agent(), await org.agent()];
      const update = (as: Clients, agentId: string) =>
        as.directory.updateProfile({
          agentId,
          change: { description: "by whom?" },
          updateMask: { paths: ["description"] },
        });
      expect((await refusal(update(other.as, one.agentId))).reason).toBe("NOT_FOUND");
      await update(org.admin, one.agentId);
      expect((await refusal(update((await world.org()).admin, one.agentId))).reason).toBe("NOT_FOUND");
    });

    test("goes with its agent", async () => {
      const org = await world.org();
      const agent = await org.agent({ name: unique("going"), capabilities: ["going"] });
      await show(agent, Visibility.PUBLIC, { capabilities: ["going"] });
      await org.admin.agents.deleteAgent({ agentId: agent.agentId });
      const stranger = world.as(undefined);
      for (const search of [{ text: "going" }, { capabilities: ["going"] }, {}]) {
        expect(idsOf(await org.admin.directory.searchAgents(search))).toEqual([]);
        expect(idsOf(await stranger.directory.searchAgents(search))).not.toContain(agent.agentId);
      }
    });
  });

  describe("visibility", () => {
    let home: Org;
    let asking: OrgAgent;
    let away: OrgAgent;
    beforeAll(async () => {
      home = await world.org();
      asking = await home.agent();
      away = await (await world.org()).agent();
    });

    const searches = (word: string) => [
      {},
      { text: word },
      { capabilities: [word] },
      { capabilityPrefix: word.slice(0, -1) },
      { order: AgentOrder.LAST_ACTIVE },
      { order: AgentOrder.REPUTATION },
    ];
    /** Everything a caller is answered in which the agent could show. */
    async function allSeen(as: Clients, agentId: string, word: string, keyless = false): Promise<boolean[]> {
      const seen: boolean[] = [];
      for (const allOrganizations of [false, true])
        for (const search of searches(word)) {
          seen.push(
            idsOf(await as.directory.searchAgents({ ...search, allOrganizations, pageSize: 250 })).includes(agentId),
          );
        }
      seen.push(idsOf(await as.directory.listAgents({ pageSize: 250 })).includes(agentId));
      if (keyless) return seen;
      for (const allOrganizations of [false, true]) {
        const { matches } = await as.directory.matchAgents({ needs: [word], allOrganizations, maxMatches: 100 });
        seen.push(matches.some(({ profile }) => profile?.agentId === agentId));
      }
      return seen;
    }

    test("a private profile is invisible to others in every list, search and match, and its id is answered like none", async () => {
      const word = unique("hidden").replace("-", "");
      const hidden = await home.agent({ name: word, capabilities: [word] });
      await show(hidden, Visibility.PRIVATE, { description: `${word} it is`, capabilities: [word] });
      for (const as of [asking.as, away.as]) {
        expect(await allSeen(as, hidden.agentId, word)).not.toContain(true);
        const { agents } = await as.agents.listAgents({ capability: word });
        expect(agents).toEqual([]);
        const random = hidden.agentId.replace(/[0-9a-f]{6}$/, "ffffff");
        const ask = (agentId: string) => refusal(as.directory.getProfile({ agentId }));
        const [one, none] = [await ask(hidden.agentId), await ask(random)];
        expect({ ...one.metadata, trace_id: "" }).toEqual({ ...none.metadata, trace_id: "", id: hidden.agentId });
        expect([one.code, one.error.rawMessage]).toEqual([none.code, none.error.rawMessage]);
        const say = { taskId: "tsk_none", outcome: Outcome.SUCCESS, rating: 5 } as const;
        const log = (partnerAgentId: string) =>
          as.directory.logCollaboration({
            partnerAgentId,
            evidence: { case: "taskId", value: say.taskId },
            outcome: say.outcome,
            rating: say.rating,
          });
        expect((await refusal(log(hidden.agentId))).error.rawMessage).toBe(
          (await refusal(log(random))).error.rawMessage,
        );
        for (const call of [
          () => as.agents.getAgent({ agentId: hidden.agentId }),
          () => as.directory.listCollaborations({ agentId: hidden.agentId }),
        ])
          expect((await refusal(call())).reason).toBe("NOT_FOUND");
      }
      expect(await allSeen(world.as(undefined), hidden.agentId, word, true)).not.toContain(true);
      expect((await hidden.as.directory.getProfile({})).profile?.agentId).toBe(hidden.agentId);
      expect(idsOf(await hidden.as.directory.listAgents({}))).toContain(hidden.agentId);
      expect((await home.admin.directory.getProfile({ agentId: hidden.agentId })).profile?.name).toBe(word);
    });

    test("who asks for work is told neither names nor ids of private agents that do not do it: by no refusal, dry run or trace", async () => {
      const name = unique("hidden");
      const contractId = await addContract(world, home.orgId, { contractId: unique("work") });
      const toolId = await addContract(world, home.orgId, { contractId: unique("work"), requiredTools: ["shell"] });
      const hidden = await home.agent({ name, capabilities: [contractId, toolId] });
      await show(hidden, Visibility.PRIVATE, {});
      const said = (...all: unknown[]) =>
        JSON.stringify(all, (_, one) => (typeof one === "bigint" ? String(one) : one));
      const tells = (...all: unknown[]) => [name, hidden.agentId].map((word) => said(...all).includes(word));
      const traceOf = async (by: Clients, traceId: string) => (await by.traces.getTrace({ traceId })).events;
      const refused = async (by: Clients, contract: string) => {
        const { reason, metadata, error } = await refusal(
          by.bus.submitTask({ contractId: contract, input: value("x") }),
        );
        return { reason, error: [error.rawMessage, metadata], traceId: metadata.trace_id! };
      };
      const asked = await refused(asking.as, contractId);
      expect([asked.reason, tells(asked.error)]).toEqual(["NO_CAPABLE_AGENT", [false, false]]);
      expect(said(asked.error)).toContain("1 more may not");
      expect(tells(await traceOf(asking.as, asked.traceId))).toEqual([false, false]);
      // Administrators see it all.
      expect(tells(await traceOf(home.admin, asked.traceId))).toEqual([true, true]);
      expect(tells((await refused(home.admin, contractId)).error)[0]).toBe(true);

      const echo = { endpoint: { kind: { case: "echo", value: {} } } } as const;
      const paths = ["endpoint"];
      await home.admin.agents.updateAgent({ agentId: hidden.agentId, change: echo, updateMask: { paths } });
      const toolless = await refused(asking.as, toolId);
      expect([toolless.reason, tells(toolless.error)]).toEqual(["POLICY_DENIED", [false, false]]);
      expect(tells(await traceOf(asking.as, toolless.traceId))).toEqual([false, false]);

      // One that shows itself is more trusted, and goes first.
      await home.agent({ capabilities: [contractId], trustTier: TrustTier.INTERNAL_TRUSTED, ...echo });
      await home.admin.agents.updateAgent({
        agentId: hidden.agentId,
        change: { trustTier: TrustTier.EXTERNAL_PARTNER },
        updateMask: { paths: ["trust_tier"] },
      });
      const wish = { contractId, input: value("x") };
      const { task } = await asking.as.bus.submitTask(wish);
      const { decisionPath } = await asking.as.bus.submitTask({ ...wish, validateOnly: true });
      const watched: unknown[] = [];
      for await (const { event } of asking.as.bus.watchTask({ taskId: task!.taskId })) watched.push(event);
      expect(watched.length).toBeGreaterThan(2);
      const ofTask = await traceOf(asking.as, task!.traceId);
      expect(said(ofTask)).toContain("whose profile is private");
      expect(tells(task, decisionPath, watched, ofTask)).toEqual([false, false]);
      expect(tells(await traceOf(home.admin, task!.traceId))).toEqual([true, true]);
    });

    test("a profile of the organisation is seen there and nowhere else", async () => {
      const word = unique("inside").replace("-", "");
      const agent = await home.agent({ name: word, capabilities: [word] });
      expect(await allSeen(asking.as, agent.agentId, word)).toContain(true);
      expect(await allSeen(away.as, agent.agentId, word)).not.toContain(true);
      expect(await allSeen(world.as(undefined), agent.agentId, word, true)).not.toContain(true);
      expect((await refusal(away.as.directory.getProfile({ agentId: agent.agentId }))).reason).toBe("NOT_FOUND");
    });

    test("a public profile is seen by everybody, with what it advertises and not what it was granted, and without credits", async () => {
      const [word, secret] = [unique("open").replace("-", ""), unique("secret").replace("-", "")];
      const agent = await home.agent({ capabilities: [secret] });
      await show(agent, Visibility.PUBLIC, { capabilities: [word], description: "for all" });
      for (const as of [away.as, world.as(undefined)]) {
        const { profiles } = await as.directory.searchAgents({ capabilities: [word], allOrganizations: true });
        expect(profiles).toHaveLength(1);
        expect(profiles[0]).toMatchObject({ agentId: agent.agentId, capabilities: [word], grantedCapabilities: [] });
        for (const search of [{ capabilities: [secret] }, { text: secret }, { capabilityPrefix: secret }])
          expect(idsOf(await as.directory.searchAgents({ ...search, allOrganizations: true }))).toEqual([]);
      }
      expect((await away.as.directory.getProfile({ agentId: agent.agentId })).profile?.description).toBe("for all");
      const answer = await fetch(`${world.url}/moltwire.directory.v1.DirectoryService/SearchAgents`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ text: word }),
      });
      const raw = await answer.text();
      expect(raw).toContain(agent.agentId);
      expect(raw).not.toMatch(/credit/i);
      expect(idsOf(await asking.as.directory.searchAgents({ capabilities: [secret] }))).toEqual([agent.agentId]);
      const orgId = home.orgId;
      const disable = (disabled: boolean) =>
        world.operator.organizations.updateOrganization({
          orgId,
          change: { disabled },
          updateMask: { paths: ["disabled"] },
        });
      await disable(true);
      expect(idsOf(await world.as(undefined).directory.searchAgents({ text: word }))).toEqual([]);
      expect((await refusal(away.as.directory.getProfile({ agentId: agent.agentId }))).reason).toBe("NOT_FOUND");
      await disable(false);
    });

    test("a key that may not read the directory sees what is seen without one", async () => {
      const word = unique("scoped").replace("-", "");
      const agent = await home.agent({ name: word });
      const { secret } = await home.admin.keys.createApiKey({ scopes: ["memory:read"] });
      const search = () => world.as(secret).directory.searchAgents({ text: word });
      expect(idsOf(await search())).toEqual([]);
      await show(agent, Visibility.PUBLIC);
      const { profiles } = await search();
      expect(profiles.map(({ agentId, name }) => [agentId, name])).toEqual([[agent.agentId, word]]);
    });

    test("what somebody writes about itself opens no other organisation's search", async () => {
      const word = unique("trick").replace("-", "");
      const liar = away;
      await show(liar, Visibility.ORG, { description: `${word} xscopepublic xscope${home.orgId.replace("_", "")}` });
      for (const as of [asking.as, world.as(undefined)])
        expect(idsOf(await as.directory.searchAgents({ text: word }))).toEqual([]);
    });
  });

  describe("search", () => {
    let org: Org;
    let agents: OrgAgent[];
    beforeAll(async () => {
      org = await world.org();
      agents = [];
      for (let n = 0; n < 7; n++) {
        agents.push(
          await org.agent({
            name: `finder-${n}`,
            capabilities: n % 2 === 0 ? ["maps/read"] : ["maps/write"],
            trustTier: n < 3 ? TrustTier.EXTERNAL_PARTNER : TrustTier.INTERNAL_TRUSTED,
          }),
        );
      }
      await show(agents[0]!, Visibility.ORG, {
        description: "Crème brûlée and 100%_ maps",
        capabilities: ["maps/draw", "cook"],
      });
      await agents[1]!.as.directory.updateStatus({
        change: { lookingFor: ["brulee"] },
        updateMask: { paths: ["looking_for"] },
      });
    });
    const found = async (search: Parameters<Clients["directory"]["searchAgents"]>[0]) =>
      idsOf(await org.admin.directory.searchAgents(search)).map((id) =>
        agents.findIndex(({ agentId }) => agentId === id),
      );

    test("finds by words of names, descriptions, capabilities and what is looked for, by their beginnings, all of them", async () => {
      expect(await found({ text: "BRULEE" })).toEqual([1, 0]);
      expect(await found({ text: "crème bru" })).toEqual([0]);
      expect(await found({ text: "finder 3" })).toEqual([3]);
      expect(await found({ text: "draw" })).toEqual([0]);
      expect(await found({ text: "brulee nothing" })).toEqual([]);
      expect(await found({ text: `"finder" OR NOT * (draw` })).toEqual([]);
      expect((await refusal(org.admin.directory.searchAgents({ text: "%_" }))).metadata.field).toBe("text");
      expect((await refusal(org.admin.directory.searchAgents({ text: "a ".repeat(11) }))).metadata.field).toBe("text");
    });

    test("finds by capabilities, exactly, several, or by a prefix that is no pattern", async () => {
      expect(await found({ capabilities: ["maps/read"] })).toEqual([6, 4, 2, 0]);
      expect(await found({ capabilities: ["maps/read", "maps/draw"] })).toEqual([0]);
      expect(await found({ capabilities: ["maps"] })).toEqual([]);
      expect(await found({ capabilityPrefix: "maps/" })).toEqual([6, 5, 4, 3, 2, 1, 0]);
      expect(await found({ capabilityPrefix: "maps/w" })).toEqual([5, 3, 1]);
      expect(await found({ capabilityPrefix: "maps%" })).toEqual([]);
      expect(await found({ capabilityPrefix: "c" })).toEqual([0]);
    });

    test("knows a name, a description and a grant that were changed by their new words only", async () => {
      const agent = await org.agent({ name: unique("before"), capabilities: ["old-skill"] });
      const { agentId } = agent;
      const change = { name: unique("after"), capabilities: ["new-skill"] };
      await org.admin.agents.updateAgent({ agentId, change, updateMask: { paths: ["name", "capabilities"] } });
      const finds = async (search: object) => idsOf(await org.admin.directory.searchAgents(search)).includes(agentId);
      expect([
        await finds({ text: "after" }),
        await finds({ text: "new" }),
        await finds({ capabilities: ["new-skill"] }),
      ]).toEqual([true, true, true]);
      expect([
        await finds({ text: "before" }),
        await finds({ text: "old" }),
        await finds({ capabilities: ["old-skill"] }),
      ]).toEqual([false, false, false]);
      await org.admin.agents.deleteAgent({ agentId });
    });

    test("takes tier and last activity into account, and pages through all of it once, in every order", async () => {
      expect(await found({ trustTier: TrustTier.EXTERNAL_PARTNER })).toEqual([2, 1, 0]);
      clock.advance(120_000);
      const activeSinceTime = timestampFromMs(clock.now());
      await agents[4]!.as.directory.getProfile({});
      await world.server.app.activity.flush();
      expect(await found({ activeSinceTime })).toEqual([4]);
      for (const order of [AgentOrder.UNSPECIFIED, AgentOrder.NEWEST, AgentOrder.REPUTATION, AgentOrder.LAST_ACTIVE])
        for (const filter of [{}, { text: "finder" }, { capabilityPrefix: "maps" }]) {
          const seen: string[] = [];
          let pageToken = "";
          do {
            const answer = await org.admin.directory.searchAgents({ ...filter, order, pageSize: 3, pageToken });
            seen.push(...idsOf(answer));
            pageToken = answer.nextPageToken;
          } while (pageToken !== "");
          expect(seen.toSorted()).toEqual(agents.map(({ agentId }) => agentId).toSorted());
          if (order === AgentOrder.LAST_ACTIVE) expect(seen[0]).toBe(agents[4]!.agentId);
        }
      const { nextPageToken } = await org.admin.directory.searchAgents({ text: "finder", pageSize: 3 });
      const others = org.admin.directory.searchAgents({ text: "maps", pageSize: 3, pageToken: nextPageToken });
      expect((await refusal(others)).reason).toBe("INVALID_PAGE_TOKEN");
    });
  });

  test("what a filter leaves of many is found whole, page by page, and no page looks at more than its share", async () => {
    const org = await world.org();
    const { ids, db } = world.server.app;
    const many = walkLength + 200;
    const word = unique("crowd").replace("-", "");
    const agentIds = Array.from({ length: many }, () => ids.next("agt"));
    const rare = (n: number) => n % 700 === 3;
    await db.tx(async (tx) => {
      for (const [n, agentId] of agentIds.entries())
        await insertAgent(tx, plainAgent(org.orgId, agentId, `${word}-${n}`, rare(n)));
    });
    const expected = agentIds
      .filter((_, n) => rare(n))
      .toSorted()
      .toReversed();
    const trustTier = TrustTier.EXTERNAL_PARTNER;
    for (const filter of [{}, { text: word }, { capabilities: ["common"] }, { capabilityPrefix: "com" }]) {
      const seen: string[] = [];
      let [pageToken, pages] = ["", 0];
      do {
        const answer = await org.admin.directory.searchAgents({ ...filter, trustTier, pageSize: 2, pageToken });
        seen.push(...idsOf(answer));
        pageToken = answer.nextPageToken;
        pages++;
      } while (pageToken !== "");
      expect(seen).toEqual(expected);
      expect(pages).toBeLessThanOrEqual(expected.length / 2 + 2);
    }
    const one = await org.admin.directory.searchAgents({ text: `${word} ${many - 1}`, pageSize: 1 });
    expect([idsOf(one), one.nextPageToken]).toEqual([[agentIds.at(-1)], ""]);
  });

  test("what a transaction undoes leaves nothing to be found, and of its batch all else is", async () => {
    const { orgId, admin } = await world.org();
    const { ids, db } = world.server.app;
    const words = Array.from({ length: 12 }, (_, n) => `undone${n % 3}`);
    const added = await Promise.allSettled(
      words.map((word, n) =>
        db.tx(async (tx) => {
          await insertAgent(tx, plainAgent(orgId, ids.next("agt"), `${word}-${n}`, false));
          if (word === "undone0") throw new Error("on purpose");
        }),
      ),
    );
    expect(added.filter(({ status }) => status === "rejected")).toHaveLength(4);
    for (const [text, found] of [
      ["undone0", 0],
      ["undone1", 4],
      ["undone", 8],
    ] as const)
      expect((await admin.directory.searchAgents({ text })).profiles).toHaveLength(found);
    expect((await admin.directory.searchAgents({ capabilities: ["common"] })).profiles).toHaveLength(8);
  });

  test("changes of an agent and of its profile at once leave it to be found by both", async () => {
    const org = await world.org();
    for (let n = 0; n < 5; n++) {
      const agent = await org.agent({ capabilities: [`old${n}`] });
      const { agentId } = agent;
      const change = { capabilities: [`granted${n}`], name: `renamed${n}` };
      await Promise.all([
        org.admin.agents.updateAgent({ agentId, change, updateMask: { paths: ["capabilities", "name"] } }),
        show(agent, Visibility.ORG, { capabilities: [`advertised${n}`] }),
        agent.as.directory.updateStatus({
          change: { lookingFor: [`wanted${n}`] },
          updateMask: { paths: ["looking_for"] },
        }),
      ]);
      for (const search of [
        { text: `renamed${n}` },
        { text: `wanted${n}` },
        { capabilities: [`granted${n}`, `advertised${n}`] },
      ])
        expect(idsOf(await org.admin.directory.searchAgents(search))).toEqual([agentId]);
      expect(idsOf(await org.admin.directory.searchAgents({ capabilities: [`old${n}`] }))).toEqual([]);
    }
  });

  describe("collaborations", () => {
    let org: Org;
    let [caller, worker, other]: OrgAgent[] = [];
    const capability = unique("can");
    const contractId = unique("contract");
    beforeAll(async () => {
      org = await world.org();
      caller = await org.agent();
      worker = await org.agent({ capabilities: [capability], endpoint: { kind: { case: "echo", value: {} } } });
      other = await org.agent();
      await addContract(world, org.orgId, { contractId, capability });
    });
    const task = async () =>
      (await caller!.as.bus.submitTask({ contractId, contractVersion: "1.0.0", input: value({}) })).task!.taskId;
    type Saying = { taskId?: string; jobId?: string; rating?: number; outcome?: Outcome };
    const say = (by: OrgAgent, of: OrgAgent, { taskId, jobId, rating = 5, outcome = Outcome.SUCCESS }: Saying) =>
      by.as.directory.logCollaboration({
        partnerAgentId: of.agentId,
        taskType: "trying",
        ...{ rating, outcome },
        evidence: jobId ? { case: "jobId", value: jobId } : { case: "taskId", value: taskId! },
      });

    test("a task both took part in lets each rate the other, once, and the reputation follows the formula", async () => {
      const [one, two] = [await task(), await task()];
      expect((await say(caller!, worker!, { taskId: one })).partnerReputation).toBe(5);
      const second = await say(caller!, worker!, { taskId: two, rating: 2, outcome: Outcome.PARTIAL });
      expect(second.partnerReputation).toBeCloseTo((5 + 0.7 * 2 + 0.3 * 2.5) / 2, 3);
      expect((await refusal(say(caller!, worker!, { taskId: one }))).reason).toBe("ALREADY_EXISTS");
      expect((await say(worker!, caller!, { taskId: one, rating: 4 })).partnerReputation).toBeCloseTo(4.3, 3);
      const { profile } = await caller!.as.directory.getProfile({ agentId: worker!.agentId });
      expect(profile).toMatchObject({ reputation: second.partnerReputation, ratings: 2n });
      const min = (minReputation: number) => caller!.as.directory.searchAgents({ minReputation });
      expect(idsOf(await min(3.575))).toContain(worker!.agentId);
      expect(idsOf(await min(3.576))).not.toContain(worker!.agentId);
      const { profiles } = await caller!.as.directory.listAgents({ order: AgentOrder.REPUTATION });
      expect(profiles.slice(0, 2).map(({ agentId }) => agentId)).toEqual([caller!.agentId, worker!.agentId]);
    });

    test("without evidence there is none: not of a task of others, one that is not there, a partner who took no part, or oneself", async () => {
      const taskId = await task();
      const { agentId } = other!;
      const before = (await org.admin.directory.getProfile({ agentId })).profile?.ratings;
      expect((await refusal(say(other!, worker!, { taskId }))).reason).toBe("NOT_FOUND");
      expect((await refusal(say(caller!, worker!, { taskId: "tsk_none" }))).reason).toBe("NOT_FOUND");
      expect((await refusal(say(caller!, worker!, { jobId: taskId }))).reason).toBe("NOT_FOUND");
      for (const partner of [other!, caller!])
        expect((await refusal(say(caller!, partner, { taskId }))).metadata.field).toBe("partner_agent_id");
      const stranger = await (await world.org()).agent();
      expect((await refusal(say(stranger, worker!, { taskId }))).reason).toBe("NOT_FOUND");
      expect((await org.admin.directory.getProfile({ agentId })).profile?.ratings).toBe(before);
    });

    test("a job is evidence once it has ended, between who submitted it and who worked on it", async () => {
      const { results } = await caller!.as.queues.submitJobs({ jobs: [{ queue: "rated" }] });
      const { jobId } = results[0]!.job!;
      const { jobs } = await worker!.as.queues.claimJobs({ queues: ["rated"] });
      expect((await refusal(say(caller!, worker!, { jobId }))).reason).toBe("FAILED_PRECONDITION");
      await worker!.as.queues.completeJob({ jobId, leaseToken: jobs[0]!.leaseToken });
      expect((await say(worker!, caller!, { jobId })).collaboration?.evidence).toEqual({ case: "jobId", value: jobId });
    });

    test("a thread of messages is evidence between two who wrote to one another in it, or both to one channel", async () => {
      const payload = { kind: { case: "data", value: Buffer.from("hi") } } as const;
      const write = (by: OrgAgent, to: OrgAgent, threadId: string) =>
        by.as.relay.send({ to: { case: "toAgentId", value: to.agentId }, payload, threadId });
      const log = (by: OrgAgent, of: OrgAgent, threadId: string) =>
        by.as.directory.logCollaboration({
          ...{ partnerAgentId: of.agentId, outcome: Outcome.SUCCESS, rating: 5 },
          evidence: { case: "threadId", value: threadId },
        });
      const threadId = unique("thread");
      expect((await refusal(log(caller!, worker!, threadId))).reason).toBe("NOT_FOUND");
      await write(caller!, worker!, threadId);
      expect((await refusal(log(caller!, worker!, threadId))).metadata.field).toBe("partner_agent_id");
      expect((await refusal(log(worker!, caller!, threadId))).reason).toBe("NOT_FOUND");
      await write(worker!, other!, threadId);
      expect((await refusal(log(caller!, worker!, threadId))).metadata.field).toBe("partner_agent_id");
      await write(worker!, caller!, threadId);
      const { collaboration } = await log(caller!, worker!, threadId);
      expect(collaboration?.evidence).toEqual({ case: "threadId", value: threadId });
      expect((await refusal(log(caller!, worker!, threadId))).reason).toBe("ALREADY_EXISTS");
      await log(worker!, caller!, threadId);
      expect((await refusal(log(other!, worker!, threadId))).reason).toBe("NOT_FOUND");
      expect((await refusal(log(caller!, caller!, threadId))).metadata.field).toBe("partner_agent_id");
      const channel = unique("channel");
      await caller!.as.relay.createChannel({ name: channel });
      const inChannel = unique("thread");
      const publish = (by: OrgAgent) =>
        by.as.relay.send({ to: { case: "toChannel", value: channel }, payload, threadId: inChannel });
      await publish(caller!);
      expect((await refusal(log(caller!, other!, inChannel))).metadata.field).toBe("partner_agent_id");
      await publish(other!);
      await log(caller!, other!, inChannel);
    });

    test("a task of the marketplace is evidence once it was delivered and has ended, also between organisations", async () => {
      const stranger = await (await world.org()).agent();
      await org.admin.billing.transferCredits({ toAgentId: caller!.agentId, amountMicros: 10n });
      const { taskId } = await post(caller!.as, { rewardMicros: 1n });
      const log = (by: OrgAgent, of: OrgAgent, id = taskId) =>
        by.as.directory.logCollaboration({
          ...{ partnerAgentId: of.agentId, outcome: Outcome.SUCCESS, rating: 3 },
          evidence: { case: "marketplaceTaskId", value: id },
        });
      await work(stranger.as, taskId);
      expect((await refusal(log(stranger, caller!))).reason).toBe("FAILED_PRECONDITION");
      await accept(caller!.as, taskId, 5);
      // The review has said it.
      expect((await refusal(log(caller!, stranger))).reason).toBe("ALREADY_EXISTS");
      const before = (await caller!.as.directory.getProfile({})).profile!.ratings;
      const { collaboration } = await log(stranger, caller!);
      expect(collaboration?.evidence).toEqual({ case: "marketplaceTaskId", value: taskId });
      expect((await caller!.as.directory.getProfile({})).profile!.ratings).toBe(before + 1n);
      expect((await refusal(log(other!, stranger))).reason).toBe("NOT_FOUND");
      expect((await refusal(log(stranger, other!))).metadata.field).toBe("partner_agent_id");
      const unrated = await post(caller!.as, { rewardMicros: 1n });
      await work(stranger.as, unrated.taskId);
      await accept(caller!.as, unrated.taskId);
      expect((await log(caller!, stranger, unrated.taskId)).partnerReputation).toBeCloseTo((5 + 0.7 * 3 + 1.5) / 2, 2);
      const canceled = await post(caller!.as, { rewardMicros: 1n });
      await caller!.as.market.cancelTask({ taskId: canceled.taskId });
      expect((await refusal(log(caller!, stranger, canceled.taskId))).metadata.field).toBe("partner_agent_id");
    });

    test("twenty who say the same at once are heard once", async () => {
      const taskId = await task();
      const before = (await worker!.as.directory.getProfile({})).profile!.ratings;
      const said = await Promise.allSettled(Array.from({ length: 20 }, () => say(caller!, worker!, { taskId })));
      expect(said.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
      expect((await worker!.as.directory.getProfile({})).profile!.ratings).toBe(before + 1n);
    });

    test("ratings of one agent at once all count", async () => {
      const before = (await worker!.as.directory.getProfile({})).profile!.ratings;
      const tasks = await Promise.all(Array.from({ length: 8 }, () => task()));
      await Promise.all(tasks.map((taskId) => say(caller!, worker!, { taskId, rating: 1, outcome: Outcome.FAILURE })));
      expect((await worker!.as.directory.getProfile({})).profile!.ratings).toBe(before + 8n);
    });

    test("are listed to those who took part, newest first, by side and by page", async () => {
      const all: string[] = [];
      let pageToken = "";
      do {
        const answer = await worker!.as.directory.listCollaborations({ pageSize: 4, pageToken });
        all.push(...answer.collaborations.map(({ collaborationId }) => collaborationId));
        pageToken = answer.nextPageToken;
      } while (pageToken);
      expect(all).toEqual(all.toSorted().toReversed());
      const side = async (side: CollaborationSide) =>
        (await worker!.as.directory.listCollaborations({ side, pageSize: 250 })).collaborations;
      const [given, received] = [await side(CollaborationSide.GIVEN), await side(CollaborationSide.RECEIVED)];
      expect(given.length + received.length).toBe(all.length);
      expect(new Set(given.map(({ agentId }) => agentId))).toEqual(new Set([worker!.agentId]));
      expect(new Set(received.map(({ partnerAgentId }) => partnerAgentId))).toEqual(new Set([worker!.agentId]));
      expect((await refusal(other!.as.directory.listCollaborations({ agentId: worker!.agentId }))).reason).toBe(
        "NOT_FOUND",
      );
    });

    test("a match ranks by what the agents are and did, and says why", async () => {
      const busy = await org.agent({ capabilities: [capability] });
      await busy.as.directory.updateStatus({
        change: { availability: Availability.BUSY },
        updateMask: { paths: ["availability"] },
      });
      const merely = await org.agent();
      await show(merely, Visibility.ORG, { capabilities: [capability] });
      await org.agent({ capabilities: ["something-else"] });
      const disabled = await org.agent({ capabilities: [capability] });
      await org.admin.agents.updateAgent({
        agentId: disabled.agentId,
        change: { disabled: true },
        updateMask: { paths: ["disabled"] },
      });
      const { matches } = await caller!.as.directory.matchAgents({ needs: [capability] });
      expect(matches.map(({ profile }) => profile!.agentId)).toEqual([worker!.agentId, busy.agentId, merely.agentId]);
      for (const { score, factors } of matches) {
        expect(score).toBeCloseTo(
          factors.reduce((sum, { value, weight }) => sum + value * weight, 0),
          9,
        );
        expect(factors.map(({ name }) => name)).toEqual(["fit", "availability", "reputation", "load", "latency"]);
      }
      expect(matches[0]!.factors.map(({ reason }) => reason)).toEqual([
        `has 1 of 1: ${capability}`,
        "available",
        expect.stringMatching(/^reputation \d\.\d of \d+ ratings$/),
        "0 open tasks",
        expect.stringMatching(/^completes in \d+ ms$/),
      ]);
      const best = await caller!.as.directory.matchAgents({ needs: [capability], minReputation: 0.5 });
      expect(best.matches.map(({ profile }) => profile!.agentId)).toEqual([worker!.agentId]);
      await show(worker!, Visibility.PUBLIC, { capabilities: [capability] });
      const away = await (await world.org()).agent();
      const abroad = await away.as.directory.matchAgents({ needs: [capability], allOrganizations: true });
      expect(abroad.matches.map(({ factors }) => factors.slice(3).map(({ reason }) => reason))).toEqual([
        ["load unknown", "latency unknown"],
      ]);
      expect((await away.as.directory.matchAgents({ needs: [capability] })).matches).toEqual([]);
    });
  });
});

test("settings of registration are read, and a wrong one says what is right", () => {
  const config = (env: Record<string, string>) => readConfig([], env);
  expect(config({})).toMatchObject({
    registration: "invite",
    registrationOrg: "",
    registrationTier: TrustTier.PUBLIC_VENDOR,
  });
  expect(
    config({ MOLTWIRE_REGISTRATION: "open-own-org", MOLTWIRE_REGISTRATION_TIER: "EXTERNAL_PARTNER" }),
  ).toMatchObject({
    registration: "open-own-org",
    registrationTier: TrustTier.EXTERNAL_PARTNER,
  });
  expect(() => config({ MOLTWIRE_REGISTRATION: "yes" })).toThrow("closed, invite, open, open-own-org");
  expect(() => config({ MOLTWIRE_REGISTRATION_TIER: "UNSPECIFIED" })).toThrow("PUBLIC_VENDOR");
});
