import { timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Role } from "../gen/moltwire/api/v1/access_pb.ts";
import { TrustTier } from "../gen/moltwire/bus/v1/agent_pb.ts";
import { GrantAct, GrantParty, GrantState } from "../gen/moltwire/federation/v1/grant_pb.ts";
import { AuditKind } from "../gen/moltwire/ops/v1/admin_service_pb.ts";
import { findEntity } from "../src/bus/policy/resolve-entity.ts";
import { sql } from "../src/db/db.ts";
import { expireGrants } from "../src/federation/grant/expire.ts";
import {
  type Clients,
  dialects,
  eventually,
  fakeClock,
  type Org,
  refusal,
  start,
  unique,
  type World,
} from "./harness.ts";
import { addContract } from "./rpc-fixtures/contract.ts";

const { PROPOSED, ACTIVE, SUSPENDED, DECLINED, REVOKED, EXPIRED } = GrantState;
const { GRANTOR, GRANTEE } = GrantParty;
const minute = 60_000;
const idOf = ({ grantId }: { readonly grantId: string }) => ({ grantId });
const reasonOf = async (call: Promise<unknown>) => (await refusal(call)).reason;
const won = (results: PromiseSettledResult<unknown>[]) => results.filter(({ status }) => status === "fulfilled");

