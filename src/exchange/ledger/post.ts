/**
 * The one way into the books, for whoever does something that is paid for. Call it inside the transaction of what is paid for, once, with all that belongs together:
 *
 *     await postTransfers(tx, [
 *       { does: "settle", transferId: `${callId}/price`, of: { orgId, transferId: `${callId}/reserve` }, amount },
 *       { does: "move", transferId: `${callId}/fee`, kind, from: walletOf(sellerOrgId), to: feesOf(homeOrgId), amount: fee },
 *     ], now);
 *
 * The rows of the accounts are locked in one order, so that chains never wait for one another both; a second call in one transaction gives that up (PostgreSQL then ends
 * one of two that do, and it is begun again).
 */
import { TransactionStep } from "../../../gen/moltwire/exchange/v1/ledger_pb.ts";
import type { Tx } from "../../db/db.ts";
import { Fault, notFound } from "../../errors.ts";
import { type Account, inLockOrder, type Slot, slotKey } from "./account.ts";
import { endedFault, reusedFault, toFault } from "./fault.ts";
import { checkShape, judge, type Refusal, slotsToLock } from "./rule.ts";
import {
  deleteHolds,
  findEnding,
  findHolds,
  findTransfers,
  insertEntries,
  insertHold,
  insertTransfers,
  isReversed,
  lapsedHolds,
  lockStandings,
  putStandings,
} from "./store.ts";
import { isEnding, isSame, movedBy, type Transfer, type TransferRef, type Wish, written } from "./transfer.ts";

/** How many reserves whose time is over are read at once, and how often, to make room for a payment that needs them. */
const lapsedBatch = 100;
const lapsedRounds = 10;

/**
 * Writes all of the transfers, or none, and gives them as they are written, in the same order. A chain that was written before, with the same ids and content, is given as it
 * was; nothing happens again.
 *
 * @throws Fault, with nothing written: INSUFFICIENT_CREDITS; INVALID_REQUEST for an amount below 1 (below 0 of a settlement) or above what can be; QUOTA_EXCEEDED if there would be
 * more credits than there can be; FAILED_PRECONDITION for what has ended or was undone already (`state` tells how); NOT_FOUND for a transfer that is
 * spoken of and is none; IDEMPOTENCY_KEY_REUSED for ids that have another content. At most 16 transfers.
 */
export const postTransfers = async (tx: Tx, wishes: readonly Wish[], now: number): Promise<readonly Transfer[]> =>
  (await postOnce(tx, wishes, now)).transfers;

/** As {@link postTransfers}; `isNew`: whether this call has written them. */
export async function postOnce(
  tx: Tx,
  wishes: readonly Wish[],
  now: number,
): Promise<{ readonly transfers: readonly Transfer[]; readonly isNew: boolean }> {
  const chain = await plan(tx, wishes, now);
  checkShape(chain);
  const slots = inLockOrder(new Map(slotsToLock(chain).map((slot) => [slotKey(slot), slot])).values());
  for (let round = 0; ; round++) {
    const standings = await lockStandings(tx, slots, now);
    // Only now: whoever has just written the same held the same rows.
    const before = await writtenBefore(tx, chain);
    if (before) return { transfers: before, isNew: false };
    await refuseUndone(tx, chain);
    const ended = chain.filter(isEnding).map(pendingOf);
    const holds = ended.length > 0 ? await findHolds(tx, ended) : new Map();
    const outcome = judge(chain, { standings, holds }, now);
    if ("standings" in outcome) {
      await write(tx, chain, slots, outcome.standings, ended);
      return { transfers: chain, isNew: true };
    }
    const { refusal } = outcome;
    const retry =
      refusal.why === "insufficient" && round < lapsedRounds && (await releaseSome(tx, refusal.account, now)) > 0;
    if (!retry) throw await faultOf(tx, refusal);
  }
}

/** What the wishes would write. The transfers that they speak of never change, so they are read without a lock. */
async function plan(tx: Tx, wishes: readonly Wish[], now: number): Promise<Transfer[]> {
  const refs = wishes.flatMap((wish) => ("of" in wish ? [wish.of] : []));
  const found = refs.length > 0 ? await findTransfers(tx, refs) : [];
  const chainId = wishes.length > 1 ? wishes[0]!.transferId : "";
  return wishes.map((wish) => {
    if (!("of" in wish)) return written(wish, undefined, chainId, now);
    const { orgId, transferId } = wish.of;
    const before = found.find((one) => one.orgId === orgId && one.transferId === transferId);
    const isRight =
      before && (wish.does === "reverse" ? movedBy(before) > 0n : before.step === TransactionStep.RESERVED);
    if (!isRight) throw notFound("transfer", transferId);
    return written(wish, before, chainId, now);
  });
}

/** The chain as it was written before; undefined if none of it was. */
async function writtenBefore(tx: Tx, chain: readonly Transfer[]): Promise<readonly Transfer[] | undefined> {
  const found = await findTransfers(tx, chain);
  if (found.length === 0) return undefined;
  return chain.map((one) => {
    const same = found.find(({ orgId, transferId }) => orgId === one.orgId && transferId === one.transferId);
    if (!same || !isSame(same, one)) throw reusedFault(one.transferId);
    return same;
  });
}

async function refuseUndone(tx: Tx, chain: readonly Transfer[]): Promise<void> {
  for (const { reversesOrgId: orgId, reversesId: transferId } of chain) {
    if (transferId === "" || !(await isReversed(tx, { orgId, transferId }))) continue;
    throw new Fault("FAILED_PRECONDITION", `the transfer ${transferId} was undone already`, { state: "REVERSED" });
  }
}

async function write(
  tx: Tx,
  chain: readonly Transfer[],
  slots: readonly Slot[],
  standings: Parameters<typeof putStandings>[2],
  ended: readonly TransferRef[],
): Promise<void> {
  if (ended.length > 0 && (await deleteHolds(tx, ended)) !== ended.length)
    throw new Error("what is set aside has ended while its account was locked");
  // Under other accounts, and so under other locks, another has just used one of the ids.
  if ((await insertTransfers(tx, chain)) !== chain.length) throw reusedFault(chain[0]!.transferId);
  await insertEntries(tx, chain);
  for (const one of chain) if (one.step === TransactionStep.RESERVED) await insertHold(tx, one);
  await putStandings(tx, slots, standings);
}

const pendingOf = ({ orgId, pendingId }: Transfer): TransferRef => ({ orgId, transferId: pendingId });

/** Releases some of what an account has set aside longer than it should; how many. Its row is locked, and no other is changed. */
async function releaseSome(tx: Tx, account: Account, now: number): Promise<number> {
  const lapsed = await lapsedHolds(tx, account, now, lapsedBatch);
  for (const of of lapsed) await expire(tx, of, now);
  return lapsed.length;
}

/** The same, as much as a payment that needs it all would. */
export async function releaseLapsed(tx: Tx, account: Account, now: number): Promise<void> {
  for (let round = 0; round < lapsedRounds; round++) if ((await releaseSome(tx, account, now)) < lapsedBatch) return;
}

/** Ends a reserve whose time is over. */
export const expire = (tx: Tx, of: TransferRef, now: number): Promise<readonly Transfer[]> =>
  postTransfers(tx, [{ does: "expire", transferId: `${of.transferId}/expired`, of }], now);

async function faultOf(tx: Tx, refusal: Refusal): Promise<Fault> {
  if (refusal.why !== "ended") return toFault(refusal);
  const ending = await findEnding(tx, refusal.orgId, refusal.pendingId);
  return endedFault(refusal.pendingId, ending?.step ?? TransactionStep.EXPIRED);
}
