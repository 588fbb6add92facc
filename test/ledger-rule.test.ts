import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { TransactionKind } from "../gen/moltwire/exchange/v1/ledger_pb.ts";
import {
  type Account,
  agentWallet,
  escrowOf,
  feesOf,
  isScattered,
  isSource,
  issuanceOf,
  mostHeld,
  mostIssued,
  slotKey,
  slotOf,
  slotsOfAccount,
  walletOf,
} from "../src/exchange/ledger/account.ts";
import { type AccountLine, type HoldLine, type Proof, prove } from "../src/exchange/ledger/proof.ts";
import {
  type Books,
  type Hold,
  holdKey,
  judge,
  type Standing,
  slotsOf,
  slotsToLock,
} from "../src/exchange/ledger/rule.ts";
import { rootOf, type Transfer, type TransferRef, type Wish, written } from "../src/exchange/ledger/transfer.ts";

const kind = TransactionKind.TRANSFER;
const accounts: readonly Account[] = [
  issuanceOf("org_home"),
  feesOf("org_home"),
  walletOf("org_a"),
  agentWallet("org_a", "agt_1"),
  walletOf("org_b"),
  escrowOf("org_b", "mkt_1"),
];
const zero: Standing = { balance: 0n, reserved: 0n };

/** The books as a list of what was written, and nothing else: every question is answered by adding it all up. */
type Journal = readonly Transfer[];

const sumOf = (journal: Journal, key: string): Standing => {
  let { balance, reserved } = zero;
  for (const one of journal) {
    const debit = slotKey(slotOf({ orgId: one.orgId, accountId: one.debitId }, rootOf(one)));
    const credit = slotKey(slotOf({ orgId: one.creditOrgId, accountId: one.creditId }, rootOf(one)));
    const moves = one.step === 1 || one.step === 3;
    if (debit === key) balance -= moves ? one.amount : 0n;
    if (debit === key) reserved += one.step === 2 ? one.amount : -one.pendingAmount;
    if (credit === key) balance += moves ? one.amount : 0n;
  }
  return { balance, reserved };
};

/** Of all rows of an account. */
const sumOfAccount = (journal: Journal, account: Account): Standing =>
  slotsOfAccount(account)
    .map((slot) => sumOf(journal, slotKey(slot)))
    .reduce((a, b) => ({ balance: a.balance + b.balance, reserved: a.reserved + b.reserved }));

const isOpen = (journal: Journal, { orgId, transferId }: TransferRef): boolean =>
  !journal.some((one) => one.orgId === orgId && one.pendingId === transferId);

/** Whether the next transfer may be written after these: the promises, one by one. */
function mayFollow(journal: Journal, next: Transfer, now: number): boolean {
  if (next.pendingId !== "") {
    const before = journal.find((one) => one.orgId === next.orgId && one.transferId === next.pendingId)!;
    const isOver = before.timeoutMs !== null && before.createMs + before.timeoutMs <= now;
    if (!isOpen(journal, before) || isOver !== (next.step === 5)) return false;
    if (next.amount < 0n || next.amount > before.amount) return false;
  } else if (next.amount < 1n) return false;
  return slotsOf(next).every((slot) => {
    const { balance, reserved } = sumOf([...journal, next], slotKey(slot));
    if (balance > mostHeld) return false;
    if (isScattered(slot.accountId)) return sumOfAccount([...journal, next], slot).balance >= 0n;
    return isSource(slot.accountId) ? balance >= -mostIssued : balance >= reserved;
  });
}

/** What `judge` is given of the books: as the store would read it. */
function booksOf(journal: Journal, chain: readonly Transfer[]): Books {
  const keys = new Set(slotsToLock(chain).map(slotKey));
  const holds = new Map<string, Hold>();
  for (const one of journal) {
    const expireMs = one.timeoutMs === null ? null : one.createMs + one.timeoutMs;
    if (one.step === 2 && isOpen(journal, one))
      holds.set(holdKey(one.orgId, one.transferId), { amount: one.amount, expireMs });
  }
  return { standings: new Map([...keys].map((key) => [key, sumOf(journal, key)])), holds };
}

