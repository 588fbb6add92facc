/** Requests that cross between two organisations in both directions at once, and what storage makes of them. */

import pg from "pg";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { BudgetPeriod, BudgetScope } from "../gen/moltwire/bus/v1/budget_pb.ts";
import { BillingPeriod } from "../gen/moltwire/exchange/v1/listing_pb.ts";
import { persist } from "../src/bus/persist.ts";
import { sql } from "../src/db/db.ts";
import { openPostgres } from "../src/db/postgres.ts";
import { markSettled } from "../src/federation/gateway/crossing-store.ts";
import { type Answer, AttemptFault } from "../src/server.ts";
import { httpEndpoint, stateOf, whenEnded } from "./bus-fixtures/bus.ts";
import { httpAgent } from "./bus-fixtures/http-agent.ts";
import { pullEndpoint } from "./bus-fixtures/instance.ts";
import { asTold } from "./bus-fixtures/metered.ts";
import { freshDatabase } from "./engines.ts";
import { proofOf } from "./exchange-fixtures/ledger.ts";
import { type Market, market, walletOf } from "./exchange-fixtures/listing.ts";
import { type Across, across } from "./federation-fixtures/across.ts";
import {
  dialects,
  eventually,
  fakeClock,
  type Org,
  refusal,
  start,
  unique,
  untilTaken,
  type World,
} from "./harness.ts";

const total = { scope: BudgetScope.ORG, period: BudgetPeriod.TOTAL };
const rounds = 5;
const atOnce = 20;
const buysAtOnce = 4;
/** For a machine that is ten times slower than it should be. */
const patientMs = 600_000;

/** How many deadlocks the engine has broken up in a database to which no connection is open any more: an open one may not have told of its own yet. */
async function deadlocksIn(url: string): Promise<number> {
  const db = await openPostgres(url);
  try {
    const row = await db.query.one<{ deadlocks: number }>(
      sql`select deadlocks from pg_stat_database where datname = current_database()`,
    );
    return row!.deadlocks;
  } finally {
    await db.close();
  }
}

/** A connection of its own, in a transaction. */
async function outside(url: string) {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  await client.query("begin");
  return { client, [Symbol.asyncDispose]: () => client.end() };
}

