import { create, type JsonObject } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { BadRequestSchema } from "../gen/google/rpc/error_details_pb.ts";
import { TrustTier } from "../gen/moltwire/bus/v1/agent_pb.ts";
import { type PolicyAnswer, PolicyEffect, PolicyOrigin, PolicyVerdict } from "../gen/moltwire/bus/v1/policy_pb.ts";
import { DecisionWindowSchema } from "../gen/moltwire/bus/v1/policy_service_pb.ts";
import { findAgent } from "../src/bus/agent-store.ts";
import { findApproval } from "../src/bus/approval/store.ts";
import { findContract } from "../src/bus/contract-store.ts";
import { decideApprover } from "../src/bus/policy/decide-approval.ts";
import { type Decided, decideInvoke, decideTools, policyDenied } from "../src/bus/policy/decide-task.ts";
import { recordDecisions } from "../src/bus/policy/decision-store.ts";
import { simulate as goThrough } from "../src/bus/policy/simulate.ts";
import { contract, echoEndpoint, nameOf, submit, value } from "./bus-fixtures/bus.ts";
import { migratedDatabase } from "./engines.ts";
import {
  clientsAt,
  dialects,
  fakeClock,
  type Org,
  type OrgAgent,
  refusal,
  start,
  unique,
  type World,
} from "./harness.ts";

const verdictOf = (answer: PolicyAnswer | undefined): string => nameOf(PolicyVerdict, answer?.verdict);
const idsOf = (answer: PolicyAnswer | undefined): string[] =>
  answer!.determiningPolicies.map(({ policyId }) => policyId);
const traceId = "a".repeat(32);

