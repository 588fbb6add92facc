/** Chains of a seed: what the books are asked for in the random run, the same for each number however often it is asked. */
import { TransactionKind } from "../../gen/moltwire/exchange/v1/ledger_pb.ts";
import {
  type Account,
  agentWallet,
  escrowOf,
  feesOf,
  issuanceOf,
  walletOf,
} from "../../src/exchange/ledger/account.ts";
import type { TransferRef, Wish } from "../../src/exchange/ledger/transfer.ts";
import { type Random, random } from "../crash/random.ts";

const kind = TransactionKind.TRANSFER;
/** How far back an operation looks for something to end or to undo, and how often. */
const lookBack = 300;
const tries = 12;

/** The organisations whose wallets pay, besides the platform's own. */
export const payers: readonly string[] = Array.from({ length: 8 }, (_, n) => `org_${n}`);

/** The wishes of the operation of a number. Their ids are `op/<number>/<place>`. */
export function randomChains(seed: number, homeOrgId: string): (n: number) => readonly [Wish, ...Wish[]] {
  const wallets = payers.flatMap((orgId) => [
    walletOf(orgId),
    agentWallet(orgId, "agt_1"),
    agentWallet(orgId, "agt_2"),
    escrowOf(orgId, "mkt_1"),
  ]);
  const [issuance, fees] = [issuanceOf(homeOrgId), feesOf(homeOrgId)];

  /** As much comes as goes to the fees, so that wallets stay poor and are refused; but for one that holds what no number does. */
  const plain = (by: Random, transferId: string): Wish => {
    const move = (from: Account, to: Account, amount: bigint): Wish => ({
      ...{ does: "move", transferId, kind, from, to, amount },
    });
    const [from, to, roll] = [by.pick(wallets), by.pick(wallets), by.next()];
    const amount = BigInt(by.int(1, 50));
    if (roll < 0.001) return move(issuance, wallets[0]!, 2n ** 54n + amount);
    if (roll < 0.16) return move(issuance, to, amount);
    if (roll < 0.26 || from === to) return move(from, fees, amount);
    if (roll < 0.28) return move(fees, to, amount * 3n);
    if (roll < 0.65) {
      const timeout = by.chance(0.3) ? { timeoutMs: by.int(1, 400) } : {};
      return { does: "reserve", transferId, kind, from, to, amount: amount + 20n, ...timeout };
    }
    return move(from, to, amount);
  };
  const begin = (n: number) => {
    const by = random(seed + n * 7_919);
    return { by, roll: by.next() };
  };
  const isPlain = (roll: number) => roll >= 0.32;
  const chain = (n: number, by: Random): [Wish, ...Wish[]] => {
    const following = by.chance(0.25) ? by.int(1, 3) : 0;
    const rest = Array.from({ length: following }, (_, place) => plain(by, `op/${n}/${place + 1}`));
    return [plain(by, `op/${n}/0`), ...rest];
  };
  /** Something that an operation before this one has asked for, whatever has become of it. */
  const earlier = (n: number, by: Random, does: "move" | "reserve") => {
    for (let round = 0; round < tries; round++) {
      const m = n - by.int(1, lookBack);
      if (m < 0) continue;
      const then = begin(m);
      const found = isPlain(then.roll) && chain(m, then.by).find((wish) => wish.does === does);
      if (found && "from" in found) return found;
    }
    return undefined;
  };
  return (n) => {
    const { by, roll } = begin(n);
    const before = isPlain(roll) ? undefined : earlier(n, by, roll < 0.28 ? "reserve" : "move");
    if (!before) return chain(n, by);
    const transferId = `op/${n}/0`;
    const of: TransferRef = { orgId: before.from.orgId, transferId: before.transferId };
    if (before.does === "move") return [{ does: "reverse", transferId, of }];
    if (by.chance(0.4)) return [{ does: "void", transferId, of }];
    const amount = BigInt(by.int(0, Number(before.amount)));
    const settle: Wish = { does: "settle", transferId, of, amount };
    // As a price is paid: a part of what it brings goes on.
    return by.chance(0.3) ? [settle, plain(by, `op/${n}/1`)] : [settle];
  };
}