describe.each(dialects)("%s", (dialect) => {
  const clock = fakeClock(Date.now());
  let world: World;
  let from: Org;
  let to: Org;
  beforeAll(async () => {
    world = await start(dialect, { clock });
    [from, to] = [await world.org(), await world.org()];
  });
  afterAll(() => world[Symbol.asyncDispose]());

  const subject = { case: "capability", value: "research" } as const;
  const propose = async (terms = {}, by = from, org = to) =>
    (await by.admin.grants.createGrant({ granteeOrgId: org.orgId, subject, terms })).grant!;
  const accepted = async (terms = {}, by = from, org = to) => {
    const { grantId } = await propose(terms, by, org);
    return (await org.admin.grants.acceptGrant({ grantId })).grant!;
  };
  const history = async (as: Clients, grantId: string) =>
    (await as.grants.getGrant({ grantId })).revisions.toReversed();
  const service = "moltwire.federation.v1.GrantService";
  /** Of the audit log, newest first. */
  const rowsOf = async ({ admin }: Org, grantId: string) =>
    (await admin.admin.listAuditEvents({})).auditEvents.filter(({ resource }) => resource.grant_id === grantId);
  const ends = async (as: Clients) => {
    await world.settled();
    return (await as.events.listEvents({})).events.filter(({ type }) => type === "grant.revoked");
  };

  describe("the life of a grant", () => {
    test("a proposal tells all its terms to both, and each change is a revision that keeps what was", async () => {
      const expireMs = clock.now() + minute;
      const terms = {
        ...{ tokensPerDay: 50_000n, requestsPerDay: 0n, priceCapMicros: 9n, purpose: "to find things" },
        expireTime: { seconds: BigInt(Math.floor(expireMs / 1_000)), nanos: (expireMs % 1_000) * 1_000_000 + 999 },
        ...{ allowedTiers: [TrustTier.INTERNAL_TRUSTED], allowedTools: ["web"] },
      };
      const grant = await propose(terms);
      expect(grant).toMatchObject({ state: PROPOSED, subject, revision: 1n });
      expect(grant).toMatchObject({ grantorOrgId: from.orgId, granteeOrgId: to.orgId });
      expect(grant.grantId).toMatch(/^grt_[0-9a-f]{32}$/);
      expect(grant.terms).toMatchObject({ ...terms, expireTime: timestampFromMs(expireMs) });
      const { grantId } = grant;
      for (const { admin } of [from, to]) expect((await admin.grants.getGrant({ grantId })).grant).toEqual(grant);
      clock.advance(1_000);
      await to.admin.grants.acceptGrant({ grantId });
      const updateMask = { paths: ["tokens_per_day", "requests_per_day", "expire_time"] };
      const change = { tokensPerDay: 60_000n, purpose: "not named" };
      await from.admin.grants.updateGrant({ grantId, change, updateMask });
      await from.admin.grants.suspendGrant({ grantId });
      await from.admin.grants.resumeGrant({ grantId });
      const { grant: last } = await to.admin.grants.revokeGrant({ grantId });
      expect(last).toMatchObject({ state: REVOKED, revision: 6n });
      expect(timestampMs(last!.updateTime!) - timestampMs(last!.createTime!)).toBe(1_000);
      const { tokensPerDay, requestsPerDay, expireTime, ...kept } = terms;
      expect(last!.terms).toMatchObject({ ...kept, tokensPerDay: 60_000n });
      expect([last!.terms!.requestsPerDay, last!.terms!.expireTime]).toEqual([undefined, undefined]);
      const told = await history(to.admin, grantId);
      const { PROPOSE, ACCEPT, UPDATE, SUSPEND, RESUME, REVOKE } = GrantAct;
      expect(told.map(({ revision, act, party, state }) => [revision, act, party, state])).toEqual([
        [1n, PROPOSE, GRANTOR, PROPOSED],
        [2n, ACCEPT, GRANTEE, ACTIVE],
        [3n, UPDATE, GRANTOR, ACTIVE],
        [4n, SUSPEND, GRANTOR, SUSPENDED],
        [5n, RESUME, GRANTOR, ACTIVE],
        [6n, REVOKE, GRANTEE, REVOKED],
      ]);
      expect(told.slice(0, 3).map((one) => one.terms!.tokensPerDay)).toEqual([50_000n, 50_000n, 60_000n]);
      // Each side reads its own keys, and not the other's.
      const mine = await history(from.admin, grantId);
      for (const { keyId, party } of told) expect([party, keyId !== ""]).toEqual([party, party === GRANTEE]);
      for (const { keyId, party } of mine) expect([party, keyId !== ""]).toEqual([party, party === GRANTOR]);
    });

    /** A grant in each state. */
    const inState: Record<string, () => Promise<string>> = {
      PROPOSED: async () => (await propose()).grantId,
      ACTIVE: async () => (await accepted()).grantId,
      SUSPENDED: async () => (await from.admin.grants.suspendGrant(idOf(await accepted()))).grant!.grantId,
      DECLINED: async () => (await to.admin.grants.declineGrant(idOf(await propose()))).grant!.grantId,
      REVOKED: async () => (await from.admin.grants.revokeGrant(idOf(await accepted()))).grant!.grantId,
      EXPIRED: async () => {
        const { grantId } = await accepted({ expireTime: timestampFromMs(clock.now() + 1_000) });
        clock.advance(1_000);
        return grantId;
      },
    };
    const updateMask = { paths: ["purpose"] };
    const calls: Record<
      string,
      (as: Clients, grantId: string) => Promise<{ grant?: { state: GrantState } | undefined }>
    > = {
      acceptGrant: (as, grantId) => as.grants.acceptGrant({ grantId }),
      declineGrant: (as, grantId) => as.grants.declineGrant({ grantId }),
      updateGrant: (as, grantId) => as.grants.updateGrant({ grantId, change: { purpose: "x" }, updateMask }),
      suspendGrant: (as, grantId) => as.grants.suspendGrant({ grantId }),
      resumeGrant: (as, grantId) => as.grants.resumeGrant({ grantId }),
      revokeGrant: (as, grantId) => as.grants.revokeGrant({ grantId }),
    };
    const [no, party] = ["FAILED_PRECONDITION", "GRANT_PARTY_REQUIRED"];
    const all = (reason: string) => Array(6).fill(reason);
    // In the order of inState.
    test.each([
      ["acceptGrant", "grantee", [ACTIVE, ACTIVE, no, no, no, no]],
      ["acceptGrant", "grantor", all(party)],
      ["declineGrant", "grantee", [DECLINED, no, no, DECLINED, no, no]],
      ["declineGrant", "grantor", all(party)],
      ["updateGrant", "grantor", [PROPOSED, ACTIVE, SUSPENDED, no, no, no]],
      ["updateGrant", "grantee", all(party)],
      ["suspendGrant", "grantor", [no, SUSPENDED, SUSPENDED, no, no, no]],
      ["suspendGrant", "grantee", all(party)],
      ["resumeGrant", "grantor", [no, ACTIVE, ACTIVE, no, no, no]],
      ["resumeGrant", "grantee", all(party)],
      ["revokeGrant", "grantor", [REVOKED, REVOKED, REVOKED, no, REVOKED, no]],
      ["revokeGrant", "grantee", [party, REVOKED, REVOKED, no, REVOKED, no]],
    ])("%s by the %s, in each state", async (name, who, outcomes) => {
      const { admin } = who === "grantor" ? from : to;
      const got = [];
      for (const [state, make] of Object.entries(inState)) {
        const grantId = await make();
        const before = (await admin.grants.getGrant({ grantId })).grant!;
        const answer = await calls[name]!(admin, grantId).then(({ grant }) => grant!.state, reasonOfError);
        got.push(answer);
        const { grant } = await admin.grants.getGrant({ grantId });
        // What is refused or so already changes nothing.
        const isChange =
          typeof answer === "number" && (GrantState[state as "ACTIVE"] !== answer || name === "updateGrant");
        expect([state, grant!.revision - before.revision]).toEqual([state, isChange ? 1n : 0n]);
        if (!isChange) expect(grant).toEqual(before);
      }
      expect(got).toEqual(outcomes);
    });
    const reasonOfError = (error: unknown) => reasonOf(Promise.reject(error));

    test("a grantee that accepts automatically has the grant in force at once, in its own name, from then on", async () => {
      const eager = await world.org();
      const set = (autoAcceptGrants: boolean) =>
        eager.admin.organizations.updateOrganization({
          change: { autoAcceptGrants },
          updateMask: { paths: ["auto_accept_grants"] },
        });
      const before = await propose({}, from, eager);
      expect((await set(true)).organization?.autoAcceptGrants).toBe(true);
      const grant = await propose({}, from, eager);
      expect([grant.state, grant.revision]).toEqual([ACTIVE, 2n]);
      const told = await history(eager.admin, grant.grantId);
      expect(told.map(({ act, party, keyId }) => [act, party, keyId])).toEqual([
        [GrantAct.PROPOSE, GRANTOR, ""],
        [GrantAct.ACCEPT, GRANTEE, ""],
      ]);
      expect(await rowsOf(eager, grant.grantId)).toMatchObject([
        { method: `${service}/AcceptGrant`, kind: AuditKind.CHANGE, keyId: "", role: Role.UNSPECIFIED },
      ]);
      expect((await rowsOf(from, grant.grantId)).map(({ method }) => method)).toEqual([`${service}/CreateGrant`]);
      expect((await from.admin.grants.getGrant(idOf(before))).grant?.state).toBe(PROPOSED);
      await set(false);
      expect((await propose({}, from, eager)).state).toBe(PROPOSED);
    });

    test("its time ends it to the millisecond, for readers at once and for the record a little later, once", async () => {
      const [one, two] = [await world.org(), await world.org()];
      const expireTime = timestampFromMs(clock.now() + 10_000);
      const active = await accepted({ expireTime }, one, two);
      const open = await propose({ expireTime }, one, two);
      const ended = await one.admin.grants.revokeGrant(idOf(await accepted({ expireTime }, one, two)));
      const states = async () => (await two.admin.grants.listGrants({})).grants.map(({ state }) => state);
      clock.advance(9_999);
      expect(await states()).toEqual([REVOKED, PROPOSED, ACTIVE]);
      clock.advance(1);
      expect(await states()).toEqual([REVOKED, EXPIRED, EXPIRED]);
      const { app } = world.server;
      await Promise.all([expireGrants(app), expireGrants(app), expireGrants(app)]);
      expect(await states()).toEqual([REVOKED, EXPIRED, EXPIRED]);
      expect((await one.admin.grants.getGrant(idOf(ended.grant!))).grant).toEqual(ended.grant);
      for (const { grantId } of [active, open]) {
        const last = (await history(two.admin, grantId)).at(-1);
        expect(last).toMatchObject({ act: GrantAct.EXPIRE, party: GrantParty.UNSPECIFIED, state: EXPIRED, keyId: "" });
        expect(last!.createTime).toEqual(expireTime);
      }
      expect((await history(two.admin, active.grantId)).map(({ act }) => act)).toHaveLength(3);
      for (const [org, other] of [
        [one, two],
        [two, one],
      ] as const)
        for (const { grantId } of [active, open]) {
          const rows = (await rowsOf(org, grantId)).filter(({ method }) => method === `${service}/ExpireGrant`);
          expect(rows).toMatchObject([{ kind: AuditKind.CHANGE, keyId: "", time: expireTime }]);
          expect(rows[0]!.resource).toMatchObject({ grant_id: grantId, other_org_id: other.orgId });
        }
      for (const org of [one, two])
        expect((await ends(org.admin)).map(({ payload }) => [payload!.grant_id, payload!.state])).toEqual([
          [ended.grant!.grantId, "REVOKED"],
          [active.grantId, "EXPIRED"],
        ]);
    });

    test("the end of a grant in force is told to both once, that of a proposal to nobody", async () => {
      const [one, two, three] = [await world.org(), await world.org(), await world.org()];
      const { grantId } = await accepted({}, one, two);
      await two.admin.grants.revokeGrant({ grantId });
      await two.admin.grants.revokeGrant({ grantId });
      await one.admin.grants.revokeGrant(idOf(await propose({}, one, two)));
      await two.admin.grants.declineGrant(idOf(await propose({}, one, two)));
      for (const org of [one, two]) {
        const told = await ends(org.admin);
        expect(told.map(({ payload, agentId }) => ({ ...payload, agentId }))).toEqual([
          {
            ...{ grant_id: grantId, grantor_org_id: one.orgId, grantee_org_id: two.orgId, agentId: "" },
            ...{ state: "REVOKED", party: "GRANTEE", revision: "3" },
          },
        ]);
        expect(await ends((await org.agent()).as)).toHaveLength(1);
      }
      expect(await ends(three.admin)).toEqual([]);
    });

    test("a webhook can ask for it", async () => {
      const eventTypes = ["grant.revoked", "grant.*"];
      const { webhook } = await from.admin.webhooks.createWebhook({ url: "http://127.0.0.1:9/", eventTypes });
      expect(webhook?.eventTypes).toEqual(eventTypes);
      await from.admin.webhooks.deleteWebhook({ webhookId: webhook!.webhookId });
    });
  });

  describe("races", () => {
    test("of many who accept, decline and revoke a proposal the first decides, and the history tells one story", async () => {
      for (let round = 0; round < 10; round++) {
        const { grantId } = await propose();
        const { PROPOSE, ACCEPT, DECLINE, REVOKE } = GrantAct;
        const tries = [0, 1, 2].flatMap(() => [
          [REVOKE, () => from.admin.grants.revokeGrant({ grantId })] as const,
          [DECLINE, () => to.admin.grants.declineGrant({ grantId })] as const,
          [ACCEPT, () => to.admin.grants.acceptGrant({ grantId })] as const,
        ]);
        const results = await Promise.allSettled(tries.map(([, call]) => call()));
        const { grant } = await from.admin.grants.getGrant({ grantId });
        const told = await history(from.admin, grantId);
        expect(told.map(({ revision }) => revision)).toEqual(told.map((_, n) => BigInt(n + 1)));
        expect(told.at(-1)!.state).toBe(grant!.state);
        const acts = told.map(({ act }) => act);
        expect([
          [PROPOSE, ACCEPT, REVOKE],
          [PROPOSE, DECLINE],
          [PROPOSE, REVOKE],
        ]).toContainEqual(acts);
        // Whoever was told that it is done finds it in the history, and nobody else's is there.
        const done = new Set(tries.filter((_, n) => results[n]!.status === "fulfilled").map(([act]) => act));
        expect([...done].toSorted()).toEqual(acts.filter((act) => act !== PROPOSE).toSorted());
      }
    });

    test("of those who revoke a grant and of its time one ends it, and both organisations hear of it once", async () => {
      const [one, two] = [await world.org(), await world.org()];
      const { app } = world.server;
      for (let round = 1; round <= 10; round++) {
        const { grantId } = await accepted({ expireTime: timestampFromMs(clock.now() + 5) }, one, two);
        const revoking = [one, two].map(({ admin }) => admin.grants.revokeGrant({ grantId }));
        clock.advance(5);
        // Whoever sweeps is never in the way of who revokes, nor the other way round.
        await Promise.all([Promise.allSettled(revoking), expireGrants(app), expireGrants(app)]);
        const { grant, revisions } = await eventually(async () => {
          await expireGrants(app);
          const read = await one.admin.grants.getGrant({ grantId });
          return read.revisions.length > 2 && read;
        });
        expect([REVOKED, EXPIRED]).toContain(grant!.state);
        expect(revisions.map(({ revision }) => revision)).toEqual([3n, 2n, 1n]);
        expect([await ends(one.admin), await ends(two.admin)].map((told) => told.length)).toEqual([round, round]);
      }
    });

    test("of twenty who change the revision they saw one does; a grantee accepts no terms that it has not read", async () => {
      const { grantId } = await propose();
      const update = (n: number) =>
        from.admin.grants.updateGrant({
          ...{ grantId, change: { purpose: `p${n}` }, updateMask: { paths: ["purpose"] }, ifRevision: 1n },
        });
      expect(won(await Promise.allSettled(Array.from({ length: 20 }, (_, n) => update(n))))).toHaveLength(1);
      const { reason, metadata } = await refusal(to.admin.grants.acceptGrant({ grantId, ifRevision: 1n }));
      expect([reason, metadata]).toMatchObject(["FAILED_PRECONDITION", { field: "if_revision", revision: "2" }]);
      expect((await to.admin.grants.acceptGrant({ grantId, ifRevision: 2n })).grant?.state).toBe(ACTIVE);
      for (const call of ["suspendGrant", "resumeGrant", "revokeGrant"] as const)
        expect(await reasonOf(from.admin.grants[call]({ grantId, ifRevision: 2n }))).toBe("FAILED_PRECONDITION");
      expect(await reasonOf(to.admin.grants.declineGrant({ grantId, ifRevision: 2n }))).toBe("FAILED_PRECONDITION");
    });

    test("updates that name different terms all stay", async () => {
      const { grantId } = await accepted();
      const changes = [
        ["purpose", { purpose: "p" }],
        ["tokens_per_day", { tokensPerDay: 1n }],
        ["requests_per_day", { requestsPerDay: 2n }],
        ["price_cap_micros", { priceCapMicros: 3n }],
        ["allowed_tools", { allowedTools: ["t"] }],
      ] as const;
      const update = ([path, change]: (typeof changes)[number]) =>
        from.admin.grants.updateGrant({ grantId, change: change as never, updateMask: { paths: [path] } });
      await Promise.all(changes.map(update));
      const { grant } = await from.admin.grants.getGrant({ grantId });
      expect(grant).toMatchObject({ revision: 7n, terms: Object.assign({}, ...changes.map(([, change]) => change)) });
    });
  });

  describe("who sees what", () => {
    const calls: Record<string, (as: Clients, grantId: string, orgId?: string) => Promise<unknown>> = {
      getGrant: (as, grantId) => as.grants.getGrant({ grantId }),
      getGrantUsage: (as, grantId) => as.grants.getGrantUsage({ grantId }),
      acceptGrant: (as, grantId) => as.grants.acceptGrant({ grantId }),
      declineGrant: (as, grantId) => as.grants.declineGrant({ grantId }),
      updateGrant: (as, grantId) =>
        as.grants.updateGrant({ grantId, change: { purpose: "x" }, updateMask: { paths: ["purpose"] } }),
      suspendGrant: (as, grantId) => as.grants.suspendGrant({ grantId }),
      resumeGrant: (as, grantId) => as.grants.resumeGrant({ grantId }),
      revokeGrant: (as, grantId) => as.grants.revokeGrant({ grantId }),
    };

    test.each(Object.keys(calls))(
      "to a third organisation %s of a grant is as of one that there is not",
      async (name) => {
        const third = await world.org();
        const { grantId } = await accepted();
        const random = `grt_${"7".repeat(32)}`;
        const said = async (id: string) => {
          const { code, reason, metadata, error } = await refusal(calls[name]!(third.admin, id));
          const { trace_id, ...rest } = metadata;
          return JSON.stringify([code, reason, rest, error.rawMessage]).replaceAll(id, "<id>");
        };
        expect(await said(grantId)).toBe(await said(random));
        expect(await said(grantId)).toContain("NOT_FOUND");
        expect((await third.admin.grants.listGrants({})).grants).toEqual([]);
        const filter = { counterpartyOrgId: from.orgId };
        expect((await third.admin.grants.listGrants(filter)).grants).toEqual([]);
        expect((await from.admin.grants.getGrant({ grantId })).grant).toMatchObject({ state: ACTIVE, revision: 2n });
      },
    );

    test("a proposal to nobody is answered like one to somebody who has not answered", async () => {
      const silent = await world.org();
      const [there, nowhere] = [silent.orgId, `org_${"9".repeat(32)}`];
      const said = async (granteeOrgId: string) => {
        const { grant } = await from.admin.grants.createGrant({ granteeOrgId, subject });
        const { grantId, ...rest } = grant!;
        const { grant: read, revisions } = await from.admin.grants.getGrant({ grantId });
        const listed = await from.admin.grants.listGrants({ counterpartyOrgId: granteeOrgId });
        const text = JSON.stringify([rest, read, revisions, listed], (_key, value: unknown) =>
          typeof value === "bigint" ? String(value) : value,
        );
        return text.replaceAll(grantId, "<grant>").replaceAll(granteeOrgId, "<org>");
      };
      expect(await said(there)).toBe(await said(nowhere));
      const asOperator = { orgId: from.orgId, subject };
      const call = world.operator.grants.createGrant({ ...asOperator, granteeOrgId: nowhere });
      expect((await refusal(call)).metadata).toMatchObject({ resource: "organization", id: nowhere });
      const { grant } = await world.operator.grants.createGrant({ ...asOperator, granteeOrgId: there });
      expect(grant).toMatchObject({ grantorOrgId: from.orgId, state: PROPOSED });
      // As which party the operator acts, the organisation says that it names.
      const { grantId } = grant!;
      const accept = (orgId: string) => world.operator.grants.acceptGrant({ orgId, grantId });
      expect(await reasonOf(accept(from.orgId))).toBe("GRANT_PARTY_REQUIRED");
      expect(await reasonOf(world.operator.grants.acceptGrant({ grantId }))).toBe("NOT_FOUND");
      expect((await accept(there)).grant?.state).toBe(ACTIVE);
    });

    test("agents read their organisation's grants and change none", async () => {
      const { grantId } = await accepted();
      for (const { as } of [await from.agent(), await to.agent()]) {
        expect((await as.grants.getGrant({ grantId })).grant?.state).toBe(ACTIVE);
        expect((await as.grants.listGrants({ pageSize: 1 })).grants[0]?.grantId).toBe(grantId);
        for (const [name, call] of Object.entries(calls).filter(([name]) => !name.startsWith("get")))
          expect([name, await reasonOf(call(as, grantId))]).toEqual([name, "ROLE_REQUIRED"]);
        expect(await reasonOf(as.grants.createGrant({ granteeOrgId: to.orgId, subject }))).toBe("ROLE_REQUIRED");
      }
    });

    test("an act is audited where it was done; the other side reads it in the history alone", async () => {
      const [one, two] = [await world.org(), await world.org()];
      const { grantId } = await accepted({}, one, two);
      await one.admin.grants.suspendGrant({ grantId });
      const acts = async ({ admin }: Org) =>
        (await admin.admin.listAuditEvents({})).auditEvents
          .filter(({ resource }) => resource.grant_id === grantId)
          .map(({ method }) => method.split("/")[1]);
      expect(await acts(one)).toEqual(["SuspendGrant", "CreateGrant"]);
      expect(await acts(two)).toEqual(["AcceptGrant"]);
    });

    test("a grant lets nobody in yet: what it is on stays the grantor's own", async () => {
      const [one, two] = [await world.org(), await world.org()];
      const contractId = unique("contract");
      await addContract(world, one.orgId, { contractId });
      await one.agent({ capabilities: [contractId], endpoint: { kind: { case: "echo", value: {} } } });
      const on = { case: "contractId", value: contractId } as const;
      const { grant } = await one.admin.grants.createGrant({ granteeOrgId: two.orgId, subject: on });
      await two.admin.grants.acceptGrant(idOf(grant!));
      const { as } = await two.agent();
      expect(
        await reasonOf(as.bus.submitTask({ contractId, input: { kind: { case: "boolValue", value: true } } })),
      ).toBe("CONTRACT_NOT_FOUND");
      expect((await two.admin.contracts.listContracts({ contractId })).contracts).toEqual([]);
      expect((await two.admin.agents.listAgents({ capability: contractId })).agents).toEqual([]);
    });

    test("policies and budgets know it on both sides, and on no third", async () => {
      const { grantId: id } = await accepted();
      const third = await world.org();
      const { query } = world.server.app.db;
      const find = (orgId: string) => findEntity(query, orgId, { type: "Grant", id, orgId, version: "" });
      for (const { orgId } of [from, to]) {
        const { attrs, uid } = (await find(orgId))!.entity.json();
        expect([uid, attrs]).toMatchObject([
          { type: "Grant", id },
          { consumer: { __entity: { id: to.orgId } }, provider: { __entity: { id: from.orgId } } },
        ]);
      }
      expect(await find(third.orgId)).toBeUndefined();
      const limit = ({ admin }: Org, subjectId: string) =>
        admin.budgets.setBudget({ scope: 3, subjectId, period: 1, limitTokens: 5n });
      expect((await limit(to, id)).budget?.subjectId).toBe(id);
      for (const subjectId of [id, `grt_${"7".repeat(32)}`])
        expect((await refusal(limit(third, subjectId))).metadata).toMatchObject({ resource: "grant", id: subjectId });
    });
  });

  describe("lists", () => {
    let [one, two, three]: Org[] = [];
    const made: Record<string, string> = {};
    beforeAll(async () => {
      [one, two, three] = [await world.org(), await world.org(), await world.org()];
      const expireTime = timestampFromMs(clock.now() + 1_000);
      const keep = (name: string, { grantId }: { grantId: string }) => (made[name] = grantId);
      keep("given open", await propose({}, one, two));
      keep("given active", await accepted({}, one, two));
      keep("given to three", await accepted({}, one, three));
      keep("got", await accepted({}, two, one));
      keep("got, declined", (await one!.admin.grants.declineGrant(idOf(await propose({}, two, one)))).grant!);
      keep("got, over", await accepted({ expireTime }, two, one));
      clock.advance(1_000);
      await expireGrants(world.server.app);
      keep("given, over", await accepted({ expireTime: timestampFromMs(clock.now() + 100) }, one, two));
      clock.advance(100); // and nobody has written it down
    });
    const namesOf = (grants: readonly { grantId: string }[]) =>
      grants.map(({ grantId }) => Object.keys(made).find((name) => made[name] === grantId));

    test.each<[object, string[]]>([
      [{}, ["given, over", "got, over", "got, declined", "got", "given to three", "given active", "given open"]],
      [{ party: GRANTOR }, ["given, over", "given to three", "given active", "given open"]],
      [{ party: GRANTEE }, ["got, over", "got, declined", "got"]],
      [{ state: ACTIVE }, ["got", "given to three", "given active"]],
      [{ state: ACTIVE, party: GRANTOR }, ["given to three", "given active"]],
      [{ state: EXPIRED }, ["given, over", "got, over"]],
      [{ state: EXPIRED, party: GRANTOR }, ["given, over"]],
      [{ state: PROPOSED }, ["given open"]],
      [{ state: DECLINED }, ["got, declined"]],
      [{ state: SUSPENDED }, []],
    ])("by %o, newest first and page by page", async (filter, names) => {
      expect(namesOf((await one!.admin.grants.listGrants(filter)).grants)).toEqual(names);
      const seen: unknown[] = [];
      for (let pageToken = "", pages = 0; pages < 10; pages++) {
        const page = await one!.admin.grants.listGrants({ ...filter, pageSize: 2, pageToken });
        seen.push(...namesOf(page.grants));
        pageToken = page.nextPageToken;
        if (!pageToken) break;
      }
      expect(seen).toEqual(names);
    });

    test("by the other organisation", async () => {
      const list = async (filter: object) => namesOf((await one!.admin.grants.listGrants(filter)).grants);
      expect(await list({ counterpartyOrgId: three!.orgId })).toEqual(["given to three"]);
      expect(await list({ counterpartyOrgId: two!.orgId, state: ACTIVE })).toEqual(["got", "given active"]);
      expect(await list({ counterpartyOrgId: two!.orgId, state: EXPIRED })).toEqual(["given, over", "got, over"]);
      expect(await list({ counterpartyOrgId: two!.orgId, party: GRANTEE })).toHaveLength(3);
      expect(await list({ counterpartyOrgId: one!.orgId })).toEqual([]);
      expect(namesOf((await three!.admin.grants.listGrants({})).grants)).toEqual(["given to three"]);
    });

    test("a page token is good for its own organisation, filter and grant", async () => {
      const { nextPageToken: pageToken } = await one!.admin.grants.listGrants({ pageSize: 1 });
      for (const call of [
        () => two!.admin.grants.listGrants({ pageToken }),
        () => one!.admin.grants.listGrants({ pageToken, state: ACTIVE }),
        () => one!.admin.grants.getGrant({ grantId: made.got!, pageToken }),
      ])
        expect(await reasonOf(call())).toBe("INVALID_PAGE_TOKEN");
      const grantId = made["given active"]!;
      const first = await one!.admin.grants.getGrant({ grantId, pageSize: 1 });
      expect(first.revisions.map(({ revision }) => revision)).toEqual([2n]);
      const next = await one!.admin.grants.getGrant({ grantId, pageSize: 1, pageToken: first.nextPageToken });
      expect([next.revisions.map(({ revision }) => revision), next.nextPageToken]).toEqual([[1n], ""]);
    });
  });

  describe("bad input", () => {
    const past = () => timestampFromMs(clock.now());
    test.each<[string, string, () => object]>([
      ["no grantee", "grantee_org_id", () => ({ granteeOrgId: "" })],
      ["a grantee that is no id", "grantee_org_id", () => ({ granteeOrgId: "acme" })],
      ["itself as grantee", "grantee_org_id", () => ({ granteeOrgId: from.orgId })],
      ["nothing that it is on", "subject", () => ({ subject: { case: undefined } })],
      ["an empty capability", "capability", () => ({ subject: { case: "capability", value: "" } })],
      ["a capability that is none", "capability", () => ({ subject: { case: "capability", value: "a b" } })],
      ["a namespace that is none", "namespace", () => ({ subject: { case: "namespace", value: "/" } })],
      ["a time that is over", "terms.expire_time", () => ({ terms: { expireTime: past() } })],
      ["negative tokens", "terms.tokens_per_day", () => ({ terms: { tokensPerDay: -1n } })],
      ["too many tokens", "terms.tokens_per_day", () => ({ terms: { tokensPerDay: 10n ** 15n + 1n } })],
      ["negative requests", "terms.requests_per_day", () => ({ terms: { requestsPerDay: -1n } })],
      ["a negative price", "terms.price_cap_micros", () => ({ terms: { priceCapMicros: -1n } })],
      ["a tier that is none", "terms.allowed_tiers[0]", () => ({ terms: { allowedTiers: [9] } })],
      ["no tier", "terms.allowed_tiers[0]", () => ({ terms: { allowedTiers: [0] } })],
      ["a tier twice", "terms.allowed_tiers", () => ({ terms: { allowedTiers: [1, 1] } })],
      ["an empty tool", "terms.allowed_tools[0]", () => ({ terms: { allowedTools: [""] } })],
      ["a tool twice", "terms.allowed_tools", () => ({ terms: { allowedTools: ["a", "a"] } })],
      [
        "too many tools",
        "terms.allowed_tools",
        () => ({ terms: { allowedTools: Array.from({ length: 101 }, (_, n) => `${n}`) } }),
      ],
      ["too long a purpose", "terms.purpose", () => ({ terms: { purpose: "p".repeat(2_049) } })],
      ["a NUL character", "terms.purpose", () => ({ terms: { purpose: "a\u0000" } })],
    ])("a proposal with %s is refused, naming %s", async (_what, field, over) => {
      const request = { granteeOrgId: to.orgId, subject, ...over() };
      const { reason, metadata } = await refusal(from.admin.grants.createGrant(request as never));
      expect([reason, metadata.field]).toEqual(["INVALID_REQUEST", field]);
    });

    test("a proposal on a namespace or contract that the grantor has not got is refused, like one on another's", async () => {
      const name = unique("theirs");
      await to.admin.namespaces.createNamespace({ name });
      await addContract(world, to.orgId, { contractId: name });
      const on = (kind: "namespace" | "contractId", value: string, { admin } = from, { orgId } = to) =>
        admin.grants.createGrant({ granteeOrgId: orgId, subject: { case: kind, value } });
      for (const value of [name, unique("none")]) {
        expect((await refusal(on("namespace", value))).metadata).toMatchObject({ resource: "namespace", id: value });
        const { reason, metadata } = await refusal(on("contractId", value));
        expect([reason, metadata]).toMatchObject(["CONTRACT_NOT_FOUND", { field: "contract_id", contract_id: value }]);
      }
      for (const kind of ["namespace", "contractId"] as const)
        expect((await on(kind, name, to, from)).grant?.subject).toEqual({ case: kind, value: name });
    });

    test.each<[string[], object, string]>([
      [[], {}, "update_mask"],
      [["state"], {}, "update_mask"],
      [["capability"], {}, "update_mask"],
      [["purpose", "revision"], {}, "update_mask"],
      [["tokens_per_day"], { tokensPerDay: -1n }, "change.tokens_per_day"],
    ])("an update of %j with %o is refused, naming %s", async (paths, change, field) => {
      const { grantId } = await accepted();
      const call = from.admin.grants.updateGrant({ grantId, change, updateMask: { paths } });
      const { reason, metadata } = await refusal(call);
      expect([reason, metadata.field]).toEqual(["INVALID_REQUEST", field]);
    });

    test("an update sets no time that is over, and does not mind what it does not name", async () => {
      const expireTime = timestampFromMs(clock.now() + minute);
      const { grantId } = await accepted({ expireTime });
      const update = (paths: string[]) =>
        from.admin.grants.updateGrant({ grantId, change: { expireTime: past() }, updateMask: { paths } });
      expect((await refusal(update(["expire_time"]))).metadata.field).toBe("change.expire_time");
      expect((await update(["purpose"])).grant?.terms?.expireTime).toEqual(expireTime);
    });

    test.each<[object, string]>([
      [{ grantId: "" }, "grant_id"],
      [{ grantId: "g".repeat(65) }, "grant_id"],
      [{ grantId: "g", ifRevision: -1n }, "if_revision"],
    ])("%o is refused, naming %s", async (request, field) => {
      for (const call of ["acceptGrant", "declineGrant", "suspendGrant", "resumeGrant", "revokeGrant"] as const)
        expect((await refusal(from.admin.grants[call](request))).metadata.field).toBe(field);
    });

    test("usage is asked of days that there are", async () => {
      const { grantId } = await accepted();
      for (const [dates, field] of [
        [{ startDate: "2026-02-30" }, "start_date"],
        [{ endDate: "yesterday" }, "end_date"],
        [{ startDate: "2026-02-02", endDate: "2026-02-01" }, "start_date"],
      ] as const)
        expect((await refusal(from.admin.grants.getGrantUsage({ grantId, ...dates }))).metadata.field).toBe(field);
      expect(await reasonOf(from.admin.grants.listGrants({ state: 99 as GrantState }))).toBe("INVALID_REQUEST");
    });
  });

  describe("quotas", () => {
    test("an organisation has 100 proposals open to another, however many are made at once, and no others are hindered", async () => {
      const [one, two] = [await world.org(), await world.org()];
      const results = await Promise.allSettled(Array.from({ length: 105 }, () => propose({}, one, two)));
      expect(won(results)).toHaveLength(100);
      const { reason, metadata, error } = await refusal(propose({}, one, two));
      expect([reason, metadata]).toMatchObject(["QUOTA_EXCEEDED", { resource: "grant_proposals", limit: "100" }]);
      expect(error.rawMessage).toMatch(/at most 100 proposals/);
      await propose({}, one, to);
      const [open] = (await two.admin.grants.listGrants({ pageSize: 1 })).grants;
      await two.admin.grants.declineGrant(idOf(open!));
      await propose({}, one, two);
    });

    test("an organisation gives 1,000 grants that have not ended", async () => {
      const one = await world.org();
      const others = Array.from({ length: 10 }, (_, n) => `org_${String(n).repeat(32)}`);
      const give = (granteeOrgId: string) => one.admin.grants.createGrant({ granteeOrgId, subject });
      for (const other of others) await Promise.all(Array.from({ length: 100 }, () => give(other)));
      const { reason, metadata } = await refusal(give(to.orgId));
      expect([reason, metadata]).toMatchObject(["QUOTA_EXCEEDED", { resource: "grants", limit: "1000" }]);
      const [last] = (await one.admin.grants.listGrants({ pageSize: 1 })).grants;
      await one.admin.grants.revokeGrant(idOf(last!));
      await give(to.orgId);
    });

    test("a grant with 10,000 revisions is changed no more, but can be held and ended", async () => {
      const { grantId } = await accepted();
      const { db } = world.server.app;
      await db.tx((tx) =>
        tx.run(
          sql`update federation_grant set revision = 10000 where org_id = ${from.orgId} and grant_id = ${grantId}`,
        ),
      );
      const updateMask = { paths: ["purpose"] };
      const update = from.admin.grants.updateGrant({ grantId, change: {}, updateMask });
      expect((await refusal(update)).metadata).toMatchObject({ resource: "grant_revisions", limit: "10000" });
      await from.admin.grants.suspendGrant({ grantId });
      expect(await reasonOf(from.admin.grants.resumeGrant({ grantId }))).toBe("QUOTA_EXCEEDED");
      expect((await to.admin.grants.revokeGrant({ grantId })).grant).toMatchObject({
        state: REVOKED,
        revision: 10_002n,
      });
    });
  });
});