type Draw = {
  readonly does: Wish["does"];
  readonly from: number;
  readonly to: number;
  readonly of: number;
  readonly amount: bigint;
  readonly timeoutMs: number;
};

const amount = fc.oneof(
  { weight: 8, arbitrary: fc.bigInt({ min: 1n, max: 60n }) },
  { weight: 1, arbitrary: fc.constantFrom(0n, -1n, mostIssued, mostHeld, 2n ** 53n + 1n) },
);
const draw: fc.Arbitrary<Draw> = fc.record({
  does: fc.constantFrom(
    "move" as const,
    "move" as const,
    "reserve" as const,
    "settle" as const,
    "void" as const,
    "expire" as const,
  ),
  from: fc.nat({ max: accounts.length - 1 }),
  to: fc.nat({ max: accounts.length - 1 }),
  of: fc.nat({ max: 9 }),
  amount,
  timeoutMs: fc.constantFrom(0, 3, 10_000),
});

/** A drawn wish as a transfer; undefined where it speaks of nothing, or of what no caller may ask. */
function drawn(
  { does, from, to, of, amount: much, timeoutMs }: Draw,
  journal: Journal,
  id: string,
  now: number,
): Transfer | undefined {
  if (does === "move" || does === "reserve") {
    if (from === to || (does === "reserve" && from < 2)) return undefined;
    const wish = { does, transferId: id, kind, from: accounts[from]!, to: accounts[to]!, amount: much };
    return written(timeoutMs > 0 && does === "reserve" ? { ...wish, timeoutMs } : (wish as Wish), undefined, "", now);
  }
  const reserves = journal.filter(({ step }) => step === 2);
  const before = reserves.length > 0 ? reserves[of % reserves.length] : undefined;
  if (!before) return undefined;
  const wish = { does, transferId: id, of: before, ...(does === "settle" && { amount: much }) } as Wish;
  return written(wish, before, "", now);
}

