import { randomBytes } from "node:crypto";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TaskState } from "../gen/moltwire/bus/v1/task_pb.ts";
import { raw, sql } from "../src/db/db.ts";
import { Fault } from "../src/errors.ts";
import { eventsOf, reasonOf, stateOf, whenEnded } from "./bus-fixtures/bus.ts";
import { answering } from "./federation-fixtures/answering.ts";
import { handMade, newKey, post } from "./federation-fixtures/hand-made.ts";
import { federated, grantedBy } from "./federation-fixtures/peers.ts";
import { dialects, fakeClock, refusal, start, unique, type World } from "./harness.ts";

const minute = 60_000;
/** An Ed25519 key under which anybody can sign; the others of its kind are in the test of the rule. */
const neutralPoint = Buffer.from(`01${"00".repeat(31)}`, "hex");

describe.each(dialects)("%s", (dialect) => {
  let a: World;
  let b: World;
  beforeAll(async () => {
    a = await start(dialect);
    b = await start(dialect);
  });
  afterAll(async () => {
    await a[Symbol.asyncDispose]();
    await b[Symbol.asyncDispose]();
  });

  describe("peers", () => {
    test("are added with an organisation and an agent, listed page by page, and removed", async () => {
      await using world = await start(dialect);
      const made: string[] = [];
      for (let n = 0; n < 3; n++) made.push((await handMade(world)).peerId);
      const first = await world.operator.peers.listPeers({ pageSize: 2 });
      const second = await world.operator.peers.listPeers({ pageSize: 2, pageToken: first.nextPageToken });
      expect([...first.peers, ...second.peers].map(({ peerId }) => peerId)).toEqual(made);
      expect(second.nextPageToken).toBe("");
      const [one] = first.peers;
      const { agent } = await world.operator.agents.getAgent({ orgId: one!.orgId, agentId: one!.agentId });
      expect(agent!.endpoint!.kind).toMatchObject({ case: "peer", value: { peerId: one!.peerId } });
      await world.operator.peers.removePeer({ peerId: one!.peerId });
      expect((await world.operator.peers.listPeers({})).peers).toHaveLength(2);
      expect((await world.operator.peers.listPeers({ includeRemoved: true })).peers).toHaveLength(3);
      expect((await refusal(world.operator.peers.removePeer({ peerId: "per_none" }))).reason).toBe("NOT_FOUND");
      // Added again, by another key, in the place of the organisation that there is.
      const publicKeys = [newKey().publicKey];
      const again = { name: one!.name, baseUrl: one!.baseUrl, audience: one!.audience, publicKeys, orgId: one!.orgId };
      const { peer: back } = await world.operator.peers.addPeer(again);
      expect([back!.orgId, back!.agentId === one!.agentId]).toEqual([one!.orgId, false]);
      const [row] = (await world.operator.admin.listAuditEvents({ orgId: one!.orgId, pageSize: 1 })).auditEvents;
      expect(row!.resource.peer_id).toBe(back!.peerId);
      const { auditEvents } = await world.operator.admin.listAuditEvents({ pageSize: 250 });
      const rows = auditEvents.filter(({ method }) => method.includes("PeerService"));
      expect(rows.map(({ method, resource }) => [method.split("/")[1], resource.peer_id])).toEqual([
        ["RemovePeer", one!.peerId],
        ...made.toReversed().map((peerId) => ["AddPeer", peerId]),
      ]);
    });

    test("are refused that are this server, that are there, or that may not be called", async () => {
      const { operator } = b;
      const { publicKey } = newKey();
      const good = { name: unique("p"), baseUrl: "http://127.0.0.1:9", audience: unique("a"), publicKeys: [publicKey] };
      const self = (await operator.peers.getIdentity({})).identity!;
      const reasonOfAdd = async (over: Partial<typeof good> & { orgId?: string }) =>
        (await refusal(operator.peers.addPeer({ ...good, ...over }))).reason;
      expect(await reasonOfAdd({ audience: self.audience })).toBe("INVALID_REQUEST");
      expect(await reasonOfAdd({ publicKeys: [self.keys[0]!.publicKey] })).toBe("INVALID_REQUEST");
      expect(await reasonOfAdd({ publicKeys: [publicKey, neutralPoint] })).toBe("INVALID_REQUEST");
      expect(await reasonOfAdd({ baseUrl: "http://127.0.0.1:9/path" })).toBe("INVALID_REQUEST");
      expect(await reasonOfAdd({ baseUrl: "http://192.0.2.1" })).toBe("ENDPOINT_REFUSED");
      expect(await reasonOfAdd({ orgId: b.server.homeOrgId })).toBe("INVALID_REQUEST");
      expect(await reasonOfAdd({ orgId: "org_none" })).toBe("NOT_FOUND");
      const { peer } = await operator.peers.addPeer(good);
      const other = { name: unique("p"), audience: unique("a"), publicKeys: [newKey().publicKey] };
      expect(await reasonOfAdd({ publicKeys: other.publicKeys, audience: other.audience })).toBe("ALREADY_EXISTS");
      expect(await reasonOfAdd({ name: other.name, audience: other.audience })).toBe("ALREADY_EXISTS");
      // One could pass on to the other what is meant for it.
      expect(await reasonOfAdd({ ...other, audience: good.audience })).toBe("ALREADY_EXISTS");
      expect(await reasonOfAdd({ ...other, orgId: peer!.orgId })).toBe("ALREADY_EXISTS");
      const org = await b.org();
      const named = await operator.peers.addPeer({ ...good, ...other, orgId: org.orgId });
      expect(named.peer!.orgId).toBe(org.orgId);
    });

    test("an agent that asks another server cannot be registered by hand", async () => {
      const org = await b.org();
      const endpoint = { kind: { case: "peer", value: { peerId: "per_none" } } } as const;
      expect((await refusal(org.agent({ endpoint }))).reason).toBe("ENDPOINT_REFUSED");
    });

    test("what is opened there is offered here, and what is closed there is offered no more", async () => {
      const at = await federated(a, b);
      const ref = { orgId: at.far.orgId, contractId: at.contractId };
      const here = (await a.operator.contracts.getContract(ref)).contract!;
      expect(here).toMatchObject({ capability: at.contractId, version: "1.0.0", deprecated: false });
      const sync = () => a.operator.peers.syncPeer({ peerId: at.far.peerId });
      expect(await sync()).toMatchObject({ offered: 1, added: 0, withdrawn: 0, skipped: 0 });
      await at.doing.admin.grants.suspendGrant({ grantId: at.grantThere });
      expect(await sync()).toMatchObject({ offered: 0, withdrawn: 1 });
      const exact = { ...ref, version: "1.0.0" };
      expect((await a.operator.contracts.getContract(exact)).contract!.deprecated).toBe(true);
      await at.doing.admin.grants.resumeGrant({ grantId: at.grantThere });
      expect(await sync()).toMatchObject({ offered: 1, added: 1 });
      expect(stateOf(await at.go())).toBe("COMPLETED");
      await a.operator.peers.removePeer({ peerId: at.far.peerId });
      expect((await a.operator.contracts.getContract(exact)).contract!.deprecated).toBe(true);
      expect((await refusal(sync())).reason).toBe("FAILED_PRECONDITION");
    });
  });

  describe("what a peer offers", () => {
    const json = (schema: object) => Buffer.from(JSON.stringify(schema));
    const offered = (contractId: string, over: { readonly capability?: string; readonly schema?: object } = {}) => {
      const { capability = "research/search", schema = {} } = over;
      const schemas = { inputSchemaJson: json(schema), outputSchemaJson: json({}) };
      return { contractId, version: "1.0.0", capability, timeout: durationFromMs(minute), ...schemas };
    };

    test("touches no contract of the organisation that stands for it, and draws no work from them", async () => {
      const org = await b.org();
      const own = unique("own");
      for (const contractId of [own, `${own}-old`]) {
        await org.admin.contracts.registerContract({ contractId, version: "1.0.0", capability: "research/search" });
      }
      await org.admin.contracts.deprecateContract({ contractId: `${own}-old`, version: "1.0.0" });
      await using peer = await answering(b, { orgId: org.orgId });
      const sync = () => b.operator.peers.syncPeer({ peerId: peer.peerId });
      const deprecated = async () => {
        const { contracts } = await org.admin.contracts.listContracts({});
        return contracts.filter((one) => one.deprecated).map(({ contractId }) => contractId);
      };
      const theirs = unique("theirs");
      const list = [offered(own), offered(`${own}-old`), offered(theirs)];
      peer.answer = () => ({ case: "contracts", value: { contracts: list } });
      expect(await sync()).toMatchObject({ offered: 1, added: 1, withdrawn: 0, skipped: 2 });
      expect(await deprecated()).toEqual([`${own}-old`]);
      const { agent } = await b.operator.agents.getAgent({ orgId: org.orgId, agentId: peer.agentId });
      expect(agent!.capabilities).toEqual(["research/search"]);
      expect((await refusal(org.admin.bus.submitTask({ contractId: own }))).reason).toBe("NO_CAPABLE_AGENT");
      expect(peer.asked.filter(({ body }) => body.case === "call")).toEqual([]);
      peer.answer = () => ({ case: "contracts", value: {} });
      expect(await sync()).toMatchObject({ offered: 0, withdrawn: 1, skipped: 0 });
      expect(await deprecated()).toEqual([`${own}-old`, theirs].toSorted());
      await b.operator.peers.removePeer({ peerId: peer.peerId });
      expect(await deprecated()).toEqual([`${own}-old`, theirs].toSorted());
    });

    test("is taken back by the same server when it is added again, and by no other", async () => {
      const org = await b.org();
      const theirs = unique("theirs");
      const offering = async (init: Parameters<typeof answering>[1]) => {
        const peer = await answering(b, { orgId: org.orgId, ...init });
        peer.answer = () => ({ case: "contracts", value: { contracts: [offered(theirs)] } });
        const { offered: taken, skipped } = await b.operator.peers.syncPeer({ peerId: peer.peerId });
        await b.operator.peers.removePeer({ peerId: peer.peerId });
        await peer[Symbol.asyncDispose]();
        return [taken, skipped];
      };
      const audience = unique("server");
      expect(await offering({ audience })).toEqual([1, 0]);
      expect(await offering({})).toEqual([0, 1]);
      expect(await offering({ audience })).toEqual([1, 0]);
    });

    test("ends with the peer: what it has in hand is unknown, its answer is taken no more, and nothing is sent to it", async () => {
      await using peer = await answering(b);
      const theirs = unique("theirs");
      peer.answer = () => ({ case: "contracts", value: { contracts: [offered(theirs)] } });
      await b.operator.peers.syncPeer({ peerId: peer.peerId });
      const org = await b.org();
      await grantedBy(b, peer.orgId, org.orgId, theirs);
      const { promise: begun, resolve } = Promise.withResolvers<void>();
      peer.answer = () => {
        resolve();
        return new Promise(() => {});
      };
      const submit = () => org.admin.gateway.submitTask({ targetOrgId: peer.orgId, contractId: theirs });
      const answer = submit();
      await begun;
      await b.operator.peers.removePeer({ peerId: peer.peerId });
      const { task } = await answer;
      expect([stateOf(task), reasonOf(task)]).toEqual(["FAILED", "OUTCOME_UNKNOWN"]);
      const there = await whenEnded(b.operator, task!.taskId, peer.orgId);
      expect([stateOf(there), there.error!.message]).toEqual(["FAILED", expect.stringContaining("was removed")]);
      expect((await refusal(submit())).reason).toBe("CONTRACT_VERSION_NOT_FOUND");
      expect(peer.asked.map(({ body }) => body.case)).toEqual(["listContracts", "call"]);
    });

    test("whose answer comes after it was removed is taken no more", async () => {
      await using peer = await answering(b);
      peer.answer = async () => {
        await b.operator.peers.removePeer({ peerId: peer.peerId });
        return { case: "contracts", value: { contracts: [offered(unique("theirs"))] } };
      };
      expect((await refusal(b.operator.peers.syncPeer({ peerId: peer.peerId }))).reason).toBe("FAILED_PRECONDITION");
      const { contracts } = await b.operator.contracts.listContracts({ orgId: peer.orgId });
      expect(contracts).toEqual([]);
    });

    test("takes up no more than half of the contract versions that the organisation may have", async () => {
      await using peer = await answering(b);
      const sync = () => b.operator.peers.syncPeer({ peerId: peer.peerId });
      const offering = (list: readonly ReturnType<typeof offered>[]) => {
        peer.answer = () => ({ case: "contracts", value: { contracts: [...list] } });
      };
      const [kept, more] = [offered(unique("theirs")), offered(unique("theirs"))];
      offering([kept]);
      expect(await sync()).toMatchObject({ offered: 1, added: 1 });
      // As if it had offered others, one after another, and withdrawn them.
      const { db } = b.server.app;
      const row = await db.query.one<object>(sql`select * from contract where org_id = ${peer.orgId}`);
      const names = Object.keys(row!);
      const values = names.map((name) => (name === "contract_id" ? "'old/' || n.i" : `c.${name}`));
      const copies = raw(`(${names.join(", ")}) select ${values.join(", ")}`);
      const upTo = (last: number) => sql`
        with recursive n(i) as (select 1 union all select i + 1 from n where i < ${last}) select i from n`;
      await db.tx((tx) =>
        tx.run(sql`
          insert into contract ${copies} from contract c cross join (${upTo(4_999)}) n
          where c.org_id = ${peer.orgId} and c.contract_id = ${kept.contractId}`),
      );
      offering([kept, more]);
      expect(await sync()).toMatchObject({ offered: 1, added: 0, skipped: 1 });
      await b.operator.contracts.registerContract({ orgId: peer.orgId, contractId: unique("own"), version: "1.0.0" });
    });

    test("waits when the peer is asked too often, as long as that says and its time reaches", async () => {
      await using peer = await answering(b);
      const theirs = unique("theirs");
      peer.answer = () => ({ case: "contracts", value: { contracts: [offered(theirs)] } });
      await b.operator.peers.syncPeer({ peerId: peer.peerId });
      const org = await b.org();
      await grantedBy(b, peer.orgId, org.orgId, theirs);
      const asked: number[] = [];
      const outcome = async (retryAfterMs: number) => {
        asked.length = 0;
        peer.answer = ({ body }) => {
          if (body.case !== "call") return { case: "cancelResult", value: {} };
          if (asked.push(performance.now()) === 1) throw new Fault("RATE_LIMITED", "too many", {}, { retryAfterMs });
          return { case: "result", value: { state: TaskState.AWAITING_APPROVAL } };
        };
        const { task } = await org.admin.gateway.submitTask({ targetOrgId: peer.orgId, contractId: theirs });
        const events = await eventsOf(b.operator, task!.traceId, peer.orgId);
        return events.find(({ details }) => details?.peer_reason)!.details!.peer_reason;
      };
      expect([await outcome(600), asked.length]).toEqual(["APPROVAL_REQUIRED", 2]);
      expect(asked[1]! - asked[0]!).toBeGreaterThan(590);
      // The contract gives an attempt a minute.
      expect([await outcome(10 * minute), asked.length]).toEqual(["RATE_LIMITED", 1]);
    });

    test("is read as far as its limits go: contracts of a page, and bytes of schemas", async () => {
      await using peer = await answering(b);
      const sync = () => b.operator.peers.syncPeer({ peerId: peer.peerId });
      const some = (count: number, schema = {}) =>
        Array.from({ length: count }, () => offered(unique("theirs"), { schema }));
      peer.answer = () => ({ case: "contracts", value: { contracts: some(11) } });
      expect((await refusal(sync())).reason).toBe("AGENT_BAD_RESPONSE");
      // A list without an end, of the largest schemas: 8 MiB are of 13 pages.
      const large = { description: "x".repeat(65_400) };
      peer.asked.length = 0;
      peer.answer = () => ({ case: "contracts", value: { contracts: some(10, large), nextPageToken: "on" } });
      expect(await sync()).toMatchObject({ offered: 128, skipped: 2 });
      expect(peer.asked).toHaveLength(13);
      const beyond = { description: "x".repeat(65_536) };
      peer.answer = () => ({ case: "contracts", value: { contracts: [...some(1), ...some(1, beyond)] } });
      expect(await sync()).toMatchObject({ offered: 1, withdrawn: 128, skipped: 1 });
    });
  });

  describe("the rotation of a key", () => {
    test("of a peer: both keys are good until the overlap is over, and with none the former is good no more", async () => {
      const peer = await handMade(b);
      const next = newKey();
      const day = durationFromMs(24 * 60 * minute);
      const { peer: now } = await b.operator.peers.rotatePeerKey({
        ...{ peerId: peer.peerId, publicKey: next.publicKey, overlap: day },
      });
      expect(now!.keys.map(({ keyId }) => keyId).toSorted()).toEqual([peer.key.keyId, next.key.keyId].toSorted());
      expect((await post(b.url, peer.write())).status).toBe(200);
      const third = newKey();
      await b.operator.peers.rotatePeerKey({
        ...{ peerId: peer.peerId, publicKey: third.publicKey, overlap: durationFromMs(0) },
      });
      expect((await post(b.url, peer.write())).reason).toBe("PEER_UNKNOWN");
      const again = b.operator.peers.rotatePeerKey({ peerId: peer.peerId, publicKey: third.publicKey });
      expect((await refusal(again)).reason).toBe("ALREADY_EXISTS");
      for (const publicKey of [randomBytes(31), neutralPoint]) {
        const none = b.operator.peers.rotatePeerKey({ peerId: peer.peerId, publicKey });
        expect((await refusal(none)).reason).toBe("INVALID_REQUEST");
      }
    });

    test("of this server: the former signs until the overlap is over, and calls go on crossing", async () => {
      const clock = fakeClock(Date.now());
      await using mover = await start(dialect, { clock });
      const at = await federated(mover, b);
      const before = (await mover.operator.peers.getIdentity({})).identity!;
      const overlap = durationFromMs(minute);
      const { identity } = await mover.operator.peers.rotatePeerKey({ overlap });
      expect(identity!.keys).toHaveLength(2);
      expect(identity!.keys[1]!.publicKey).toEqual(before.keys[0]!.publicKey);
      expect(stateOf(await at.go())).toBe("COMPLETED");
      const { publicKey } = identity!.keys[0]!;
      await b.operator.peers.rotatePeerKey({ peerId: at.near.peerId, publicKey });
      clock.advance(minute);
      expect(stateOf(await at.go())).toBe("COMPLETED");
      await mover.operator.peers.rotatePeerKey({ overlap: durationFromMs(0) });
      const task = await at.go();
      const events = await eventsOf(mover.operator, task.traceId, at.far.orgId);
      expect(events.find(({ details }) => details?.peer_reason)!.details).toMatchObject({
        peer_reason: "PEER_UNKNOWN",
      });
    });
  });
});
