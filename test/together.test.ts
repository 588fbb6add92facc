/** What is read or counted together belongs together, whatever others commit in between: PostgreSQL shows each statement what is committed by then. */
import pg from "pg";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { BudgetPeriod, BudgetScope } from "../gen/moltwire/bus/v1/budget_pb.ts";
import { PolicyOrigin } from "../gen/moltwire/bus/v1/policy_pb.ts";
import { PeerState } from "../gen/moltwire/federation/v1/peer_pb.ts";
import { type Queryable, type Sql, sql } from "../src/db/db.ts";
import { contract, echoEndpoint, stateOf, submit } from "./bus-fixtures/bus.ts";
import { httpAgent } from "./bus-fixtures/http-agent.ts";
import { asTold, metered, use } from "./bus-fixtures/metered.ts";
import { freshDatabase } from "./engines.ts";
import { granted } from "./federation-fixtures/across.ts";
import { handMade } from "./federation-fixtures/hand-made.ts";
import { dialects, eventually, fakeClock, start, unique, type World } from "./harness.ts";

const dayMs = 24 * 3_600_000;
const total = { scope: BudgetScope.ORG, period: BudgetPeriod.TOTAL };

describe.each(dialects)("%s", (dialect) => {
  let world: World;
  let database: Awaited<ReturnType<typeof freshDatabase>> | undefined;
  const clock = fakeClock(Date.now());
  beforeAll(async () => {
    database = dialect === "postgres" ? await freshDatabase() : undefined;
    world = await start(dialect, { clock, ...(database && { databaseUrl: database.url }) });
  });
  afterAll(async () => {
    await world[Symbol.asyncDispose]();
    await database?.drop();
  });

  /** What a call answers when something is done right after the server has read by the first statement that has these words and this value, before it reads on. */
  async function between<T>(
    words: string,
    value: string,
    act: () => Promise<unknown>,
    call: () => Promise<T>,
  ): Promise<T> {
    const query = world.server.app.db.query as { -readonly [K in "one" | "all"]: Queryable[K] };
    const before = { one: query.one, all: query.all };
    let isDone = false;
    const then = async <Found>(found: Found, q: Sql): Promise<Found> => {
      if (isDone || !q.sql.includes(words) || !q.values.includes(value)) return found;
      isDone = true;
      await act();
      return found;
    };
    query.one = async <Row>(q: Sql) => then((await before.one.call(query, q)) as Row | undefined, q);
    query.all = async <Row>(q: Sql) => then((await before.all.call(query, q)) as Row[], q);
    try {
      const answer = await call();
      expect(isDone).toBe(true);
      return answer;
    } finally {
      Object.assign(query, before);
    }
  }

  describe("a read", () => {
    test("of a grant tells the revisions that it has, and none that came since", async () => {
      const [from, to] = [await world.org(), await world.org()];
      const grantId = await granted(from, to, await contract(from));
      const { admin } = from;
      const { grant, revisions } = await between(
        ...(["from federation_grant where", grantId] as const),
        () => admin.grants.suspendGrant({ grantId }),
        () => admin.grants.getGrant({ grantId }),
      );
      expect([grant!.revision, revisions[0]!.revision, revisions.length]).toEqual([2n, 2n, 2]);
      expect((await admin.grants.getGrant({ grantId })).revisions).toHaveLength(3);
    });

    test("of policies tells the revision of the set that it shows", async () => {
      const { admin, orgId } = await world.org();
      const put = (policyId: string) =>
        admin.policies.putPolicy({ policyId, cedarText: "permit (principal, action, resource);" });
      await put("one");
      const { policies, policySetRevision } = await between(
        ...(["from policy where", orgId] as const),
        () => put("two"),
        () => admin.policies.listPolicies({ origin: PolicyOrigin.ORGANIZATION }),
      );
      expect([policies.length, policySetRevision]).toEqual([1, 1n]);
    });

    test("of a budget holds its limit against what was used of that", async () => {
      await using agent = await httpAgent(asTold);
      const org = await world.org();
      const { admin, orgId } = org;
      const { contractId } = await metered(org, agent, 40);
      await admin.budgets.setBudget({ ...total, limitTokens: 50n });
      const more = async () => {
        await admin.budgets.setBudget({ ...total, limitTokens: 5_000n });
        for (let n = 0; n < 2; n++) await use(admin, contractId, { inputTokens: 40 });
      };
      const read = () => admin.budgets.getBudget(total);
      const { budget } = await between("from budget b", orgId, more, read);
      const { limit = 0n, spent, reserved } = budget!.tokens!;
      expect(spent + reserved).toBeLessThanOrEqual(limit);
    });

    test("of peers tells of each the keys that it has", async () => {
      const peer = await handMade(world);
      const { peers } = await between(
        ...(["from federation_peer p where p.peer_id >", ""] as const),
        () => world.operator.peers.removePeer({ peerId: peer.peerId }),
        () => world.operator.peers.listPeers({}),
      );
      expect(peers.map(({ state, keys }) => [state, keys.length])).toEqual([[PeerState.ACTIVE, 1]]);
    });
  });

  test("an approval that cannot be ended in its time keeps no other waiting", async () => {
    const org = await world.org();
    const contractId = await contract(org, { approvalRequired: true });
    await org.agent({ capabilities: [contractId], endpoint: echoEndpoint });
    const ids: string[] = [];
    for (let n = 0; n < 2; n++) ids.push((await submit(org.admin, contractId)).taskId);
    const [first, second] = ids as [string, string];
    // As if it had come from another organisation, of which nothing is there.
    const { db } = world.server.app;
    const turn = (origin: string) =>
      db.tx((tx) => tx.run(sql`update task set origin = ${origin} where org_id = ${org.orgId} and task_id = ${first}`));
    await turn("gateway");
    const ended = (taskId: string) =>
      eventually(async () => {
        clock.advance(5_000);
        return stateOf((await org.admin.bus.getTask({ taskId })).task) === "REJECTED";
      });
    clock.advance(dayMs);
    await ended(second);
    await turn("bus");
    await ended(first);
  });

  // SQLite has one writer.
  describe.runIf(dialect === "postgres")("a change waits for another", () => {
    const waiting = async (many: number) => {
      const locked = sql`select 1 as one from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`;
      await eventually(async () => (await world.server.app.db.query.all(locked)).length >= many);
    };
    async function outside() {
      const client = new pg.Client({ connectionString: database!.url });
      await client.connect();
      await client.query("begin");
      return { client, [Symbol.asyncDispose]: () => client.end() };
    }

    test("of the agent of a peer, when the peer is removed, and undoes nothing of it", async () => {
      const peer = await handMade(world);
      await using other = await outside();
      await other.client.query("update agent set description = 'kept' where agent_id = $1", [peer.agentId]);
      const removing = world.operator.peers.removePeer({ peerId: peer.peerId });
      await waiting(1);
      await other.client.query("commit");
      await removing;
      const { agent } = await world.operator.agents.getAgent({ orgId: peer.orgId, agentId: peer.agentId });
      expect([agent!.description, agent!.disabled]).toEqual(["kept", true]);
    });

    test("that is counted with it: keys, budgets and contracts of an organisation", async () => {
      const { admin, orgId } = await world.org();
      const { apiKey } = await admin.keys.createApiKey({});
      await using other = await outside();
      await other.client.query("select 1 from organization where org_id = $1 for update", [orgId]);
      const changes = Promise.all([
        admin.keys.createApiKey({}),
        admin.keys.rotateApiKey({ keyId: apiKey!.keyId }),
        admin.budgets.setBudget({ ...total, limitTokens: 5n }),
        admin.contracts.registerContract({ contractId: unique("c"), version: "1.0.0" }),
      ]);
      await waiting(4);
      await other.client.query("commit");
      await changes;
    });
  });
});
