import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TransactionKind, TransactionStep } from "../gen/moltwire/exchange/v1/ledger_pb.ts";
import { type Db, sql, type Tx } from "../src/db/db.ts";
import { Fault } from "../src/errors.ts";
import {
  type Account,
  agentWallet,
  escrowOf,
  feesOf,
  issuanceOf,
  mostHeld,
  walletOf,
} from "../src/exchange/ledger/account.ts";
import { expireReserves } from "../src/exchange/ledger/expire.ts";
import { postTransfers } from "../src/exchange/ledger/post.ts";
import { reserve, settle, voidReserve } from "../src/exchange/ledger/reserve.ts";
import { readStanding } from "../src/exchange/ledger/store.ts";
import type { TransferRef, Wish } from "../src/exchange/ledger/transfer.ts";
import { post, proofOf } from "./exchange-fixtures/ledger.ts";
import { dialects, eventually, fakeClock, start, unique, type World } from "./harness.ts";

const kind = TransactionKind.TRANSFER;

const move = (transferId: string, from: Account, to: Account, amount: bigint): Wish => ({
  ...{ does: "move", transferId, kind, from, to, amount },
});

const reasonOf = async (call: Promise<unknown>): Promise<string> =>
  call.then(
    () => "none",
    (error: unknown) => (error instanceof Fault ? error.reason : Promise.reject(error)),
  );