describe.each(dialects)("%s", (dialect) => {
  let world: World;
  let database: Awaited<ReturnType<typeof freshDatabase>> | undefined;
  beforeAll(async () => {
    database = dialect === "postgres" ? await freshDatabase() : undefined;
    world = await start(dialect, { ...(database && { databaseUrl: database.url }) });
  });
  afterAll(async () => {
    await world[Symbol.asyncDispose]();
    await database?.drop();
  });

  // Those of SQLite run one after another.
  test.runIf(dialect === "postgres")(
    "a transaction that ends a task outlasts that storage gives up on it",
    async () => {
      let runs = 0;
      const ended = await persist(world.server.app, async (tx) => {
        // As often as the engine's own seam tries it.
        if (++runs <= 8) await tx.script("do $$ begin raise exception 'a circle' using errcode = '40P01'; end $$");
        return tx.one<{ n: number }>(sql`select 1 as n`);
      });
      expect([ended, runs]).toEqual([{ n: 1 }, 9]);
    },
  );

  test("what an organisation's own budgets keep at home opens no trace with the other", async () => {
    const at = await across(world, { contract: { estimatedTokens: 60n } });
    await at.asking.admin.budgets.setBudget({ ...total, limitTokens: 50n });
    const { reason, metadata } = await refusal(at.go());
    expect(reason).toBe("BUDGET_EXCEEDED");
    const there = at.doing.admin.traces;
    expect((await refusal(there.getTrace({ traceId: metadata.trace_id! }))).reason).toBe("NOT_FOUND");
    expect((await there.listTraces({})).traces).toEqual([]);
    await at.asking.admin.budgets.setBudget({ ...total, limitTokens: 100n });
    const { taskId } = await at.go({ returnImmediately: true });
    expect(stateOf(await whenEnded(at.asker.as, taskId))).toBe("COMPLETED");
    await eventually(async () => (await there.listTraces({})).traces.length === 1);
  });

  describe.runIf(dialect === "postgres")("the end of what is open under a grant", () => {
    test("does not wait for a task that another transaction holds", async () => {
      const at = await across(world, { agent: { endpoint: pullEndpoint } });
      const taskIds: string[] = [];
      for (let n = 0; n < 5; n++) taskIds.push((await at.go({ returnImmediately: true })).taskId);
      const [first, ...others] = taskIds;
      await using holder = await outside(database!.url);
      const lock = "select 1 from task where org_id = $1 and task_id = $2 for update";
      await holder.client.query(lock, [at.doing.orgId, first]);
      await at.doing.admin.grants.revokeGrant({ grantId: at.grantId });
      for (const taskId of others)
        await eventually(async () => stateOf((await at.asker.as.bus.getTask({ taskId })).task) === "REJECTED");
      expect(stateOf((await at.asker.as.bus.getTask({ taskId: first! })).task)).toBe("SUBMITTED");
      await holder.client.query("rollback");
      expect(stateOf(await whenEnded(at.asker.as, first!))).toBe("REJECTED");
    });

    test("is not taken for done while a request is let in", async () => {
      const fresh = await freshDatabase();
      onTestFinished(() => fresh.drop());
      await using still = await start(dialect, { databaseUrl: fresh.url, clock: fakeClock(Date.now()) });
      const at = await across(still, { agent: { endpoint: pullEndpoint } });
      await at.go({ returnImmediately: true });
      await at.doing.admin.grants.suspendGrant({ grantId: at.grantId });
      const grant = { org_id: at.doing.orgId, grant_id: at.grantId };
      const { db } = still.server.app;
      await using letsIn = await outside(fresh.url);
      // The request is let in last, with the grant locked, as one is; it is the only one that is open.
      await db.tx((tx) => tx.run(sql`update federation_crossing set is_open = 0 where org_id = ${grant.org_id}`));
      await letsIn.client.query("select 1 from federation_grant where grant_id = $1 for update", [grant.grant_id]);
      await letsIn.client.query("update federation_crossing set is_open = 1 where org_id = $1", [grant.org_id]);
      const marking = db.tx((tx) => markSettled(tx, grant));
      const waits = sql`select 1 as found from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`;
      await eventually(async () => (await db.query.one(waits)) !== undefined);
      await letsIn.client.query("commit");
      await marking;
      const marked = sql`select unsettled from federation_grant where grant_id = ${grant.grant_id}`;
      expect(await db.query.one(marked)).toEqual({ unsettled: 1 });
    });
  });

  describe.runIf(dialect === "postgres")(
    "a request for a listing that waits for one of its rows has none of those that come later",
    () => {
      /** In the order of `lock-order.ts`. */
      const places = [
        "budget",
        "other budget",
        "grant",
        "use of the grant",
        "cost",
        "free requests",
        "day",
        "wallet",
      ] as const;
      type Place = (typeof places)[number];

      test.each<[string, { pays: boolean; works: boolean }, { buying: Place[]; ending: Place[] }]>([
        [
          "one that is paid",
          { pays: true, works: true },
          {
            buying: ["budget", "other budget", "grant", "use of the grant", "wallet"],
            ending: ["budget", "other budget", "use of the grant", "cost", "day", "wallet"],
          },
        ],
        [
          "one that is not paid, since it fails",
          { pays: true, works: false },
          { buying: [], ending: ["budget", "other budget", "use of the grant", "cost", "day", "wallet"] },
        ],
        [
          "a free one that fails",
          { pays: false, works: false },
          {
            buying: ["budget", "other budget", "grant", "use of the grant", "free requests"],
            ending: ["budget", "other budget", "use of the grant", "cost", "free requests", "day"],
          },
        ],
      ])(
        "%s",
        async (_, { pays, works }, { buying, ending }) => {
          const fresh = await freshDatabase();
          onTestFinished(() => fresh.drop());
          const attempts: { readonly ends: (works: boolean) => void }[] = [];
          const adapters = {
            scripted: () =>
              new Promise<Answer>((resolve, reject) => {
                const ends = (does: boolean) =>
                  does
                    ? resolve({ output: null, usage: { inputTokens: 3, outputTokens: 4, model: "m" } })
                    : reject(new AttemptFault("ADAPTER_ERROR", "failed", "it broke"));
                attempts.push({ ends });
              }),
          };
          // Nothing else is done meanwhile: its clock stands still.
          await using still = await start(dialect, { databaseUrl: fresh.url, clock: fakeClock(Date.now()), adapters });
          // Or the server waits for what is under way when the test fails.
          using _underWay = {
            [Symbol.dispose]() {
              for (const attempt of attempts) attempt.ends(false);
            },
          };
          const endpoint = { kind: { case: "custom", value: { adapter: "scripted", config: {} } } } as const;
          const free = { requests: 1_000, period: BillingPeriod.DAY };
          const { seller, buyer, buy, listing } = await market(still, {
            agent: { endpoint, breaker: { disabled: true } },
            contract: { estimatedTokens: 5n },
            offer: { pricing: { requestMicros: 10_000n, ...(!pays && { freeTier: free }) } },
          });
          for (const org of [seller, buyer]) await org.admin.budgets.setBudget({ ...total, limitTokens: 1_000_000n });
          const [first, second] = [seller.orgId, buyer.orgId].toSorted();
          const rows: Record<Place, [string, string]> = {
            budget: ["budget_use where org_id = $1", first!],
            "other budget": ["budget_use where org_id = $1", second!],
            grant: ["federation_grant where org_id = $1", seller.orgId],
            "use of the grant": ["federation_grant_usage where org_id = $1", seller.orgId],
            cost: ["agent_cost where org_id = $1", seller.orgId],
            "free requests": ["exchange_free_use where org_id = $1", buyer.orgId],
            day: ["exchange_day where listing_id = $1", listing.listingId],
            wallet: ["ledger_account where org_id = $1 and account_id = 'wallet'", buyer.orgId],
          };
          const lock = async ({ client }: { readonly client: pg.Client }, place: Place, how = ""): Promise<number> => {
            const [where, id] = rows[place];
            return (await client.query(`select 1 from ${where} for update ${how}`, [id])).rowCount!;
          };
          const waits = sql`select 1 as found from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`;
          const isWaiting = async () => (await still.server.app.db.query.one(waits)) !== undefined;
          /** Does it while the rows of a place are another's. */
          const heldUp = async (place: Place, act: () => Promise<void>) => {
            await using holder = await outside(fresh.url);
            expect([place, await lock(holder, place)]).toEqual([place, 1]);
            const acting = act();
            acting.catch(() => {});
            await eventually(isWaiting).catch(() => {
              throw new Error(`nothing waits for ${place}`);
            });
            await using looker = await outside(fresh.url);
            const taken: string[] = [];
            for (const later of places.slice(places.indexOf(place) + 1))
              if ((await lock(looker, later, "skip locked")) < there.get(later)!) taken.push(later);
            await looker.client.query("rollback");
            await holder.client.query("rollback");
            await acting;
            expect([place, taken]).toEqual([place, []]);
          };
          const asked: string[] = [];
          const ask = async () => {
            asked.push((await buy({ returnImmediately: true })).taskId);
            await eventually(() => attempts.length === asked.length);
          };
          const end = async () => {
            attempts.at(-1)!.ends(works);
            expect(stateOf(await whenEnded(buyer.admin, asked.at(-1)!))).toBe(works ? "COMPLETED" : "FAILED");
          };
          // So that all the rows are there.
          await ask();
          await end();
          await using counter = await outside(fresh.url);
          const there = new Map<Place, number>();
          for (const place of places) there.set(place, await lock(counter, place));
          await counter.client.query("rollback");
          for (const place of buying) {
            await heldUp(place, ask);
            await end();
          }
          for (const place of ending) {
            await ask();
            await heldUp(place, end);
          }
          expect((await proofOf(still.operator)).faults).toEqual([]);
        },
        patientMs,
      );
    },
  );

  // Last, since it stops the server.
  test(
    "many at once in both directions, within one trace and without, wait for one another and never in a circle",
    async () => {
      await using agent = await httpAgent(asTold);
      const [one, other] = [await world.org(), await world.org()];
      const init = { contract: { estimatedTokens: 40n }, agent: { endpoint: httpEndpoint(agent.url) } };
      const ways = [
        await across(world, { ...init, doing: one, asking: other }),
        await across(world, { ...init, doing: other, asking: one }),
      ];
      const limitTokens = 1_000_000n;
      for (const org of [one, other]) await org.admin.budgets.setBudget({ ...total, limitTokens });
      // And each buys of the other, which pays at the end.
      const price = 3_000n;
      const endpoint = httpEndpoint(agent.url);
      const sale = { agent: { endpoint }, offer: { pricing: { requestMicros: price } } };
      const sales = [
        await market(world, { ...sale, seller: one, buyer: other }),
        await market(world, { ...sale, seller: other, buyer: one }),
      ];
      const wish = { input: { usage: { inputTokens: 20, outputTokens: 10 } } };
      // Asked for once, though it may be asked again when the server had no room.
      const once = (traceId: string) => ({
        headers: { traceparent: `00-${traceId}-${"b".repeat(16)}-00`, "idempotency-key": unique("ask") },
      });
      const buys = async ({ buy }: Market, traceId: string): Promise<string> => {
        const options = once(traceId);
        return stateOf(await untilTaken(() => buy(wish, options)));
      };
      const goes = async ({ go }: Across, traceId: string): Promise<string> => {
        const options = once(traceId);
        return stateOf(await untilTaken(() => go(wish, options)));
      };
      for (let round = 0; round < rounds; round++) {
        const traceOf = (n: number) => (n % 2 === 0 ? round : round * 1_000 + n + 1_000).toString(16).padStart(32, "a");
        const states = await Promise.all(
          Array.from({ length: atOnce }, (_, n) => [
            ...ways.map((at) => goes(at, traceOf(n))),
            ...(n < buysAtOnce ? sales.map((at) => buys(at, traceOf(n))) : []),
          ]).flat(),
        );
        expect(states).toEqual(states.map(() => "COMPLETED"));
      }
      const standing = async (org: Org) => (await org.admin.budgets.getBudget(total)).budget!.tokens;
      const spent = BigInt(2 * rounds * (atOnce + buysAtOnce) * 30);
      // In each count what it asked for and what it did.
      for (const org of [one, other]) expect(await standing(org)).toMatchObject({ spent, reserved: 0n });
      // As much was bought in one direction as in the other, so that only the fees are gone.
      const fees = BigInt(rounds * buysAtOnce) * (price / 10n);
      for (const org of [one, other]) expect(await walletOf(org)).toEqual([1_000_000_000n - fees, 0n]);
      expect((await proofOf(world.operator)).faults).toEqual([]);
      await world.server.close();
      if (database) expect(await deadlocksIn(database.url)).toBe(0);
    },
    patientMs,
  );
});
