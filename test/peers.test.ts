import { randomBytes } from "node:crypto";
import { fileURLToPath } from "node:url";
import { fromBinary } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { connectClients } from "../clients/cli/connect.ts";
import { federate } from "../clients/demo/federate.ts";
import { TaskState } from "../gen/moltwire/bus/v1/task_pb.ts";
import { PeerReceiptSchema } from "../gen/moltwire/federation/v1/peer_envelope_pb.ts";
import { PeerState } from "../gen/moltwire/federation/v1/peer_pb.ts";
import { sql } from "../src/db/db.ts";
import { digestText, sha256 } from "../src/federation/peer/http-signature.ts";
import type { Adapter } from "../src/server.ts";
import {
  contract,
  eventsOf,
  httpEndpoint,
  json,
  kindsOf,
  reasonOf,
  stateOf,
  value,
  whenEnded,
} from "./bus-fixtures/bus.ts";
import { deadUrl, httpAgent } from "./bus-fixtures/http-agent.ts";
import { serverProcess } from "./bus-fixtures/process.ts";
import { storage } from "./bus-fixtures/storage.ts";
import { type HandMade, handMade, type Message, newKey, type Odd, post } from "./federation-fixtures/hand-made.ts";
import { line } from "./federation-fixtures/line.ts";
import { federated, grantedBy, peers } from "./federation-fixtures/peers.ts";
import { clientsAt, dialects, eventually, fakeClock, type Org, refusal, start, unique, type World } from "./harness.ts";

const minute = 60_000;
const nothing = { inputTokens: 0, outputTokens: 0, model: "" };
const scripted = { kind: { case: "custom", value: { adapter: "scripted", config: {} } } } as const;