describe.each(dialects)("policies on %s", (dialect) => {
  let world: World;
  const clock = fakeClock();
  beforeAll(async () => {
    world = await start(dialect, { clock });
  });
  afterAll(() => world[Symbol.asyncDispose]());

  /** Asks TestPolicy whether an agent may invoke a contract. */
  async function ask(org: Org, agentId: string, contractId: string, context: JsonObject = {}, draft?: object) {
    const reply = await org.admin.policies.testPolicy({
      subject: {
        case: "question",
        value: {
          principal: { type: "Agent", id: agentId },
          action: "invoke",
          resource: { type: "Contract", id: contractId },
          context,
        },
      },
      ...(draft && { draft }),
    });
    return { verdict: verdictOf(reply.answer), answer: reply.answer!, reply };
  }
  const put = (org: Org, policyId: string, cedarText: string, more: object = {}) =>
    org.admin.policies.putPolicy({ policyId, cedarText, ...more });
  const agent = (org: Org, trustTier: TrustTier, more: object = {}) => org.agent({ trustTier, ...more });

  /** Decides for real, as the task pipeline does, and keeps the decision. */
  async function decided(
    org: Org,
    by: OrgAgent | undefined,
    contractId: string,
    {
      at = world,
      tokens = 0,
      taskId = "",
      trace = traceId,
    }: { at?: World; tokens?: number; taskId?: string; trace?: string } = {},
  ): Promise<Decided & { decisionId: string }> {
    const { app } = at.server;
    return app.db.tx(async (tx) => {
      const row = (await findContract(tx, org.orgId, contractId, "1.0.0"))!;
      const caller = by && (await findAgent(tx, org.orgId, by.agentId));
      const now = app.clock.now();
      const common = { orgId: org.orgId, contract: row, tokens, origin: "bus", now } as const;
      const one = await decideInvoke(app, tx, { ...common, caller, targetAgentId: "" });
      const [decisionId] = await recordDecisions(tx, app, { orgId: org.orgId, traceId: trace, taskId, now }, [one]);
      return { ...one, decisionId: decisionId! };
    });
  }

  describe("the built-in policies", () => {
    test("give each tier what it is trusted with, and nothing to a vendor", async () => {
      const org = await world.org();
      const trusted = await agent(org, TrustTier.INTERNAL_TRUSTED);
      const restricted = await agent(org, TrustTier.INTERNAL_RESTRICTED);
      const partner = await agent(org, TrustTier.EXTERNAL_PARTNER);
      const vendor = await agent(org, TrustTier.PUBLIC_VENDOR);
      const open = await contract(org);
      const inner = await contract(org, { securityClass: TrustTier.INTERNAL_TRUSTED });
      const named = await contract(org, { partnerAgentIds: [partner.agentId] });
      const table = async (contractId: string) => {
        const verdicts = [trusted, restricted, partner, vendor].map(
          async ({ agentId }) => (await ask(org, agentId, contractId)).verdict,
        );
        return Promise.all(verdicts);
      };
      expect(await table(open)).toEqual(["ALLOW", "ALLOW", "DENY", "DENY"]);
      expect(await table(inner)).toEqual(["ALLOW", "DENY", "DENY", "DENY"]);
      expect(await table(named)).toEqual(["ALLOW", "ALLOW", "ALLOW", "DENY"]);
      expect(idsOf((await ask(org, partner.agentId, named)).answer)).toEqual(["builtin/external-partner"]);
    });

    test("say, where nothing permits, which policy would and how to try it; that policy does", async () => {
      const org = await world.org();
      const vendor = await agent(org, TrustTier.PUBLIC_VENDOR);
      const contractId = await contract(org);
      const { answer } = await ask(org, vendor.agentId, contractId);
      expect(answer.determiningPolicies).toEqual([]);
      expect(answer.reasons[0]).toMatch(/TestPolicy/);
      const suggested = /permit \(.*\);/.exec(answer.reasons[0]!)![0];
      await put(org, "suggested", suggested);
      const after = await ask(org, vendor.agentId, contractId);
      expect([after.verdict, idsOf(after.answer)]).toEqual(["ALLOW", ["suggested"]]);
    });

    test("let an administrator do what it wants inside its organisation, unless a policy of its own forbids", async () => {
      const org = await world.org();
      const contractId = await contract(org);
      const { answer } = await decided(org, undefined, contractId);
      expect([answer.verdict, answer.determining[0]?.policyId]).toEqual(["ALLOW", "builtin/administrator"]);
      await put(
        org,
        "nobody",
        `forbid (principal, action == Action::"invoke", resource == Contract::"${contractId}");`,
      );
      expect((await decided(org, undefined, contractId)).answer).toMatchObject({
        verdict: "DENY",
        determining: [{ policyId: "nobody", revision: 1 }],
      });
    });

    test("let an agent use the tools it was given, and an organisation forbid one", async () => {
      const org = await world.org();
      const contractId = await contract(org, { requiredTools: ["calculator", "web_search", "shell"] });
      const worker = await agent(org, TrustTier.INTERNAL_RESTRICTED, { allowedTools: ["calculator", "web_search"] });
      const tools = () =>
        world.server.app.db.tx(async (tx) => {
          const row = (await findContract(tx, org.orgId, contractId, "1.0.0"))!;
          const who = (await findAgent(tx, org.orgId, worker.agentId))!;
          return decideTools(world.server.app, tx, {
            orgId: org.orgId,
            agent: who,
            contract: row,
            tokens: 0,
            origin: "bus",
            now: 0,
          });
        });
      const first = await tools();
      expect(first.decisions.map(({ answer }) => answer.verdict)).toEqual(["ALLOW", "ALLOW", "DENY"]);
      expect(first.denied?.tool).toBe("shell");
      await put(
        org,
        "no-web",
        `forbid (principal, action == Action::"use_tool", resource == Tool::"web_search") when { principal.tier == Tier::"INTERNAL_RESTRICTED" };`,
      );
      const second = await tools();
      expect(second.denied?.tool).toBe("web_search");
      expect(policyDenied(second.denied!.decided)).toMatchObject({
        reason: "POLICY_DENIED",
        metadata: { policy_ids: "no-web", action: "use_tool" },
      });
    });

    test("let trusted agents and administrators decide on requests, and nobody on its own", async () => {
      const org = await world.org();
      const contractId = await contract(org, { approvalRequired: true });
      const endpoint = { kind: { case: "echo", value: {} } } as const;
      await agent(org, TrustTier.INTERNAL_TRUSTED, { capabilities: [contractId], endpoint });
      const [asker, peer] = [
        await agent(org, TrustTier.INTERNAL_TRUSTED),
        await agent(org, TrustTier.INTERNAL_TRUSTED),
      ];
      const restricted = await agent(org, TrustTier.INTERNAL_RESTRICTED);
      const { approvalId } = await submit(asker.as, contractId);
      const { app } = world.server;
      const decider = async (by: OrgAgent | undefined, ownRequest = false) => {
        const approval = (await findApproval(app.db.query, org.orgId, approvalId))!;
        const who = by && (await findAgent(app.db.query, org.orgId, by.agentId));
        const asked = { approval, action: "approve", decider: who, ownRequest, now: clock.now() } as const;
        const { answer } = await decideApprover(app, app.db.query, asked);
        return [answer.verdict, ...answer.determining.map(({ policyId }) => policyId)];
      };
      expect(await decider(peer)).toEqual(["ALLOW", "builtin/trusted-approvers"]);
      expect(await decider(undefined)).toEqual(["ALLOW", "builtin/administrator"]);
      expect(await decider(restricted)).toEqual(["DENY"]);
      expect(await decider(asker)).toEqual(["DENY", "builtin/approver-is-not-requester"]);
      expect(await decider(undefined, true)).toEqual(["DENY", "builtin/approver-is-not-requester"]);
      // A policy can go on from the request to who made it, and to its contract.
      const when = `resource.contract.capability == "${contractId}" && resource has requester && resource.requester.rank == 1`;
      await put(
        org,
        "two-eyes",
        `forbid (principal is Agent, action == Action::"approve", resource) when { ${when} };`,
      );
      expect(await decider(peer)).toEqual(["DENY", "two-eyes"]);
      const tested = await org.admin.policies.testPolicy({
        subject: {
          case: "question",
          value: {
            principal: { type: "Agent", id: peer.agentId },
            action: "approve",
            resource: { type: "Approval", id: approvalId },
          },
        },
      });
      expect([verdictOf(tested.answer), idsOf(tested.answer)]).toEqual(["DENY", ["two-eyes"]]);
    });

    test("can be read and listed, and neither put nor deleted", async () => {
      const org = await world.org();
      const { policies } = await org.admin.policies.listPolicies({ origin: PolicyOrigin.BUILTIN });
      expect(policies.map(({ policyId }) => policyId)).toContain("builtin/approver-is-not-requester");
      for (const one of policies) {
        expect(one).toMatchObject({ origin: PolicyOrigin.BUILTIN, revision: 0n, orgId: org.orgId });
        expect(one.description.length).toBeGreaterThan(20);
        expect((await org.admin.policies.getPolicy({ policyId: one.policyId })).policy).toEqual(one);
      }
      expect(await refusal(org.admin.policies.deletePolicy({ policyId: "builtin/own-memory" }))).toMatchObject({
        reason: "FAILED_PRECONDITION",
        metadata: { state: "BUILTIN" },
      });
      expect(await refusal(put(org, "builtin/own-memory", "permit (principal, action, resource);"))).toMatchObject({
        reason: "INVALID_REQUEST",
      });
    });
  });

  describe("PutPolicy", () => {
    test.each<[string, string, string, string]>([
      ["no Cedar at all", "allow everything", "1", "7"],
      ["an end that is missing", 'permit (principal, action, resource)\nwhen { "é" == ', "2", ""],
      [
        "an action that there is not",
        'permit (\n  principal,\n  action == Action::"invok",\n  resource\n);',
        "3",
        "13",
      ],
      [
        "an attribute that there is not",
        '// über\npermit (principal is Agent, action, resource)\nwhen { "ü" == principal.nam };',
        "3",
        "15",
      ],
      [
        "a tier that there is not",
        'permit (principal is Agent, action, resource) when { principal.tier == Tier::"BOSS" };',
        "1",
        "72",
      ],
      ["two statements", "permit (principal, action, resource);\npermit (principal, action, resource);", "2", "1"],
      ["a slot", "permit (principal == ?principal, action, resource);", "1", "22"],
      [
        "an optional circumstance that it does not ask for first",
        'permit (principal, action == Action::"invoke", resource) when { context.grant_id == "g" };',
        "1",
        "65",
      ],
      [
        "a hundred and fifty brackets",
        `permit (principal, action, resource) when { ${"(".repeat(150)}true${")".repeat(150)} };`,
        "1",
        "1",
      ],
    ])("refuses %s with line and column, and leaves the set as it was", async (_what, cedarText, line, column) => {
      const org = await world.org();
      await put(org, "p", "permit (principal, action, resource);");
      const found = await refusal(put(org, "p", cedarText));
      expect(found).toMatchObject({
        code: "InvalidArgument",
        reason: "INVALID_POLICY",
        metadata: { field: "cedar_text", line },
      });
      if (column) expect(found.metadata.column).toBe(column);
      expect(found.error.findDetails(BadRequestSchema)[0]?.fieldViolations.length).toBeGreaterThan(0);
      const { policies, policySetRevision } = await org.admin.policies.listPolicies({
        origin: PolicyOrigin.ORGANIZATION,
      });
      expect([policies.length, policies[0]?.revision, policySetRevision]).toEqual([1, 1n, 1n]);
    });

    test("tells every fault at once", async () => {
      const org = await world.org();
      const found = await refusal(
        put(
          org,
          "p",
          "permit (principal is Agent, action, resource) when { principal.a == principal.name || principal.b == 1 };",
        ),
      );
      const [details] = found.error.findDetails(BadRequestSchema);
      expect(details?.fieldViolations.length).toBeGreaterThanOrEqual(2);
    });

    test("accepts what is odd, and warns of it", async () => {
      const org = await world.org();
      const never = await put(org, "never", "permit (principal, action, resource)\nwhen { 1 == 2 };");
      expect(never.warnings[0]?.message).toMatch(/impossible/);
      const misspelt = await put(org, "misspelt", '@aproval("ask")\npermit (principal, action, resource);');
      expect(misspelt.warnings).toMatchObject([
        { line: 1, column: 1, message: expect.stringMatching(/@aproval/) as string },
      ]);
      const forbids = await put(org, "forbids", '@approval("ask") forbid (principal, action, resource);');
      expect(forbids.warnings[0]?.message).toMatch(/@approval/);
      expect((await put(org, "fine", "permit (principal, action, resource);")).warnings).toEqual([]);
    });

    test("counts changes of the policy and of the set; the same content changes nothing", async () => {
      const org = await world.org();
      const text = "permit (principal, action, resource);";
      const first = await put(org, "a", text);
      expect(first).toMatchObject({
        policySetRevision: 1n,
        policy: { revision: 1n, effect: PolicyEffect.PERMIT, origin: PolicyOrigin.ORGANIZATION },
      });
      clock.advance(1_000);
      expect(await put(org, "a", text)).toEqual(first);
      const second = await put(org, "a", text, { disabled: true });
      expect(second).toMatchObject({ policySetRevision: 2n, policy: { revision: 2n, disabled: true } });
      expect(second.policy?.createTime).toEqual(first.policy?.createTime);
      expect(second.policy?.updateTime).not.toEqual(first.policy?.updateTime);
      expect(await put(org, "b", text)).toMatchObject({ policySetRevision: 3n, policy: { revision: 1n } });
    });

    test("with if_revision refuses a lost update, and with 0 to replace anything", async () => {
      const org = await world.org();
      const [permit, forbid] = ["permit (principal, action, resource);", "forbid (principal, action, resource);"];
      expect(await refusal(put(org, "a", permit, { ifRevision: 3n }))).toMatchObject({
        reason: "FAILED_PRECONDITION",
        metadata: { revision: "0" },
      });
      await put(org, "a", permit, { ifRevision: 0n });
      expect(await refusal(put(org, "a", forbid, { ifRevision: 0n }))).toMatchObject({
        reason: "FAILED_PRECONDITION",
        metadata: { revision: "1" },
      });
      await put(org, "a", forbid, { ifRevision: 1n });
      expect(await refusal(org.admin.policies.deletePolicy({ policyId: "a", ifRevision: 1n }))).toMatchObject({
        metadata: { revision: "2" },
      });
      await org.admin.policies.deletePolicy({ policyId: "a", ifRevision: 2n });
      expect(await refusal(org.admin.policies.deletePolicy({ policyId: "a" }))).toMatchObject({ reason: "NOT_FOUND" });
      expect(await refusal(org.admin.policies.getPolicy({ policyId: "a" }))).toMatchObject({ reason: "NOT_FOUND" });
    });

    test("by many at once keeps every one of them, and of one policy exactly one change each", async () => {
      const org = await world.org();
      const text = (i: number) => `permit (principal, action == Action::"invoke", resource == Contract::"c${i}");`;
      await Promise.all(Array.from({ length: 20 }, (_, i) => put(org, `p${i}`, text(i))));
      const races = await Promise.allSettled(
        Array.from({ length: 10 }, (_, i) => put(org, "p0", text(100 + i), { ifRevision: 1n })),
      );
      expect(races.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
      const { policies, policySetRevision } = await org.admin.policies.listPolicies({
        origin: PolicyOrigin.ORGANIZATION,
      });
      expect([policies.length, policySetRevision]).toEqual([20, 21n]);
    });

    test("keeps an organisation's policies to 1 MiB together, and takes the next when one is gone", async () => {
      const org = await world.org();
      const large = `permit (principal, action == Action::"claim_job", resource); // ${"x".repeat(16_300)}`;
      for (let i = 0; i < 64; i++) await put(org, `p${i}`, large);
      const found = await refusal(put(org, "one-more", large));
      expect(found).toMatchObject({
        code: "ResourceExhausted",
        reason: "QUOTA_EXCEEDED",
        metadata: { limit: "1048576" },
      });
      expect(await refusal(put(org, "p0", large, { ifRevision: 2n }))).toMatchObject({ reason: "FAILED_PRECONDITION" });
      await org.admin.policies.deletePolicy({ policyId: "p0" });
      await put(org, "one-more", large);
    });

    test("is audited, and not open to agents", async () => {
      const org = await world.org();
      await put(org, "watched", "permit (principal, action, resource);");
      const { auditEvents } = await world.operator.admin.listAuditEvents({ orgId: org.orgId });
      expect(auditEvents[0]).toMatchObject({ method: expect.stringMatching(/PolicyService\/PutPolicy/) as string });
      const one = await org.agent();
      expect(
        await refusal(one.as.policies.putPolicy({ policyId: "a", cedarText: "permit (principal, action, resource);" })),
      ).toMatchObject({ reason: "ROLE_REQUIRED" });
      expect(await refusal(one.as.policies.listPolicies({}))).toMatchObject({ reason: "ROLE_REQUIRED" });
    });

    test("of one organisation is neither seen nor felt by another", async () => {
      const [org, other] = [await world.org(), await world.org()];
      const contractId = await contract(other);
      const theirs = await agent(other, TrustTier.INTERNAL_TRUSTED);
      await put(org, "all", "forbid (principal, action, resource);");
      expect(await refusal(other.admin.policies.getPolicy({ policyId: "all" }))).toMatchObject({ reason: "NOT_FOUND" });
      expect((await ask(other, theirs.agentId, contractId)).verdict).toBe("ALLOW");
      expect(await refusal(other.admin.policies.listPolicies({ orgId: org.orgId }))).toMatchObject({
        reason: "NOT_FOUND",
      });
    });
  });

  test("lists go by id through built-in and own policies, page by page, and filter by origin and effect", async () => {
    const org = await world.org();
    for (const id of ["a", "z", "B", "c.1"]) await put(org, id, "forbid (principal, action, resource);");
    const { policies: all } = await org.admin.policies.listPolicies({ pageSize: 250 });
    const ids = all.map(({ policyId }) => policyId);
    expect(ids).toEqual(ids.toSorted((x, y) => (x < y ? -1 : 1)));
    expect(ids).toEqual(expect.arrayContaining(["B", "a", "builtin/own-memory", "c.1", "z"]));
    for (const pageSize of [1, 3, 7]) {
      const walked: string[] = [];
      for (let pageToken = ""; ; ) {
        const page = await org.admin.policies.listPolicies({ pageSize, pageToken });
        walked.push(...page.policies.map(({ policyId }) => policyId));
        pageToken = page.nextPageToken;
        if (!pageToken) break;
      }
      expect(walked).toEqual(ids);
    }
    const only = async (filter: object) =>
      (await org.admin.policies.listPolicies(filter)).policies.map(({ policyId }) => policyId);
    expect(await only({ origin: PolicyOrigin.ORGANIZATION })).toEqual(["B", "a", "c.1", "z"]);
    expect(await only({ effect: PolicyEffect.FORBID })).toEqual([
      "B",
      "a",
      "builtin/approver-is-not-requester",
      "c.1",
      "z",
    ]);
    expect(await only({ origin: PolicyOrigin.ORGANIZATION, effect: PolicyEffect.PERMIT })).toEqual([]);
  });

  describe("a decision", () => {
    test("is changed by the next request after a policy, the agent, or the contract's partners have", async () => {
      const org = await world.org();
      const one = await agent(org, TrustTier.PUBLIC_VENDOR);
      const contractId = await contract(org);
      const verdict = async (id = contractId) => {
        const [live, tested] = [
          (await decided(org, one, id)).answer.verdict,
          (await ask(org, one.agentId, id)).verdict,
        ];
        expect(tested).toBe(live);
        return live;
      };
      const become = (trustTier: TrustTier) =>
        org.admin.agents.updateAgent({
          agentId: one.agentId,
          change: { trustTier },
          updateMask: { paths: ["trust_tier"] },
        });
      expect([await verdict(), await verdict()]).toEqual(["DENY", "DENY"]);
      await become(TrustTier.INTERNAL_TRUSTED);
      expect(await verdict()).toBe("ALLOW");
      await put(org, "stop", `forbid (principal == Agent::"${one.agentId}", action, resource);`);
      expect(await verdict()).toBe("DENY");
      await put(org, "stop", `forbid (principal == Agent::"${one.agentId}", action, resource);`, { disabled: true });
      expect(await verdict()).toBe("ALLOW");
      await put(org, "stop", '@approval("the head asks") permit (principal, action, resource);');
      expect(await verdict()).toBe("REQUIRE_APPROVAL");
      await org.admin.policies.deletePolicy({ policyId: "stop" });
      expect(await verdict()).toBe("ALLOW");
      await become(TrustTier.EXTERNAL_PARTNER);
      expect(await verdict()).toBe("DENY");
      const named = await contract(org, { contractId: `${contractId}-2` });
      expect(await verdict(named)).toBe("DENY");
      await org.admin.contracts.registerContract({
        contractId: named,
        version: "1.1.0",
        partnerAgentIds: [one.agentId],
      });
      expect((await ask(org, one.agentId, named)).verdict).toBe("ALLOW");
      expect((await ask(org, one.agentId, named, { contract_version: "1.0.0" })).verdict).toBe("DENY");
    });

    test("by tokens and time is made anew where a policy looks at them", async () => {
      const org = await world.org();
      const one = await agent(org, TrustTier.INTERNAL_TRUSTED);
      const contractId = await contract(org);
      await put(
        org,
        "dear",
        'forbid (principal, action == Action::"invoke", resource) when { context.tokens > 1000 };',
      );
      const at = async (context: JsonObject) => (await ask(org, one.agentId, contractId, context)).verdict;
      expect([await at({ tokens: 1000 }), await at({ tokens: 1001 }), await at({ tokens: 1000 })]).toEqual([
        "ALLOW",
        "DENY",
        "ALLOW",
      ]);
      await put(
        org,
        "night",
        'forbid (principal, action == Action::"invoke", resource) when { context.time.toTime() < duration("6h") };',
      );
      expect([await at({ time: "2026-01-01T05:59:59Z" }), await at({ time: "2026-01-01T08:00:00+02:00" })]).toEqual([
        "DENY",
        "ALLOW",
      ]);
    });

    test("asks for an approval when one of those that permit does and none forbids", async () => {
      const org = await world.org();
      const one = await agent(org, TrustTier.INTERNAL_TRUSTED);
      const contractId = await contract(org);
      await put(
        org,
        "ask",
        '@approval("more than 10 tokens") permit (principal, action == Action::"invoke", resource) when { context.tokens > 10 };',
      );
      const { answer, verdict } = await ask(org, one.agentId, contractId, { tokens: 11 });
      expect([verdict, idsOf(answer)]).toEqual(["REQUIRE_APPROVAL", ["ask", "builtin/internal-trusted"]]);
      expect(answer.determiningPolicies[0]).toMatchObject({ approval: "more than 10 tokens", revision: 1n });
      expect(answer.reasons.join()).toMatch(/more than 10 tokens/);
      expect((await ask(org, one.agentId, contractId, { tokens: 10 })).verdict).toBe("ALLOW");
      await put(org, "no", "forbid (principal, action, resource);");
      expect((await ask(org, one.agentId, contractId, { tokens: 11 })).verdict).toBe("DENY");
    });

    test("is denied by a forbid that cannot be evaluated, and not made by such a permit; both are told", async () => {
      const org = await world.org();
      const vendor = await agent(org, TrustTier.PUBLIC_VENDOR);
      const contractId = await contract(org);
      const overflow = "when { context.tokens * 9007199254740991 * 9007199254740991 > 0 }";
      await put(org, "broken-permit", `permit (principal, action == Action::"invoke", resource) ${overflow};`);
      const first = await ask(org, vendor.agentId, contractId, { tokens: 5 });
      expect(first.verdict).toBe("DENY");
      expect(first.answer.faults).toMatchObject([{ policyId: "broken-permit", effect: PolicyEffect.PERMIT }]);
      await put(org, "fine", 'permit (principal, action == Action::"invoke", resource);');
      expect((await ask(org, vendor.agentId, contractId, { tokens: 5 })).verdict).toBe("ALLOW");
      await put(org, "broken-forbid", `forbid (principal, action == Action::"invoke", resource) ${overflow};`);
      const last = await ask(org, vendor.agentId, contractId, { tokens: 5 });
      expect([last.verdict, idsOf(last.answer)]).toEqual(["DENY", ["broken-forbid"]]);
      expect(last.answer.faults.map(({ policyId }) => policyId).toSorted()).toEqual(["broken-forbid", "broken-permit"]);
      expect((await ask(org, vendor.agentId, contractId, { tokens: 0 })).verdict).toBe("ALLOW");
    });
  });

  describe("TestPolicy", () => {
    test("compares a draft with what holds, and changes and records nothing", async () => {
      const org = await world.org();
      const vendor = await agent(org, TrustTier.PUBLIC_VENDOR);
      const contractId = await contract(org);
      const permit = 'permit (principal, action == Action::"invoke", resource);';
      await put(org, "open", permit);
      const closed = await ask(org, vendor.agentId, contractId, {}, { deletePolicyIds: ["open"] });
      expect([closed.verdict, verdictOf(closed.reply.currentAnswer)]).toEqual(["DENY", "ALLOW"]);
      const forbidden = await ask(
        org,
        vendor.agentId,
        contractId,
        {},
        { puts: [{ policyId: "no", cedarText: "forbid (principal, action, resource);" }] },
      );
      expect([forbidden.verdict, idsOf(forbidden.answer)]).toEqual(["DENY", ["no"]]);
      const replaced = await ask(
        org,
        vendor.agentId,
        contractId,
        {},
        { replaceAll: true, puts: [{ policyId: "x", cedarText: permit }] },
      );
      expect([idsOf(replaced.answer), idsOf(replaced.reply.currentAnswer)]).toEqual([["x"], ["open"]]);
      expect(replaced.answer.determiningPolicies[0]?.revision).toBe(0n);
      expect((await ask(org, vendor.agentId, contractId)).verdict).toBe("ALLOW");
      expect((await org.admin.policies.listDecisions({})).decisions).toEqual([]);
    });

    test("names the field of what is wrong with a draft or a question", async () => {
      const org = await world.org();
      const one = await agent(org, TrustTier.INTERNAL_TRUSTED);
      const contractId = await contract(org);
      const puts = [
        "permit (principal, action, resource);",
        "permit (principal, action, resource);",
        "permit\n(what);",
      ].map((cedarText, i) => ({ policyId: `p${i}`, cedarText }));
      expect(await refusal(ask(org, one.agentId, contractId, {}, { puts }))).toMatchObject({
        reason: "INVALID_POLICY",
        metadata: { field: "draft.puts[2].cedar_text", line: "2" },
      });
      expect(await refusal(ask(org, one.agentId, contractId, {}, { deletePolicyIds: ["nobody"] }))).toMatchObject({
        reason: "NOT_FOUND",
        metadata: { resource: "policy" },
      });
      expect(await refusal(ask(org, one.agentId, "nothing"))).toMatchObject({
        reason: "NOT_FOUND",
        metadata: { resource: "contract", id: "nothing" },
      });
      expect(await refusal(ask(org, "agt_nobody", contractId))).toMatchObject({
        reason: "NOT_FOUND",
        metadata: { resource: "agent" },
      });
      const wrong = (context: JsonObject) => refusal(ask(org, one.agentId, contractId, context));
      expect(await wrong({ tokens: 1.5 })).toMatchObject({
        reason: "INVALID_REQUEST",
        metadata: { field: "question.context.tokens" },
      });
      expect(await wrong({ token: 1 })).toMatchObject({
        reason: "INVALID_REQUEST",
        metadata: { field: "question.context.token" },
      });
      expect(await wrong({ time: "yesterday" })).toMatchObject({ metadata: { field: "question.context.time" } });
      const mixed = org.admin.policies.testPolicy({
        subject: {
          case: "question",
          value: {
            principal: { type: "Agent", id: one.agentId },
            action: "invoke",
            resource: { type: "Tool", id: "t" },
          },
        },
      });
      expect(await refusal(mixed)).toMatchObject({
        reason: "INVALID_POLICY",
        metadata: { field: "question.resource.type" },
      });
    });

    test("answers an agent about itself, and nothing else", async () => {
      const org = await world.org();
      const [one, other] = [await agent(org, TrustTier.INTERNAL_TRUSTED), await agent(org, TrustTier.PUBLIC_VENDOR)];
      const contractId = await contract(org);
      const question = (agentId: string) =>
        ({
          case: "question",
          value: {
            principal: { type: "Agent", id: agentId },
            action: "invoke",
            resource: { type: "Contract", id: contractId },
          },
        }) as const;
      expect(verdictOf((await one.as.policies.testPolicy({ subject: question(one.agentId) })).answer)).toBe("ALLOW");
      const window = { case: "window", value: { startTime: timestampFromMs(0) } } as const;
      for (const call of [
        { subject: question(other.agentId) },
        { subject: question(one.agentId), draft: {} },
        { subject: window },
      ])
        expect(await refusal(one.as.policies.testPolicy(call))).toMatchObject({
          code: "PermissionDenied",
          reason: "ROLE_REQUIRED",
        });
    });

    test("goes through the decisions of a window again: what changed since, and what the draft would change", async () => {
      const org = await world.org();
      const [one, vendor] = [await agent(org, TrustTier.INTERNAL_TRUSTED), await agent(org, TrustTier.PUBLIC_VENDOR)];
      const [contractId, gone] = [await contract(org), await contract(org)];
      const from = clock.now();
      for (let i = 0; i < 6; i++) {
        clock.advance(1_000);
        await decided(org, one, contractId, { tokens: i * 100 });
      }
      for (let i = 0; i < 3; i++) await decided(org, vendor, gone);
      clock.advance(1_000);
      const simulate = async (window: object, draft?: object) => {
        const reply = await org.admin.policies.testPolicy({
          subject: { case: "window", value: { startTime: timestampFromMs(from), ...window } },
          ...(draft && { draft }),
        });
        return reply.simulation!;
      };
      const table = (found: Awaited<ReturnType<typeof simulate>>) =>
        found.outcomes.map(({ recordedVerdict, currentVerdict, draftVerdict, decisions, examples }) => [
          ...[recordedVerdict, currentVerdict, draftVerdict].map((verdict) => nameOf(PolicyVerdict, verdict)),
          Number(decisions),
          examples.length,
        ]);
      const draft = {
        puts: [
          {
            policyId: "dear",
            cedarText: 'forbid (principal, action == Action::"invoke", resource) when { context.tokens > 150 };',
          },
        ],
      };
      const plain = await simulate({});
      expect(plain).toMatchObject({ decisions: 9n, changed: 0n, undecidable: 0n, truncated: false });
      expect(table(plain)).toEqual([
        ["ALLOW", "ALLOW", "ALLOW", 6, 0],
        ["DENY", "DENY", "DENY", 3, 0],
      ]);
      const drafted = await simulate({ maxExamples: 2 }, draft);
      expect(drafted).toMatchObject({ changed: 4n });
      expect(table(drafted)).toEqual([
        ["ALLOW", "ALLOW", "DENY", 4, 2],
        ["DENY", "DENY", "DENY", 3, 0],
        ["ALLOW", "ALLOW", "ALLOW", 2, 0],
      ]);
      const [example] = drafted.outcomes[0]!.examples;
      expect(example?.recorded?.question?.context).toMatchObject({ tokens: 500 });
      expect([verdictOf(example?.currentAnswer), idsOf(example?.draftAnswer)]).toEqual(["ALLOW", ["dear"]]);
      // What changes since shows as current.
      await put(org, "open", 'permit (principal, action == Action::"invoke", resource);');
      expect(table(await simulate({ agentId: vendor.agentId }))).toEqual([["DENY", "ALLOW", "ALLOW", 3, 3]]);
      await org.admin.agents.deleteAgent({ agentId: vendor.agentId });
      expect(await simulate({})).toMatchObject({ decisions: 9n, undecidable: 3n });
      expect(await simulate({ verdict: PolicyVerdict.ALLOW, maxDecisions: 4 })).toMatchObject({
        decisions: 4n,
        truncated: true,
      });
      expect(await simulate({ maxDecisions: 9 })).toMatchObject({ decisions: 9n, truncated: false });
      const bad = async (window: object) => (await refusal(simulate(window))).reason;
      const { app } = world.server;
      const current = await app.policies.current(app.db.query, org.orgId);
      const asked = { db: app.db.query, orgId: org.orgId, now: clock.now() };
      const window = create(DecisionWindowSchema, { startTime: timestampFromMs(from) });
      const busy = goThrough(app, window, asked, { current, draft: undefined }, { count: 2 }, app.stopping);
      await expect(busy).rejects.toMatchObject({ reason: "OVERLOADED" });
      expect(await bad({ endTime: timestampFromMs(from) })).toBe("INVALID_POLICY");
      expect(await bad({ startTime: timestampFromMs(clock.now() - 32 * 86_400_000) })).toBe("INVALID_POLICY");
    });
  });

  test("what was decided on tasks and messages for real is gone through again by their window", async () => {
    const org = await world.org();
    const [one, vendor] = [await agent(org, TrustTier.INTERNAL_TRUSTED), await agent(org, TrustTier.PUBLIC_VENDOR)];
    const contractId = await contract(org, { requiredTools: ["browser"] });
    await org.agent({ capabilities: [contractId], endpoint: echoEndpoint, allowedTools: ["browser"] });
    const from = clock.now();
    for (let n = 0; n < 2; n++) await submit(one.as, contractId);
    await refusal(submit(vendor.as, contractId));
    const toOne = { to: { case: "toAgentId", value: one.agentId } } as const;
    await refusal(vendor.as.relay.send({ ...toOne, payload: { kind: { case: "json", value: value("hello") } } }));
    clock.advance(1_000);
    const { simulation } = await org.admin.policies.testPolicy({
      subject: { case: "window", value: { startTime: timestampFromMs(from) } },
      draft: {
        puts: [
          { policyId: "no-browser", cedarText: 'forbid (principal, action == Action::"use_tool", resource);' },
          { policyId: "hello", cedarText: 'permit (principal, action == Action::"send_message", resource);' },
        ],
      },
    });
    expect(simulation).toMatchObject({ decisions: 6n, changed: 3n, undecidable: 0n, truncated: false });
    expect(
      simulation!.outcomes.map(({ recordedVerdict, draftVerdict, decisions, examples }) => [
        ...[recordedVerdict, draftVerdict].map((verdict) => nameOf(PolicyVerdict, verdict)),
        Number(decisions),
        [...new Set(examples.map(({ recorded }) => recorded!.question!.action))],
      ]),
    ).toEqual(
      expect.arrayContaining([
        ["ALLOW", "ALLOW", 2, []],
        ["ALLOW", "DENY", 2, ["use_tool"]],
        ["DENY", "ALLOW", 1, ["send_message"]],
        ["DENY", "DENY", 1, []],
      ]),
    );
  });

  describe("ListDecisions", () => {
    test("finds by every filter alone and together, newest first, page by page", async () => {
      const org = await world.org();
      const agents = [await agent(org, TrustTier.INTERNAL_TRUSTED), await agent(org, TrustTier.PUBLIC_VENDOR)];
      const contracts = [await contract(org), await contract(org)];
      await put(
        org,
        "also",
        'permit (principal is Agent, action == Action::"invoke", resource) when { principal.tier == Tier::"INTERNAL_TRUSTED" };',
      );
      const made: { id: string; agent: number; contract: number; trace: string; task: string; ms: number }[] = [];
      for (let i = 0; i < 24; i++) {
        if (i % 5 === 0) clock.advance(1_000);
        const [a, c, trace, task] = [
          i % 2,
          i % 3 === 0 ? 1 : 0,
          String(i % 4).repeat(32),
          i % 2 === 0 ? `tsk_${i % 6}` : "",
        ];
        const { decisionId } = await decided(org, agents[a]!, contracts[c]!, { trace, taskId: task });
        made.push({ id: decisionId, agent: a, contract: c, trace, task, ms: clock.now() });
      }
      const newest = made.toSorted((x, y) => y.ms - x.ms || (y.id < x.id ? -1 : 1));
      const walk = async (filter: object, pageSize = 5) => {
        const ids: string[] = [];
        for (let pageToken = ""; ; ) {
          const page = await org.admin.policies.listDecisions({ ...filter, pageSize, pageToken });
          expect(page.decisions.length).toBeLessThanOrEqual(pageSize);
          ids.push(...page.decisions.map(({ decisionId }) => decisionId));
          pageToken = page.nextPageToken;
          if (!pageToken) return ids;
        }
      };
      const expected = (fits: (one: (typeof made)[number]) => boolean) => newest.filter(fits).map(({ id }) => id);
      const [t1, t2] = [made[5]!.ms, made[15]!.ms];
      const filters: [object, (one: (typeof made)[number]) => boolean][] = [
        [{}, () => true],
        [{ verdict: PolicyVerdict.DENY }, (one) => one.agent === 1],
        [{ agentId: agents[0]!.agentId }, (one) => one.agent === 0],
        [{ action: "invoke" }, () => true],
        [{ action: "use_tool" }, () => false],
        [{ resource: { type: "Contract", id: contracts[1]! } }, (one) => one.contract === 1],
        [{ policyId: "also" }, (one) => one.agent === 0],
        [{ policyId: "builtin/internal-trusted" }, (one) => one.agent === 0],
        [{ policyId: "nobody" }, () => false],
        [{ taskId: "tsk_2" }, (one) => one.task === "tsk_2"],
        [{ traceId: "1".repeat(32) }, (one) => one.trace === "1".repeat(32)],
        [{ startTime: timestampFromMs(t1), endTime: timestampFromMs(t2) }, (one) => one.ms >= t1 && one.ms < t2],
        [{ policyId: "also", taskId: "tsk_4", agentId: agents[0]!.agentId }, (one) => one.task === "tsk_4"],
        [
          { policyId: "builtin/internal-trusted", traceId: "2".repeat(32), startTime: timestampFromMs(t1) },
          (one) => one.trace === "2".repeat(32) && one.ms >= t1,
        ],
        [
          { policyId: "also", resource: { type: "Contract", id: contracts[1]! }, endTime: timestampFromMs(t2) },
          (one) => one.agent === 0 && one.contract === 1 && one.ms < t2,
        ],
        [{ agentId: agents[1]!.agentId, verdict: PolicyVerdict.ALLOW }, () => false],
      ];
      for (const [filter, fits] of filters)
        expect(await walk(filter), Object.keys(filter).join()).toEqual(expected(fits));
      expect(
        await refusal(
          org.admin.policies.listDecisions({ startTime: timestampFromMs(t2), endTime: timestampFromMs(t2) }),
        ),
      ).toMatchObject({ reason: "INVALID_REQUEST", metadata: { field: "end_time" } });
      const [latest] = (await org.admin.policies.listDecisions({ pageSize: 1, policyId: "also" })).decisions;
      expect(latest).toMatchObject({
        orgId: org.orgId,
        policySetRevision: 1n,
        question: { action: "invoke", principal: { type: "Agent", id: agents[0]!.agentId } },
      });
      expect(idsOf(latest?.answer)).toEqual(["also", "builtin/internal-trusted"]);
      const own = (await agents[1]!.as.policies.listDecisions({ pageSize: 100 })).decisions;
      expect(own.map(({ decisionId }) => decisionId)).toEqual(expected((one) => one.agent === 1));
      expect((await agents[1]!.as.policies.listDecisions({ agentId: agents[0]!.agentId })).decisions).toEqual([]);
      const other = await world.org(unique("other"));
      expect((await other.admin.policies.listDecisions({})).decisions).toEqual([]);
    });
  });
});

describe.skipIf(!dialects.includes("postgres"))("two servers on one PostgreSQL", () => {
  test("a policy that one was given holds in the next decision of the other", async () => {
    const database = await migratedDatabase();
    try {
      await using first = await start("postgres", { databaseUrl: database.url });
      await using second = await start("postgres", { databaseUrl: database.url });
      const org = await first.org();
      const contractId = await contract(org);
      const one = await org.agent({ trustTier: TrustTier.INTERNAL_TRUSTED });
      const there = clientsAt(second.url, org.adminKey);
      const question = {
        principal: { type: "Agent", id: one.agentId },
        action: "invoke",
        resource: { type: "Contract", id: contractId },
      };
      const verdict = async () =>
        verdictOf((await there.policies.testPolicy({ subject: { case: "question", value: question } })).answer);
      for (let round = 0; round < 10; round++) {
        expect(await verdict()).toBe("ALLOW");
        await org.admin.policies.putPolicy({ policyId: "stop", cedarText: "forbid (principal, action, resource);" });
        expect(await verdict()).toBe("DENY");
        await org.admin.policies.deletePolicy({ policyId: "stop" });
      }
    } finally {
      await database.drop();
    }
  });
});