describe.each(dialects)("%s", (dialect) => {
  const clock = fakeClock();
  let world: World;
  let db: Db;
  let issuance: Account;
  beforeAll(async () => {
    world = await start(dialect, { clock });
    ({ db } = world.server.app);
    issuance = issuanceOf(world.server.homeOrgId);
  });
  afterAll(() => world[Symbol.asyncDispose]());

  /** An organisation of the ledger alone, with some micro-credits. */
  async function rich(amount: bigint): Promise<{ orgId: string; wallet: Account }> {
    const orgId = unique("org_");
    const wallet = walletOf(orgId);
    await post(db, [move(`${orgId}/rich`, issuance, wallet, amount)], 0);
    return { orgId, wallet };
  }
  const standing = async (account: Account, now = 0) => {
    const { balance, reserved, lapsed } = (await readStanding(db.query, account, now)) ?? {
      balance: 0n,
      reserved: 0n,
      lapsed: 0n,
    };
    return [balance, reserved - lapsed];
  };

  test("a chain posts together or not at all", async () => {
    const { orgId, wallet } = await rich(100n);
    const [one, other] = [agentWallet(orgId, "agt_1"), agentWallet(orgId, "agt_2")];
    const chain = (third: bigint) => [
      move("c/1", wallet, one, 60n),
      move("c/2", one, other, 50n),
      move("c/3", other, wallet, third),
    ];
    expect(await reasonOf(post(db, chain(51n), 1))).toBe("INSUFFICIENT_CREDITS");
    expect(await Promise.all([wallet, one, other].map((of) => standing(of)))).toEqual([
      [100n, 0n],
      [0n, 0n],
      [0n, 0n],
    ]);
    const written = await post(db, chain(50n), 1);
    expect(written.map(({ chainId }) => chainId)).toEqual(["c/1", "c/1", "c/1"]);
    expect(await Promise.all([wallet, one, other].map((of) => standing(of)))).toEqual([
      [90n, 0n],
      [10n, 0n],
      [0n, 0n],
    ]);
  });

  test("the same id and content again has one effect, other content under it none", async () => {
    const { orgId, wallet } = await rich(100n);
    const to = agentWallet(orgId, "agt_1");
    const chain = [move("x", wallet, to, 5n), move("y", wallet, to, 6n)];
    const first = await post(db, chain, 1);
    expect(await post(db, chain, 2)).toEqual(first);
    const others = [
      [move("x", wallet, to, 5n)],
      [move("x", wallet, to, 4n), chain[1]!],
      [chain[0]!, move("z", wallet, to, 6n)],
      [move("x", to, wallet, 5n), chain[1]!],
    ];
    for (const other of others) expect(await reasonOf(post(db, other, 3))).toBe("IDEMPOTENCY_KEY_REUSED");
    expect(await standing(wallet)).toEqual([89n, 0n]);
  });
  test("what is set aside is paid in part and the rest released, once; or released, once", async () => {
    const { orgId, wallet } = await rich(100n);
    const to = escrowOf(orgId, "mkt_1");
    const set = (transferId: string, amount: bigint) =>
      db.tx((tx) => reserve(tx, { transferId, kind, from: wallet, to, amount }, 1));
    await set("r1", 70n);
    expect(await standing(wallet)).toEqual([100n, 70n]);
    expect(await standing(to)).toEqual([0n, 0n]);
    expect(await reasonOf(set("r2", 31n))).toBe("INSUFFICIENT_CREDITS");
    expect(await reasonOf(post(db, [move("m", wallet, to, 31n)], 1))).toBe("INSUFFICIENT_CREDITS");
    const [r1, r3] = ["r1", "r3"].map((transferId) => ({ orgId, transferId })) as [TransferRef, TransferRef];
    expect(await reasonOf(db.tx((tx) => settle(tx, r1, 71n, 2)))).toBe("INVALID_REQUEST");
    const settled = await db.tx((tx) => settle(tx, r1, 45n, 2));
    expect(settled).toMatchObject({ step: TransactionStep.SETTLED, amount: 45n, pendingAmount: 70n });
    expect([await standing(wallet), await standing(to)]).toEqual([
      [55n, 0n],
      [45n, 0n],
    ]);
    expect(await db.tx((tx) => settle(tx, r1, 45n, 3))).toEqual(settled);
    expect(await reasonOf(db.tx((tx) => settle(tx, r1, 44n, 3)))).toBe("IDEMPOTENCY_KEY_REUSED");
    await expect(db.tx((tx) => voidReserve(tx, r1, 3))).rejects.toMatchObject({
      reason: "FAILED_PRECONDITION",
      metadata: { state: "SETTLED" },
    });
    await set("r3", 55n);
    await db.tx((tx) => voidReserve(tx, r3, 4));
    await db.tx((tx) => voidReserve(tx, r3, 5));
    await expect(db.tx((tx) => settle(tx, r3, 1n, 5))).rejects.toMatchObject({ metadata: { state: "VOIDED" } });
    expect(await reasonOf(db.tx((tx) => settle(tx, { orgId, transferId: "none" }, 1n, 5)))).toBe("NOT_FOUND");
    expect(await standing(wallet)).toEqual([55n, 0n]);
    expect((await proofOf(world.operator)).faults).toEqual([]);
  });

  test("a reserve counts until its time, to the millisecond, whether it was written down or not", async () => {
    const { orgId, wallet } = await rich(100n);
    const to = agentWallet(orgId, "agt_1");
    const now = clock.now();
    const refs = ["e1", "e2", "e3"].map((transferId) => ({ orgId, transferId }));
    for (const { transferId } of refs)
      await db.tx((tx) => reserve(tx, { transferId, kind, from: wallet, to, amount: 30n, timeoutMs: 1_000 }, now));
    expect(await standing(wallet, now + 999)).toEqual([100n, 90n]);
    expect(await standing(wallet, now + 1_000)).toEqual([100n, 0n]);
    expect(await reasonOf(post(db, [move("p", wallet, to, 20n)], now + 999))).toBe("INSUFFICIENT_CREDITS");
    // It needs what has lapsed, and takes it.
    await post(db, [move("q", wallet, to, 20n)], now + 1_000);
    await expect(db.tx((tx) => settle(tx, refs[0]!, 1n, now + 1_000))).rejects.toMatchObject({
      metadata: { state: "EXPIRED" },
    });
    const { wallet: idle, orgId: idleOrg } = await rich(10n);
    await db.tx((tx) => reserve(tx, { transferId: "e4", kind, from: idle, to, amount: 10n, timeoutMs: 1_000 }, now));
    const left = () => db.query.all(sql`select transfer_id from ledger_hold where org_id = ${idleOrg}`);
    await expireReserves(world.server.app);
    expect(await left()).toEqual([{ transfer_id: "e4" }]);
    expect(
      await reasonOf(
        post(db, [{ does: "expire", transferId: "e4/expired", of: { orgId: idleOrg, transferId: "e4" } }], now + 999),
      ),
    ).toBe("FAILED_PRECONDITION");
    clock.advance(1_000);
    await eventually(async () => {
      await expireReserves(world.server.app);
      return (await left()).length === 0;
    });
    expect(await standing(idle)).toEqual([10n, 0n]);
    expect((await proofOf(world.operator)).faults).toEqual([]);
  });

  test("a transfer is undone by another one, once, and stays as it was", async () => {
    const { orgId, wallet } = await rich(100n);
    const fees = feesOf(world.server.homeOrgId);
    const [paid] = await post(db, [move("sold", wallet, fees, 40n)], 1);
    const undo = (transferId: string) =>
      post(db, [{ does: "reverse", transferId, of: { orgId, transferId: "sold" } }], 2);
    const [undone] = await undo("undo");
    expect(undone).toMatchObject({
      orgId: world.server.homeOrgId,
      reversesId: "sold",
      amount: 40n,
      kind: TransactionKind.REVERSAL,
    });
    expect(await undo("undo")).toEqual([undone]);
    expect(await reasonOf(undo("undo-again"))).toBe("FAILED_PRECONDITION");
    expect(await standing(wallet)).toEqual([100n, 0n]);
    expect(await post(db, [move("sold", wallet, fees, 40n)], 3)).toEqual([paid]);
  });

  test("what the platform earned is paid out whole, in whichever rows it lies, and not more", async () => {
    const { wallet } = await rich(1_000n);
    const fees = feesOf(world.server.homeOrgId);
    for (let n = 0; n < 40; n++) await post(db, [move(unique("sold"), wallet, fees, 3n)], 1);
    const rows = await db.query.all(sql`select shard from ledger_account where account_id = 'fees' and balance > 0`);
    expect(rows.length).toBeGreaterThan(8);
    const [earned] = await standing(fees);
    expect(await reasonOf(post(db, [move(unique("payout"), fees, wallet, earned! + 1n)], 2))).toBe(
      "INSUFFICIENT_CREDITS",
    );
    const half = earned! / 2n;
    const payouts = [half, half, half].map((amount) =>
      reasonOf(post(db, [move(unique("payout"), fees, wallet, amount)], 2)),
    );
    expect((await Promise.all(payouts)).toSorted()).toEqual(["INSUFFICIENT_CREDITS", "none", "none"]);
    await post(
      db,
      [move(unique("sold"), wallet, fees, 5n), move(unique("payout"), fees, wallet, 5n + (earned! - 2n * half))],
      3,
    );
    expect(await standing(fees)).toEqual([0n, 0n]);
    expect((await proofOf(world.operator)).faults).toEqual([]);
  });

  test("a fee is given back that was settled, and one whose row was paid out since", async () => {
    const { orgId, wallet } = await rich(1_000n);
    const fees = feesOf(world.server.homeOrgId);
    for (let n = 0; n < 8; n++) {
      const of = { orgId, transferId: `price-${n}` };
      await db.tx((tx) => reserve(tx, { ...of, kind, from: wallet, to: fees, amount: 10n }, 1));
      const { transferId } = await db.tx((tx) => settle(tx, of, 7n, 2));
      await post(db, [{ does: "reverse", transferId: `back-${n}`, of: { orgId, transferId } }], 3);
    }
    expect(await standing(wallet)).toEqual([1_000n, 0n]);
    await post(db, [move("fee-1", wallet, fees, 9n)], 4);
    await post(db, [move("fee-2", wallet, fees, 9n)], 4);
    await post(db, [move(unique("payout"), fees, agentWallet(orgId, "agt_1"), (await standing(fees))[0]! - 9n)], 5);
    await post(db, [{ does: "reverse", transferId: "back", of: { orgId, transferId: "fee-1" } }], 6);
    expect(await standing(fees)).toEqual([0n, 0n]);
    expect((await proofOf(world.operator)).faults).toEqual([]);
  });

  test("one reserve that cannot be released keeps no other waiting", async () => {
    const to = escrowOf("org_x", "mkt_1");
    const [bad, good] = [await rich(500n), await rich(500n)];
    const now = clock.now();
    const set = ({ wallet }: typeof bad, timeoutMs: number) =>
      db.tx(async (tx) => {
        // More than are looked for at once.
        for (let from = 0; from < 120; from += 15) {
          const wishes = Array.from({ length: 15 }, (_, n) => `late-${from + n}`).map(
            (transferId): Wish => ({ does: "reserve", transferId, kind, from: wallet, to, amount: 1n, timeoutMs }),
          );
          await postTransfers(tx, wishes, now);
        }
      });
    await set(bad, 1_000);
    await set(good, 2_000);
    const keep = (reserved: number) =>
      db.tx((tx) =>
        tx.run(
          sql`update ledger_account set reserved = ${reserved} where org_id = ${bad.orgId} and account_id = 'wallet'`,
        ),
      );
    await keep(0);
    const left = async ({ orgId }: typeof bad) =>
      (await db.query.one<{ n: number }>(sql`select count(*) as n from ledger_hold where org_id = ${orgId}`))!.n;
    clock.advance(3_000);
    await eventually(async () => {
      await expireReserves(world.server.app);
      return (await left(good)) === 0;
    });
    expect(await left(bad)).toBe(120);
    await keep(120);
    await eventually(async () => {
      await expireReserves(world.server.app);
      return (await left(bad)) === 0;
    });
    expect((await proofOf(world.operator)).faults).toEqual([]);
  });

  test("amounts beyond 2^53 are kept to the last micro-credit, and the database itself holds the floor", async () => {
    const much = 2n ** 53n + 1n;
    const { orgId, wallet } = await rich(much);
    const to = agentWallet(orgId, "agt_1");
    await post(db, [move("a", wallet, to, much - 1n)], 1);
    expect([await standing(wallet), await standing(to)]).toEqual([
      [1n, 0n],
      [much - 1n, 0n],
    ]);
    expect(await reasonOf(post(db, [move("b", wallet, to, mostHeld)], 1))).toBe("INSUFFICIENT_CREDITS");
    expect(await reasonOf(post(db, [move("c", issuance, to, mostHeld)], 1))).toBe("QUOTA_EXCEEDED");
    for (const amount of [0n, -1n])
      expect(await reasonOf(post(db, [move("d", wallet, to, amount)], 1))).toBe("INVALID_REQUEST");
    const spoil = db.tx((tx) =>
      tx.run(sql`update ledger_account set balance = -1 where org_id = ${orgId} and account_id = 'wallet'`),
    );
    await expect(spoil).rejects.toThrow(/constraint|CHECK/i);
    for (const change of [
      sql`update ledger_transfer set amount = 1 where org_id = ${orgId}`,
      sql`delete from ledger_transfer where org_id = ${orgId}`,
    ])
      await expect(db.tx((tx) => tx.run(change))).rejects.toThrow(/never/);
  });

  test("the proof names the account that was tampered with", async () => {
    const { orgId } = await rich(100n);
    const set = (balance: number) =>
      db.tx((tx) =>
        tx.run(sql`update ledger_account set balance = ${balance} where org_id = ${orgId} and account_id = 'wallet'`),
      );
    await set(101);
    const proof = await proofOf(world.operator);
    expect(proof).toMatchObject({ ok: false, sumMicros: 1n });
    expect(proof.faults).toEqual([
      expect.objectContaining({ orgId, subjectId: "wallet" }),
      expect.objectContaining({ orgId: "", description: "all accounts together hold 1 and not 0" }),
    ]);
    await set(100);
    expect((await proofOf(world.operator)).ok).toBe(true);
  });

  test("two that pay each other at once both pay, however often", async () => {
    const [one, other] = [await rich(1_000n), await rich(1_000n)];
    const chains = Array.from({ length: 100 }, (_, n) => {
      const [from, to] = n % 2 === 0 ? [one.wallet, other.wallet] : [other.wallet, one.wallet];
      return post(db, [move(`p${n}/1`, from, to, 3n), move(`p${n}/2`, to, from, 1n)], 1);
    });
    await Promise.all(chains);
    expect([await standing(one.wallet), await standing(other.wallet)]).toEqual([
      [1_000n, 0n],
      [1_000n, 0n],
    ]);
  });

  test("one reserve that many settle and void at once ends once", async () => {
    for (let round = 0; round < 5; round++) {
      const { orgId, wallet } = await rich(100n);
      const to = agentWallet(orgId, "agt_1");
      const of = { orgId, transferId: "r" };
      await db.tx((tx) => reserve(tx, { transferId: "r", kind, from: wallet, to, amount: 100n }, 1));
      const ends = [
        ...Array.from(
          { length: 8 },
          (_, n) => (tx: Tx) => postTransfers(tx, [{ does: "settle", transferId: `s${n}`, of, amount: 10n }], 2),
        ),
        ...Array.from(
          { length: 8 },
          (_, n) => (tx: Tx) => postTransfers(tx, [{ does: "void", transferId: `v${n}`, of }], 2),
        ),
      ];
      const reasons = await Promise.all(ends.map((end) => reasonOf(db.tx(end))));
      expect(reasons.toSorted()).toEqual(["none", ...Array(15).fill("FAILED_PRECONDITION")].toSorted());
    }
    expect((await proofOf(world.operator)).faults).toEqual([]);
  });
});
