/** What becomes of wallets as their owners come and go. */
import { TransactionKind } from "../../../gen/moltwire/exchange/v1/ledger_pb.ts";
import type { Tx } from "../../db/db.ts";
import { agentWallet, issuanceOf, slotOf, walletOf } from "./account.ts";
import { postTransfers, releaseLapsed } from "./post.ts";
import { lockStandings, readStanding } from "./store.ts";

/** What an organisation that the operator made begins with: 1,000 credits. One that registers itself begins with none, or credits could be had by registering again. */
export const startingMicros = 1_000_000_000n;

/** Gives an organisation what it begins with, in the transaction that makes it. */
export const grantStartingCredits = (tx: Tx, homeOrgId: string, orgId: string, now: number): Promise<unknown> =>
  postTransfers(
    tx,
    [
      {
        ...{ does: "move", transferId: `${orgId}/start`, kind: TransactionKind.STARTING_CREDITS },
        ...{ from: issuanceOf(homeOrgId), to: walletOf(orgId), amount: startingMicros },
      },
    ],
    now,
  );

/**
 * Gives what an agent's wallet has back to its organisation, in the transaction that deletes it; how much, in micro-credits. What is set aside stays, and so does what of it has
 * expired and is more than one payment makes room with.
 */
export async function closeWallet(tx: Tx, orgId: string, agentId: string, now: number): Promise<bigint> {
  const wallet = agentWallet(orgId, agentId);
  if (!(await readStanding(tx, wallet, now))) return 0n;
  await lockStandings(tx, [slotOf(wallet, "")], now);
  await releaseLapsed(tx, wallet, now);
  const { balance, reserved } = (await readStanding(tx, wallet, now))!;
  const amount = balance - reserved;
  if (amount === 0n) return 0n;
  const transferId = `${agentId}/closed`;
  const kind = TransactionKind.WALLET_CLOSED;
  await postTransfers(tx, [{ does: "move", transferId, kind, from: wallet, to: walletOf(orgId), amount }], now);
  return amount;
}
