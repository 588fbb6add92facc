/** Two servers on one PostgreSQL database: what one of them counts, changes or is told, holds at the other. */
import { ConnectError } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { contract, echoEndpoint, submit } from "./bus-fixtures/bus.ts";
import { storage } from "./bus-fixtures/storage.ts";
import { type Clients, dialects, fakeClock, type Org, refusal, start, unique, type World } from "./harness.ts";
import { listen, messagesOf, says, tell, toAgent } from "./relay-fixtures/relay.ts";

const minuteMs = 60_000;
const limit = 48;
/** A twelfth of it. */
const doorLimit = 4;

describe.runIf(dialects.includes("postgres"))("two servers on one PostgreSQL database", () => {
  const clock = fakeClock(Date.now());
  let place: Awaited<ReturnType<typeof storage>>;
  let here: World;
  let there: World;
  let org: Org;
  beforeAll(async () => {
    place = await storage("postgres");
    here = await start("postgres", { ...place.options, clock, rateLimit: limit });
    there = await start("postgres", { ...place.options, clock, rateLimit: limit });
    org = await here.org();
  });
  afterAll(async () => {
    await there?.[Symbol.asyncDispose]();
    await here?.[Symbol.asyncDispose]();
    await place[Symbol.asyncDispose]();
  });

  /** How many of so many calls, by turns at both, are let in; the others are refused for their number. */
  async function letIn(count: number, call: (at: World) => Promise<unknown>, atOnce: boolean): Promise<number> {
    let allowed = 0;
    const one = async (n: number) => {
      try {
        await call([here, there][n % 2]!);
        allowed++;
      } catch (error) {
        expect((await refusal(Promise.reject(error))).reason).toBe("RATE_LIMITED");
      }
    };
    if (atOnce) await Promise.all(Array.from({ length: count }, (_, n) => one(n)));
    else for (let n = 0; n < count; n++) await one(n);
    return allowed;
  }

  test.each([false, true])(
    "an agent's requests are counted together, as are those of a key with a limit of its own (all at once: %s)",
    async (atOnce) => {
      const agent = await org.agent();
      const list = (key: string) => (at: World) => at.as(key).agents.listAgents({});
      const allowed = await letIn(2 * limit, list(agent.key), atOnce);
      if (!atOnce) expect(allowed).toBe(limit);
      expect(allowed).toBeLessThanOrEqual(limit);
      expect(allowed).toBeGreaterThan(limit / 2);
      const { secret } = await org.admin.keys.createApiKey({ requestsPerMinute: 12 });
      const ofKey = await letIn(24, list(secret), atOnce);
      expect(ofKey).toBeLessThanOrEqual(12);
      expect(ofKey).toBeGreaterThan(6);
      // And are free again; what one has left over in the meantime it gives back.
      clock.advance(2 * minuteMs);
      await list(agent.key)(there);
    },
  );

  test("whoever knocks at an open door is counted at both", async () => {
    clock.advance(minuteMs);
    const knock = (at: World) =>
      at.as(undefined).contacts.submitContact({ email: "a@example.com", message: unique("hello") });
    expect(await letIn(3 * doorLimit, knock, false)).toBe(doorLimit);
    clock.advance(minuteMs);
    await knock(there);
  });

  test("what is changed at one holds for the next request at the other, and ends its streams", async () => {
    const contractId = await contract(org);
    const { agent } = await org.admin.agents.registerAgent({
      ...{ name: unique("worker"), capabilities: [contractId], endpoint: echoEndpoint },
    });
    const asker = await org.agent();
    const thereAs = there.as(asker.key);
    const asks = (by: Clients = thereAs) => submit(by, contractId);
    const refused = async () => (await refusal(asks())).reason;
    await asks();
    const admin = there.as(org.adminKey);
    // Each is changed at one server, with what the other has at hand of it warm.
    await org.admin.policies.putPolicy({
      policyId: "none",
      cedarText: `forbid (principal, action == Action::"invoke", resource);`,
    });
    expect(await refused()).toBe("POLICY_DENIED");
    await admin.policies.deletePolicy({ policyId: "none" });
    await asks(asker.as);
    const change = (disabled: boolean) =>
      org.admin.agents.updateAgent({
        ...{ agentId: agent!.agentId, change: { disabled }, updateMask: { paths: ["disabled"] } },
      });
    await change(true);
    expect(await refused()).toBe("NO_CAPABLE_AGENT");
    await change(false);
    await asks();
    await org.admin.contracts.deprecateContract({ contractId, version: "1.0.0" });
    expect(await refused()).toMatch(/^CONTRACT_/);
    await using stream = listen(thereAs);
    await tell(asker.as, toAgent(asker.agentId), "hello");
    await stream.until((seen) => messagesOf(seen).length === 1);
    const { apiKeys } = await org.admin.keys.listApiKeys({});
    const own = apiKeys.find(({ agentId }) => agentId === asker.agentId)!;
    await org.admin.keys.revokeApiKey({ keyId: own.keyId });
    expect((await refusal(thereAs.agents.listAgents({}))).reason).toBe("KEY_REVOKED");
    const end = await stream.over;
    expect((await refusal(Promise.reject(ConnectError.from(end)))).reason).toBe("KEY_REVOKED");
  });

  test("a message that one takes is read once by the other, for however many of its streams", async () => {
    const [sender, reader] = [await org.agent(), await org.agent()];
    const { query } = there.server.app.db;
    const { all } = query;
    // Reads that find nothing come from the poll behind the bells, and cost no message.
    const found: number[] = [];
    const counted = async (q: Parameters<typeof all>[0]) => {
      const rows = await all<{ sequence?: number | null }>(q);
      if (q.sql.includes("summed")) found.push(...rows.flatMap(({ sequence }) => sequence ?? []));
      return rows;
    };
    const messages = Array.from({ length: 30 }, (_, n) => n + 1);
    const streams = Array.from({ length: 20 }, () => listen(there.as(reader.key)));
    for (const stream of streams) await stream.until((seen) => seen.length > 0);
    Object.assign(query, { all: counted });
    try {
      for (const n of messages) await tell(sender.as, toAgent(reader.agentId), n);
      for (const stream of streams) {
        await stream.until((seen) => messagesOf(seen).length === messages.length);
        expect(messagesOf(stream.seen).map(says)).toEqual(messages);
      }
      expect(found).toEqual(messages);
    } finally {
      Object.assign(query, { all });
      await Promise.all(streams.map((stream) => stream[Symbol.asyncDispose]()));
    }
  });

  test("what one had left over is back when it stops", async () => {
    const agent = await org.agent();
    clock.advance(2 * minuteMs);
    const third = await start("postgres", { ...place.options, clock, rateLimit: limit });
    for (let n = 0; n < 9; n++) await third.as(agent.key).agents.listAgents({});
    await third[Symbol.asyncDispose]();
    expect(await letIn(2 * limit, (at) => at.as(agent.key).agents.listAgents({}), false)).toBe(limit - 9);
  });
});