describe.each(dialects)("%s", (dialect) => {
  /** A asks, B does. */
  let a: World;
  let b: World;
  /** What the agents of B do whose endpoint is `scripted`. */
  let work: Adapter;
  const adapters = { scripted: ((...of) => work(...of)) satisfies Adapter };
  beforeAll(async () => {
    a = await start(dialect);
    b = await start(dialect, { adapters });
  });
  afterAll(async () => {
    await a[Symbol.asyncDispose]();
    await b[Symbol.asyncDispose]();
  });

  describe("a task for another server", () => {
    test("is done there by an agent and answered here, and costs and receipt come with it", async () => {
      const at = await federated(a, b, { agent: { endpoint: scripted } });
      await at.doing.admin.costs.setRates({
        rates: [{ inputPer1000TokensMicros: 1_000n, outputPer1000TokensMicros: 2_000n }],
      });
      work = async (_endpoint, { input }) => ({
        output: { heard: input },
        usage: { inputTokens: 1_000, outputTokens: 2_000, model: "secret-model" },
      });
      const task = await at.go({ input: { say: "hello" } });
      expect([stateOf(task), json(task.output)]).toEqual(["COMPLETED", { heard: { say: "hello" } }]);
      expect(task).toMatchObject({
        costMicros: 5_000n,
        usage: { inputTokens: 1_000n, outputTokens: 2_000n, model: "" },
      });
      const here = await eventsOf(a.operator, task.traceId, at.far.orgId);
      const there = await eventsOf(at.doing.admin, task.traceId);
      expect(kindsOf(there)).toContain("COMPLETED");
      const receipt = here.find(({ kind }) => kindsOf([{ kind } as never])[0] === "PEER_RECEIPT")!.details!;
      expect(receipt).toMatchObject({ cost_micros: 5_000, input_tokens: 1_000, output_tokens: 2_000 });
      const signed = fromBinary(PeerReceiptSchema, Buffer.from(receipt.payload as string, "base64"));
      expect(signed).toMatchObject({ callId: task.taskId, traceId: task.traceId, orgId: at.doing.orgId });
      const [mine] = (await at.asking.admin.gateway.getStatus({ traceId: task.traceId })).statuses;
      expect(mine).toMatchObject({ state: TaskState.COMPLETED, costMicros: 5_000n });
      const [usage] = (await b.operator.grants.getGrantUsage({ orgId: at.doing.orgId, grantId: at.grantThere })).days;
      expect(usage).toMatchObject({ requests: 1n, tokens: 3_000n, costMicros: 5_000n });
      const [spent] = (await b.operator.bus.listTasks({ orgId: at.near.orgId })).tasks;
      expect(spent).toMatchObject({ labels: { from_org_id: at.asking.orgId, from_agent_id: at.asker.agentId } });
      expect(spent).toMatchObject({ traceId: task.traceId, callerAgentId: at.near.agentId });
    });

    test("is decided there as coming from the organisation that stands for this server: by its policies and its grant", async () => {
      const at = await federated(a, b);
      expect(stateOf(await at.go())).toBe("COMPLETED");
      const cedarText = `forbid (principal, action == Action::"invoke", resource) when { context has direction && context.direction == "in" };`;
      await at.doing.admin.policies.putPolicy({ policyId: "none", cedarText });
      const denied = await at.go();
      expect([stateOf(denied), reasonOf(denied)]).toEqual(["FAILED", "ADAPTER_ERROR"]);
      const failed = async (traceId: string) =>
        (await eventsOf(a.operator, traceId, at.far.orgId)).find(({ details }) => details?.peer_reason)!.details;
      expect(await failed(denied.traceId)).toMatchObject({ peer_reason: "POLICY_DENIED" });
      await at.doing.admin.policies.deletePolicy({ policyId: "none" });
      await at.doing.admin.grants.revokeGrant({ grantId: at.grantThere });
      expect(await failed((await at.go()).traceId)).toMatchObject({ peer_reason: "NOT_FOUND" });
    });

    test("that costs more than the grant here lets is refused there before it is begun", async () => {
      let calls = 0;
      work = async () => ({ output: ++calls, usage: nothing });
      const at = await federated(a, b, {
        ...{ agent: { endpoint: scripted }, contract: { estimatedTokens: 1_000n } },
        grantHere: { terms: { priceCapMicros: 999n } },
      });
      const rate = (micros: bigint) => ({ inputPer1000TokensMicros: micros, outputPer1000TokensMicros: micros });
      await at.doing.admin.costs.setRates({ rates: [rate(1_000n)] });
      const task = await at.go();
      const events = await eventsOf(a.operator, task.traceId, at.far.orgId);
      expect(events.find(({ details }) => details?.peer_reason)!.details).toMatchObject({
        peer_reason: "GRANT_TERMS_EXCEEDED",
      });
      expect([stateOf(task), calls]).toEqual(["FAILED", 0]);
    });

    test("that fails there fails here, and what it used is told all the same", async () => {
      const at = await federated(a, b, { agent: { endpoint: scripted } });
      work = async () => {
        throw new Error("broken");
      };
      const task = await at.go();
      expect([stateOf(task), reasonOf(task)]).toEqual(["FAILED", "ADAPTER_ERROR"]);
      const events = await eventsOf(a.operator, task.traceId, at.far.orgId);
      expect(kindsOf(events)).toContain("PEER_RECEIPT");
      expect(events.find(({ details }) => details?.peer_reason)!.details).toMatchObject({
        peer_reason: "ADAPTER_ERROR",
      });
    });

    test("that is canceled here is canceled there", async () => {
      const at = await federated(a, b, { agent: { endpoint: scripted } });
      const { promise: begun, resolve } = Promise.withResolvers<string>();
      work = (_endpoint, { taskId }, signal) =>
        new Promise((_, reject) => {
          resolve(taskId);
          signal.addEventListener("abort", () => reject(signal.reason), { once: true });
        });
      const { taskId } = await at.go({ returnImmediately: true });
      const thereId = await begun;
      await at.asker.as.bus.cancelTask({ taskId });
      expect(stateOf(await whenEnded(at.doing.admin, thereId))).toBe("CANCELED");
    });

    test("is asked for again by the same name when the answer is lost, and done once", async () => {
      await using between = await line(b.url);
      const at = await federated(a, b, { agent: { endpoint: scripted }, url: between.url });
      const { promise: begun, resolve } = Promise.withResolvers<void>();
      const { promise: goOn, resolve: letGo } = Promise.withResolvers<void>();
      let calls = 0;
      work = async () => {
        calls++;
        resolve();
        await goOn;
        return { output: "once", usage: nothing };
      };
      const { taskId } = await at.go({ returnImmediately: true });
      await begun;
      between.cut();
      letGo();
      const task = await whenEnded(at.asker.as, taskId);
      expect([stateOf(task), json(task.output), calls]).toEqual(["COMPLETED", "once", 1]);
      expect((await b.operator.bus.listTasks({ orgId: at.near.orgId })).tasks).toHaveLength(1);
    });

    test("whose answer never comes ends by its time, as nobody knows whether it was done", async () => {
      const at = await federated(a, b, { agent: { endpoint: scripted }, contract: { timeoutMs: 400 } });
      work = (_endpoint, _assignment, signal) =>
        new Promise((_, reject) => {
          signal.addEventListener("abort", () => reject(signal.reason), { once: true });
        });
      const task = await at.go();
      expect(stateOf(task)).toBe("FAILED");
      expect(["OUTCOME_UNKNOWN", "AGENT_TIMEOUT", "ADAPTER_ERROR"]).toContain(reasonOf(task));
      const [there] = (await b.operator.bus.listTasks({ orgId: at.near.orgId })).tasks;
      await eventually(
        async () => (await b.operator.bus.getTask({ orgId: at.near.orgId, taskId: there!.taskId })).task!.state > 3,
      );
    });

    test("whose server cannot be reached was not begun", async () => {
      const at = await federated(a, b, {});
      const url = await deadUrl();
      await a.server.app.db.tx((tx) =>
        tx.run(sql`update federation_peer set base_url = ${url} where peer_id = ${at.far.peerId}`),
      );
      expect(reasonOf(await at.go())).toBe("AGENT_UNREACHABLE");
    });

    test("that waits for an approval there is left, and says so", async () => {
      const at = await federated(a, b, { contract: { approvalRequired: true } });
      const task = await at.go();
      const events = await eventsOf(a.operator, task.traceId, at.far.orgId);
      expect(events.find(({ details }) => details?.peer_reason)!.details).toMatchObject({
        peer_reason: "APPROVAL_REQUIRED",
      });
      const [there] = (await b.operator.bus.listTasks({ orgId: at.near.orgId })).tasks;
      expect(stateOf(await whenEnded(b.operator, there!.taskId, at.near.orgId))).toBe("CANCELED");
    });

    test("goes over a server between two, one hop more, and not over more than four", async () => {
      // B stands between: what the last server opens to B, B opens to A.
      await using last = await start(dialect);
      const beyond = await federated(b, last);
      const { askedAs: far, askingAs: near } = await peers(a, b, beyond.far.orgId);
      await grantedBy(b, beyond.far.orgId, near.orgId, beyond.contractId);
      await a.operator.peers.syncPeer({ peerId: far.peerId });
      const asking = await a.org();
      await grantedBy(a, far.orgId, asking.orgId, beyond.contractId);
      const { task } = await asking.admin.gateway.submitTask({ targetOrgId: far.orgId, contractId: beyond.contractId });
      expect(stateOf(task)).toBe("COMPLETED");
      const { traceId } = task!;
      expect(kindsOf(await eventsOf(beyond.doing.admin, traceId))).toContain("COMPLETED");
      const hops = async (world: World, orgId: string) =>
        (await world.server.app.db.query.one<{ hops: number }>(
          sql`select hops from federation_peer_call where org_id = ${orgId} order by create_ms desc limit 1`,
        ))!.hops;
      expect([await hops(b, near.orgId), await hops(last, beyond.near.orgId)]).toEqual([1, 2]);
      // What has gone over four already goes no further.
      const hand = await handMade(b);
      await grantedBy(b, beyond.far.orgId, hand.orgId, beyond.contractId);
      const body = hand.call(unique("call"), beyond.far.orgId, beyond.contractId);
      const { reply } = await post(b.url, hand.write({ envelope: { body, hops: 4 } }));
      expect(reply!.body).toMatchObject({ case: "result", value: { state: TaskState.FAILED } });
      const { tasks } = await last.operator.bus.listTasks({ orgId: beyond.near.orgId });
      expect(tasks).toHaveLength(1);
    });
  });

  describe("a message of another server", () => {
    let org: Org;
    let contractId: string;
    let from: HandMade;
    let calls: string[];
    beforeAll(async () => {
      org = await b.org();
      contractId = await contract(org, {});
      await org.agent({ capabilities: [contractId], endpoint: scripted });
      from = await handMade(b);
      await grantedBy(b, org.orgId, from.orgId, contractId);
      calls = [];
    });
    const called = async () => {
      work = async (_endpoint, { taskId }) => {
        calls.push(taskId);
        return { output: "done", usage: nothing };
      };
    };
    const reasonFor = async (odd: Odd) => {
      await called();
      const before = calls.length;
      const body = from.call(unique("call"), org.orgId, contractId);
      const { reason } = await post(b.url, from.write({ ...odd, envelope: { body, ...odd.envelope } }));
      expect(calls).toHaveLength(before);
      return reason;
    };

    test("that is all right is answered by a signed reply to it", async () => {
      await called();
      const body = from.call(unique("call"), org.orgId, contractId);
      const { status, reply } = await post(b.url, from.write({ envelope: { body } }));
      expect(status).toBe(200);
      expect(reply!.body).toMatchObject({ case: "result", value: { state: TaskState.COMPLETED } });
    });

    test("is taken once: the same again is refused, at once and with all at once", async () => {
      await called();
      const message = from.write({ envelope: { body: from.call(unique("call"), org.orgId, contractId) } });
      const backs = await Promise.all(Array.from({ length: 8 }, () => post(b.url, message)));
      expect(backs.map(({ reason }) => reason).toSorted()).toEqual(["", ...Array(7).fill("PEER_MESSAGE_REPLAYED")]);
      expect(calls).toHaveLength(new Set(calls).size);
    });

    test.each<[string, Odd, string]>([
      ["for another server", { envelope: { audience: "org_of_somebody_else" } }, "PEER_AUDIENCE_WRONG"],
      ["of ten minutes ago", { madeMs: -10 * minute }, "PEER_MESSAGE_STALE"],
      ["of ten minutes ahead", { madeMs: 10 * minute }, "PEER_MESSAGE_EARLY"],
      ["whose envelope is of ten minutes ago", { madeMs: -10 * minute, requestMadeMs: 0 }, "PEER_MESSAGE_STALE"],
      ["whose envelope is of ten minutes ahead", { madeMs: 10 * minute, requestMadeMs: 0 }, "PEER_MESSAGE_EARLY"],
      ["that lives for an hour", { livesMs: 60 * minute }, "PEER_MESSAGE_STALE"],
      ["that another key signed", { requestKey: newKey().key }, "PEER_SIGNATURE_INVALID"],
      ["whose envelope another key signed", { envelopeKey: newKey().key }, "PEER_SIGNATURE_INVALID"],
      ["in the name of another origin", { envelope: { origin: "somebody-else" } }, "PEER_ENVELOPE_INVALID"],
      ["of another version", { envelope: { version: 2 } }, "PEER_ENVELOPE_INVALID"],
      ["that has gone over five servers", { envelope: { hops: 5 } }, "PEER_HOPS_EXCEEDED"],
    ])("%s is refused, and nothing is begun", async (_, odd, reason) => {
      expect(await reasonFor(odd)).toBe(reason);
    });

    test("whose body was changed is refused, also with a new digest, and one with any header of the signature changed", async () => {
      const message = from.write();
      const body = Buffer.from(message.body);
      // A letter inside of the payload, so that it is still a message.
      const index = body.indexOf("nothing");
      body[index] = "N".charCodeAt(0);
      expect((await post(b.url, { ...message, body })).reason).toBe("PEER_DIGEST_MISMATCH");
      const headers = { ...message.headers, "content-digest": digestText(sha256(body)) };
      expect((await post(b.url, { body, headers })).reason).toBe("PEER_SIGNATURE_INVALID");
      for (const name of ["signature", "signature-input", "content-digest"]) {
        const { [name]: _, ...without } = message.headers;
        expect((await post(b.url, { ...message, headers: without })).reason).toBe("PEER_SIGNATURE_INVALID");
      }
      const input = message.headers["signature-input"]!;
      const later = input.replace(/created=(\d+)/, (_, created: string) => `created=${Number(created) + 1}`);
      expect(
        (await post(b.url, { ...message, headers: { ...message.headers, "signature-input": later } })).reason,
      ).toBe("PEER_SIGNATURE_INVALID");
      expect((await post(b.url, message)).status).toBe(200);
    });

    test("of a server that is no peer, or no more, is refused", async () => {
      const gone = await handMade(b);
      expect((await post(b.url, gone.write())).status).toBe(200);
      const { peer } = await b.operator.peers.removePeer({ peerId: gone.peerId });
      expect(peer!.state).toBe(PeerState.REMOVED);
      expect((await post(b.url, gone.write())).reason).toBe("PEER_UNKNOWN");
      expect((await b.operator.peers.removePeer({ peerId: gone.peerId })).peer).toEqual(peer);
    });

    test("by the name of work that was asked for is the same work, and of other work is refused", async () => {
      await called();
      const callId = unique("call");
      const body = from.call(callId, org.orgId, contractId);
      const before = calls.length;
      const ask = () => post(b.url, from.write({ envelope: { body } }));
      const backs = await Promise.all(Array.from({ length: 5 }, ask));
      expect(backs.map(({ status }) => status)).toEqual([200, 200, 200, 200, 200]);
      expect(calls).toHaveLength(before + 1);
      const other = from.call(callId, org.orgId, contractId);
      if (other?.case === "call") other.value = { ...other.value, input: value("other") };
      expect((await post(b.url, from.write({ envelope: { body: other } }))).reason).toBe("IDEMPOTENCY_KEY_REUSED");
      // Another peer's names are its own.
      const another = await handMade(b);
      expect((await post(b.url, another.write({ envelope: { body } }))).reason).toBe("NOT_FOUND");
    });

    test("is refused after a restart of the server as it was before", async () => {
      await using place = await storage(dialect);
      let peer: HandMade;
      let message: Message;
      let port: number;
      {
        await using before = await start(dialect, { ...place.options });
        peer = await handMade(before);
        message = peer.write();
        expect((await post(before.url, message)).status).toBe(200);
        port = Number(new URL(before.url).port);
      }
      // On the same port, since the address is signed.
      await using after = await start(dialect, { ...place.options, port });
      expect((await post(after.url, message)).reason).toBe("PEER_MESSAGE_REPLAYED");
      expect((await post(after.url, peer.write())).status).toBe(200);
      expect((await post(after.url, peer.write({ envelope: { audience: "another" } }))).reason).toBe(
        "PEER_AUDIENCE_WRONG",
      );
    });
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
      const none = b.operator.peers.rotatePeerKey({ peerId: peer.peerId, publicKey: randomBytes(31) });
      expect((await refusal(none)).reason).toBe("INVALID_REQUEST");
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

describe("two server processes", () => {
  const main = fileURLToPath(new URL("../src/main.ts", import.meta.url));
  const operatorKey = "kR7w2Qz9XvB4nT6mLp3sYf8hJd5gCa1e";
  const masterKey = randomBytes(32).toString("base64");
  const env = { MOLTWIRE_OPERATOR_KEY: operatorKey, MOLTWIRE_EGRESS_ALLOW: "127.0.0.1" };
  const serverAt = (folder: string, port: string, more: Record<string, string> = {}) =>
    serverProcess(main, ["--data", folder, "--port", port, "--rate-limit", "0", "--log-level", "silent"], {
      ...env,
      ...more,
    });

  test("have one trace, and go on federating after one of them was killed, whether they encrypt at rest or not", async () => {
    await using placeA = await storage("sqlite");
    await using placeB = await storage("sqlite");
    await using agent = await httpAgent();
    await using asking = await serverAt(placeA.folder, "0");
    let doing = await serverAt(placeB.folder, "0", { MOLTWIRE_MASTER_KEY: masterKey });
    try {
      const site = ({ url }: { readonly url: string }) => ({
        url,
        operator: connectClients({ url, key: operatorKey }),
      });
      const orgOf = async (url: string, name: string) =>
        (await clientsAt(url, operatorKey).organizations.createOrganization({ name })).organization!.orgId;
      const [askingOrgId, doingOrgId] = [await orgOf(asking.url, "asking"), await orgOf(doing.url, "doing")];
      const contractId = "research/search";
      const there = clientsAt(doing.url, operatorKey);
      await there.contracts.registerContract({ orgId: doingOrgId, contractId, version: "1.0.0" });
      const endpoint = httpEndpoint(agent.url);
      await there.agents.registerAgent({ orgId: doingOrgId, name: "worker", capabilities: [contractId], endpoint });
      const { targetOrgId } = await federate(site(asking), site(doing), { askingOrgId, doingOrgId, contractId });
      const here = clientsAt(asking.url, operatorKey);
      const ask = async (input: string) =>
        (await here.gateway.submitTask({ orgId: askingOrgId, targetOrgId, contractId, input: value(input) })).task!;
      const task = await ask("first");
      expect([stateOf(task), json(task.output)]).toEqual(["COMPLETED", "first"]);
      expect(kindsOf(await eventsOf(there, task.traceId, doingOrgId))).toContain("COMPLETED");
      await doing.kill();
      expect(reasonOf(await ask("nobody is there"))).toBe("AGENT_UNREACHABLE");
      doing = await serverAt(placeB.folder, new URL(doing.url).port, { MOLTWIRE_MASTER_KEY: masterKey });
      expect(json((await ask("again")).output)).toBe("again");
      expect(agent.calls).toHaveLength(2);
    } finally {
      await doing.kill();
    }
  });
});
