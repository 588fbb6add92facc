import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TaskState } from "../gen/moltwire/bus/v1/task_pb.ts";
import { PeerState } from "../gen/moltwire/federation/v1/peer_pb.ts";
import { sql } from "../src/db/db.ts";
import { digestText, sha256 } from "../src/federation/peer/http-signature.ts";
import type { Adapter } from "../src/server.ts";
import { contract, reasonOf, stateOf, value, whenEnded } from "./bus-fixtures/bus.ts";
import { storage } from "./bus-fixtures/storage.ts";
import { type HandMade, handMade, type Message, newKey, type Odd, post } from "./federation-fixtures/hand-made.ts";
import { grantedBy } from "./federation-fixtures/peers.ts";
import { dialects, eventually, fakeClock, type Org, start, unique, type World } from "./harness.ts";

const minute = 60_000;
const nothing = { inputTokens: 0, outputTokens: 0, model: "" };
const scripted = { kind: { case: "custom", value: { adapter: "scripted", config: {} } } } as const;

describe.each(dialects)("%s", (dialect) => {
  let b: World;
  /** What the agents of B do whose endpoint is `scripted`. */
  let work: Adapter;
  beforeAll(async () => {
    b = await start(dialect, { adapters: { scripted: (...of) => work(...of) } });
  });
  afterAll(() => b[Symbol.asyncDispose]());

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

    test("has begun work that is canceled when the peer is removed, also what waits for an approval, and is told nothing more", async () => {
      const gone = await handMade(b);
      const approved = await contract(org, { approvalRequired: true });
      await org.agent({ capabilities: [approved], endpoint: scripted });
      for (const one of [contractId, approved]) await grantedBy(b, org.orgId, gone.orgId, one);
      const { promise: begun, resolve } = Promise.withResolvers<void>();
      const { promise: left, resolve: leave } = Promise.withResolvers<void>();
      work = (_endpoint, _assignment, signal) =>
        new Promise((_, reject) => {
          resolve();
          signal.addEventListener("abort", () => reject(signal.reason), { once: true });
          signal.addEventListener("abort", () => leave(), { once: true });
        });
      const ask = (of: string) =>
        post(b.url, gone.write({ envelope: { body: gone.call(unique("call"), org.orgId, of, 60_000) } }));
      const waiting = await ask(approved);
      expect(waiting.reply!.body).toMatchObject({ case: "result", value: { state: TaskState.AWAITING_APPROVAL } });
      const answer = ask(contractId);
      await begun;
      await b.operator.peers.removePeer({ peerId: gone.peerId });
      expect((await answer).reason).toBe("PEER_UNKNOWN");
      await left;
      const { tasks } = await b.operator.bus.listTasks({ orgId: gone.orgId });
      expect(tasks).toHaveLength(2);
      for (const { taskId } of tasks) {
        const [here, there] = [await whenEnded(b.operator, taskId, gone.orgId), await whenEnded(org.admin, taskId)];
        expect([stateOf(here), reasonOf(here), stateOf(there)]).toEqual(["CANCELED", "TASK_CANCELED", "CANCELED"]);
      }
    });

    test("ends with its peer though 50 tasks before it cannot be ended, and those when they can be", async () => {
      const gone = await handMade(b);
      const approved = await contract(org, { approvalRequired: true });
      await org.agent({ capabilities: [approved], endpoint: scripted });
      await grantedBy(b, org.orgId, gone.orgId, approved);
      for (let n = 0; n < 51; n++) {
        const body = gone.call(unique("call"), org.orgId, approved, 60_000);
        const { reply } = await post(b.url, gone.write({ envelope: { body } }));
        expect(reply!.body).toMatchObject({ case: "result", value: { state: TaskState.AWAITING_APPROVAL } });
      }
      const { tasks } = await b.operator.bus.listTasks({ orgId: gone.orgId, pageSize: 60 });
      const last = tasks[0]!.taskId;
      // Nobody finds what they came in under.
      const { db } = b.server.app;
      const ofIt = sql`org_id = ${org.orgId} and caller_org_id = ${gone.orgId}`;
      await db.tx((tx) =>
        tx.run(sql`update federation_crossing set task_id = 'hidden ' || task_id where ${ofIt} and task_id <> ${last}`),
      );
      await b.operator.peers.removePeer({ peerId: gone.peerId });
      expect(stateOf(await whenEnded(b.operator, last, gone.orgId))).toBe("CANCELED");
      const stateOfFirst = async () =>
        stateOf((await b.operator.bus.getTask({ orgId: gone.orgId, taskId: tasks.at(-1)!.taskId })).task);
      expect([tasks.length, await stateOfFirst()]).toEqual([51, "AWAITING_APPROVAL"]);
      await db.tx((tx) =>
        tx.run(sql`update federation_crossing set task_id = replace(task_id, 'hidden ', '') where ${ofIt}`),
      );
      await eventually(async () => (await stateOfFirst()) === "CANCELED");
    });

    test("for a server of another name is refused by its audience, though the name it is sent to is the one that was signed", async () => {
      const elsewhere = { url: "http://elsewhere.example", envelope: { audience: "org_elsewhere" } };
      expect((await post(b.url, from.write(elsewhere))).reason).toBe("PEER_SIGNATURE_INVALID");
      const { body, headers } = from.write(elsewhere);
      const passedOn = { body, headers: { ...headers, host: "elsewhere.example" } };
      expect((await post(b.url, passedOn)).reason).toBe("PEER_AUDIENCE_WRONG");
    });

    test("is for one of the public names of the server, where those are set, whatever name it comes under", async () => {
      await using world = await start(dialect, { publicNames: ["beta.example", "beta.example:8443"] });
      const peer = await handMade(world);
      const sent = async (url: string, host?: string) => {
        const { body, headers } = peer.write({ url });
        return post(world.url, { body, headers: { ...headers, ...(host && { host }) } });
      };
      for (const url of ["https://Beta.example:443", "http://beta.example", "https://beta.example:8443"])
        expect((await sent(url)).status).toBe(200);
      for (const url of [world.url, "https://beta.example:8444", "https://gamma.example"]) {
        const { host } = new URL(url);
        expect((await sent(url, host)).reason).toBe("PEER_SIGNATURE_INVALID");
      }
    });

    test("counts against its peer when it is let in, and else against the address that it comes from", async () => {
      const clock = fakeClock(Date.now());
      await using world = await start(dialect, { rateLimit: 1, clock });
      const [one, other] = [await handMade(world), await handMade(world)];
      const taken = one.write();
      const first = await post(world.url, taken);
      expect([first.status, first.header.get("ratelimit-limit"), first.header.get("ratelimit-remaining")]).toEqual([
        ...[200, "10", "9"],
      ]);
      // Neither a message that was taken nor one that was changed uses up what the peer may ask.
      expect((await post(world.url, taken)).reason).toBe("PEER_MESSAGE_REPLAYED");
      const { headers } = one.write();
      for (const odd of [taken, { ...taken, headers }, one.write({ requestKey: newKey().key })]) {
        const back = await post(world.url, odd);
        expect([back.reason, back.header.get("ratelimit-limit")]).toEqual(["RATE_LIMITED", "1"]);
      }
      for (let n = 0; n < 9; n++) expect((await post(world.url, one.write())).status).toBe(200);
      const beyond = await post(world.url, one.write());
      expect([beyond.reason, beyond.status, beyond.header.get("ratelimit-remaining")]).toEqual([
        "RATE_LIMITED",
        429,
        "0",
      ]);
      expect(Number(beyond.header.get("retry-after"))).toBeGreaterThan(0);
      expect((await post(world.url, other.write())).status).toBe(200);
      clock.advance(minute);
      expect((await post(world.url, one.write())).status).toBe(200);
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
});