describe("the rule of the books", () => {
  test("lets through exactly the chains that keep every promise, and makes of each account what its transfers come to", () => {
    const seen = { posted: 0, refused: new Map<string, number>() };
    fc.assert(
      fc.property(
        fc.array(fc.array(draw, { minLength: 1, maxLength: 4 }), { minLength: 8, maxLength: 40, size: "max" }),
        (draws) => {
          // Something to spend, so that not all is refused.
          let journal: Journal = [2, 3, 4].map((to) =>
            written(
              { does: "move", transferId: `start-${to}`, kind, from: accounts[0]!, to: accounts[to]!, amount: 100n },
              undefined,
              "",
              0,
            ),
          );
          for (const [now, wanted] of draws.entries()) {
            const chain = wanted.flatMap((one, at) => drawn(one, journal, `t-${now}-${at}`, now) ?? []);
            let expected: Journal | undefined = journal;
            for (const one of chain)
              expected = expected && (mayFollow(expected, one, now) ? [...expected, one] : undefined);
            const outcome = judge(chain, booksOf(journal, chain), now);
            expect("standings" in outcome).toBe(expected !== undefined);
            if ("refusal" in outcome) {
              seen.refused.set(outcome.refusal.why, (seen.refused.get(outcome.refusal.why) ?? 0) + 1);
              continue;
            }
            seen.posted += chain.length;
            const before = journal;
            journal = expected!;
            let fees = 0n;
            for (const [key, standing] of outcome.standings) {
              // The rows of the fees are one account, and what is in which of them means nothing.
              if (key.includes(" fees ")) fees += standing.balance - sumOf(before, key).balance;
              else expect(standing).toEqual(sumOf(journal, key));
            }
            expect(fees).toBe(sumOfAccount(journal, accounts[1]!).balance - sumOfAccount(before, accounts[1]!).balance);
          }
          expect(proofOf(journal)).toMatchObject({ faults: [], sum: 0n, transfers: journal.length });
        },
      ),
      { numRuns: 300, seed: 8 },
    );
    expect(seen.posted).toBeGreaterThan(1_000);
    expect([...seen.refused.keys()].sort()).toEqual(["amount", "ended", "insufficient", "overflow"]);
  });

  test("a chain spends what it has brought itself, and nothing of one that is refused remains", () => {
    const [issuance, , wallet, agent] = accounts as [Account, Account, Account, Account];
    const move = (transferId: string, from: Account, to: Account, much: bigint) =>
      written({ does: "move", transferId, kind, from, to, amount: much }, undefined, "c", 0);
    const through = [move("a", issuance, wallet, 5n), move("b", wallet, agent, 5n)];
    const books = booksOf([], through);
    expect(judge(through, books, 0)).toMatchObject({ standings: expect.any(Map) });
    const tooMuch = [...through, move("c", agent, wallet, 6n)];
    expect(judge(tooMuch, booksOf([], tooMuch), 0)).toEqual({
      refusal: expect.objectContaining({ why: "insufficient", available: 5n, required: 6n }),
    });
    expect([...books.standings.values()].every(({ balance }) => balance === 0n)).toBe(true);
  });

  test("amounts beyond 2^53 are exact, and what would not fit 64 bits is refused", () => {
    const [issuance, , wallet] = accounts as [Account, Account, Account];
    const much = 2n ** 53n + 1n;
    const one = written(
      { does: "move", transferId: "a", kind, from: issuance, to: wallet, amount: much },
      undefined,
      "",
      0,
    );
    const outcome = judge([one], booksOf([], [one]), 0);
    expect("standings" in outcome && [...outcome.standings.values()].map(({ balance }) => balance).sort()).toEqual(
      [-much, much].sort(),
    );
    const rest = written(
      { does: "move", transferId: "a", kind, from: issuance, to: wallet, amount: mostIssued },
      undefined,
      "",
      0,
    );
    const after = [one, { ...rest, transferId: "b" }];
    const full = new Map(booksOf([], after).standings);
    for (const [key, { balance }] of full)
      if (key.includes("issuance")) full.set(key, { balance: balance - mostIssued, reserved: 0n });
    expect(judge(after, { standings: full, holds: new Map() }, 0)).toEqual({
      refusal: expect.objectContaining({ why: "overflow" }),
    });
    const brim = new Map(
      [...booksOf([], [one]).standings].map(([key]) => [
        key,
        { balance: key.includes("wallet") ? mostHeld : 0n, reserved: 0n },
      ]),
    );
    expect(judge([one], { standings: brim, holds: new Map() }, 0)).toEqual({
      refusal: expect.objectContaining({ why: "overflow" }),
    });
  });

  test("payments to the platform are spread over its rows", () => {
    const shards = new Set(Array.from({ length: 400 }, (_, n) => slotOf(feesOf("o"), `txn_${n}/fee`).shard));
    expect(shards.size).toBe(16);
    expect(new Set(Array.from({ length: 400 }, (_, n) => slotOf(walletOf("o"), `txn_${n}`).shard))).toEqual(
      new Set([0]),
    );
  });
});

/** The rows that a journal makes, as they are stored. */
function rowsOf(journal: Journal): { accounts: AccountLine[]; holds: HoldLine[]; transfers: Transfer[] } {
  // All that the platform earned in one of its rows, as after a payout.
  const rows = journal.flatMap(slotsOf).map((slot) => (isScattered(slot.accountId) ? { ...slot, shard: 0 } : slot));
  const slots = new Map(rows.map((slot) => [slotKey(slot), slot]));
  return {
    accounts: [...slots].map(([key, slot]) => ({
      ...slot,
      ...(isScattered(slot.accountId) ? sumOfAccount(journal, slot) : sumOf(journal, key)),
    })),
    holds: journal
      .filter((one) => one.step === 2 && isOpen(journal, one))
      .map(({ orgId, transferId, debitId, amount: much }) => ({ orgId, transferId, accountId: debitId, amount: much })),
    transfers: [...journal],
  };
}

function proofOfRows({ accounts: lines, holds, transfers }: ReturnType<typeof rowsOf>): Proof {
  const proving = prove();
  for (const one of transfers) proving.transfer(one);
  for (const one of holds) proving.hold(one);
  for (const one of lines) proving.account(one);
  return proving.end();
}

const proofOf = (journal: Journal): Proof => proofOfRows(rowsOf(journal));

describe("the proof", () => {
  const [issuance, fees, wallet, agent] = accounts as [Account, Account, Account, Account];
  const move = (transferId: string, from: Account, to: Account, much: bigint) =>
    written({ does: "move", transferId, kind, from, to, amount: much }, undefined, "", 0);
  const reserve = (transferId: string, much: bigint) =>
    written({ does: "reserve", transferId, kind, from: wallet, to: agent, amount: much }, undefined, "", 0);
  const settled = reserve("r1", 30n);
  const journal: Journal = [
    ...[move("a", issuance, wallet, 100n), move("b", wallet, fees, 10n), settled, reserve("r2", 20n)],
    written({ does: "settle", transferId: "s1", of: settled, amount: 25n }, settled, "", 0),
  ];

  test("finds nothing wrong in books that are right, in whichever order it reads them", () => {
    const right = { faultCount: 0, sum: 0n, issued: 100n, reserved: 20n, liveReserves: 1, transfers: 5 };
    expect(proofOf(journal)).toMatchObject(right);
    const rows = rowsOf(journal);
    expect(proofOfRows({ ...rows, transfers: rows.transfers.toReversed() })).toMatchObject(right);
  });

  test.each<[string, (rows: ReturnType<typeof rowsOf>) => ReturnType<typeof rowsOf>, RegExp]>([
    [
      "credits out of nothing",
      (rows) => ({
        ...rows,
        accounts: rows.accounts.map((one) => (one.accountId === "agt_1" ? { ...one, balance: one.balance + 1n } : one)),
      }),
      /transfers come to|not 0/,
    ],
    [
      "a transfer that was lost",
      (rows) => ({ ...rows, transfers: rows.transfers.filter(({ transferId }) => transferId !== "b") }),
      /transfers come to/,
    ],
    [
      "a transfer that was altered",
      (rows) => ({
        ...rows,
        transfers: rows.transfers.map((one) => (one.transferId === "b" ? { ...one, amount: 11n } : one)),
      }),
      /transfers come to/,
    ],
    [
      "an account that is gone",
      (rows) => ({ ...rows, accounts: rows.accounts.filter(({ accountId }) => accountId !== "agt_1") }),
      /transfers come to|not 0/,
    ],
    ["a reserve that is nowhere", (rows) => ({ ...rows, holds: [] }), /has not ended, and is not set aside/],
    [
      "a reserve of another amount",
      (rows) => ({ ...rows, holds: rows.holds.map((one) => ({ ...one, amount: 19n })) }),
      /has not ended, and is not set aside/,
    ],
    [
      "a reserve that has ended and is held",
      (rows) => ({ ...rows, holds: [...rows.holds, { ...rows.holds[0]!, transferId: "r1" }] }),
      /has ended, and is still set aside/,
    ],
    [
      "a reserve that ends twice",
      (rows) => ({
        ...rows,
        transfers: [...rows.transfers, { ...rows.transfers.at(-1)!, transferId: "s2", amount: 0n }],
      }),
      /set nothing aside, or had ended/,
    ],
    [
      "a settlement of more than was set aside",
      (rows) => ({
        ...rows,
        transfers: rows.transfers.map((one) => (one.transferId === "s1" ? { ...one, amount: 31n } : one)),
      }),
      /is not what r1 set aside/,
    ],
    [
      "a wallet below zero",
      (rows) => ({
        ...rows,
        accounts: rows.accounts.map((one) => (one.accountId === "wallet" ? { ...one, balance: -1n } : one)),
      }),
      /holds -1/,
    ],
  ])("finds %s", (_, spoil, told) => {
    const proof = proofOfRows(spoil(rowsOf(journal)));
    expect(proof.faultCount).toBeGreaterThan(0);
    expect(proof.faults.map(({ description }) => description).join("\n")).toMatch(told);
  });
});
