/** What may be written into the books. No database here. */
import { TransactionStep } from "../../../gen/moltwire/exchange/v1/ledger_pb.ts";
import {
  type Account,
  isPlatform,
  isScattered,
  isSource,
  kindOfAccount,
  mostHeld,
  mostIssued,
  type Slot,
  slotKey,
  slotOf,
  slotsOfAccount,
} from "./account.ts";
import { creditOf, debitOf, isEnding, movedBy, reservedBy, rootOf, type Transfer } from "./transfer.ts";

/** How one row of an account stands. `reserved` is a part of the balance. */
export type Standing = { readonly balance: bigint; readonly reserved: bigint };

/** What a transfer has set aside, and until when. */
export type Hold = { readonly amount: bigint; readonly expireMs: number | null };

/** What a chain is judged by: the rows that it changes, by `slotKey`, and what is set aside still of that which it ends, by {@link holdKey}. */
export type Books = { readonly standings: ReadonlyMap<string, Standing>; readonly holds: ReadonlyMap<string, Hold> };

/** Why a chain is not written. */
export type Refusal =
  | { readonly why: "insufficient"; readonly account: Account; readonly available: bigint; readonly required: bigint }
  /** There would be more credits than there can be. */
  | { readonly why: "overflow"; readonly account: Account }
  /** It is no amount that such a transfer can have, from 0 or 1 to `most`. */
  | { readonly why: "amount"; readonly transferId: string; readonly least: bigint; readonly most: bigint }
  /** What was set aside has ended, or its time is over. */
  | { readonly why: "ended"; readonly orgId: string; readonly pendingId: string };

/** What a chain makes of the rows that it changes, by `slotKey`. */
export type Outcome = { readonly standings: ReadonlyMap<string, Standing> } | { readonly refusal: Refusal };

export const holdKey = (orgId: string, pendingId: string): string => `${orgId} ${pendingId}`;

/** Whether what is set aside until a time is so no more. */
export const hasExpired = ({ expireMs }: Hold, now: number): boolean => expireMs !== null && expireMs <= now;

/** The rows that a transfer changes: that of who pays, and, if anything moves, that of who is paid. */
export function slotsOf(transfer: Transfer): Slot[] {
  const root = rootOf(transfer);
  const debit = slotOf(debitOf(transfer), root);
  return movedBy(transfer) > 0n ? [debit, slotOf(creditOf(transfer), root)] : [debit];
}

/** The rows that a chain locks: those that it changes, and of an account in several rows that pays all of them. */
export const slotsToLock = (chain: readonly Transfer[]): Slot[] =>
  chain.flatMap((one) => [
    ...slotsOf(one),
    ...(movedBy(one) > 0n && isScattered(one.debitId) ? slotsOfAccount(debitOf(one)) : []),
  ]);

/** Several transfers, one after another: all of them or none. A later one can spend what an earlier one has brought. */
export function judge(chain: readonly Transfer[], { standings, holds }: Books, now: number): Outcome {
  const after = new Map(standings);
  const left = new Map(holds);
  for (const transfer of chain) {
    const refusal = judgeOne(transfer, after, left, now);
    if (refusal) return { refusal };
  }
  return { standings: after };
}

function judgeOne(
  transfer: Transfer,
  standings: Map<string, Standing>,
  holds: Map<string, Hold>,
  now: number,
): Refusal | undefined {
  const range = amountsOf(transfer);
  if (transfer.amount < range.least || transfer.amount > range.most)
    return { why: "amount", transferId: transfer.transferId, ...range };
  if (isEnding(transfer)) {
    const key = holdKey(transfer.orgId, transfer.pendingId);
    const hold = holds.get(key);
    // It expires when its time is over, and then it does nothing else.
    if (!hold || hasExpired(hold, now) !== (transfer.step === TransactionStep.EXPIRED))
      return { why: "ended", orgId: transfer.orgId, pendingId: transfer.pendingId };
    holds.delete(key);
  }
  const [debit, credit] = slotsOf(transfer);
  const refusal = pay(transfer, debit!, standings);
  return refusal ?? (credit && bePaid(transfer, credit, standings));
}

function pay(transfer: Transfer, slot: Slot, standings: Map<string, Standing>): Refusal | undefined {
  const moved = movedBy(transfer);
  if (moved > 0n && isScattered(slot.accountId)) gather(slot, standings);
  const before = standings.get(slotKey(slot))!;
  const balance = before.balance - moved;
  const reserved = before.reserved + reservedBy(transfer);
  if (isSource(slot.accountId)) {
    if (balance < -mostIssued) return { why: "overflow", account: slot };
  } else if (balance < reserved) {
    const required = moved + reservedBy(transfer);
    return { why: "insufficient", account: slot, available: before.balance - before.reserved, required };
  }
  standings.set(slotKey(slot), { balance, reserved });
  return undefined;
}

/** Puts what all rows of an account hold into one of them. They are one account: only their sum means something. */
function gather(slot: Slot, standings: Map<string, Standing>): void {
  let sum = 0n;
  for (const each of slotsOfAccount(slot)) {
    const key = slotKey(each);
    sum += standings.get(key)?.balance ?? 0n;
    // A row of which nothing is known was never paid.
    if (standings.has(key)) standings.set(key, { balance: 0n, reserved: 0n });
  }
  standings.set(slotKey(slot), { balance: sum, reserved: 0n });
}

function bePaid(transfer: Transfer, slot: Slot, standings: Map<string, Standing>): Refusal | undefined {
  const { balance, reserved } = standings.get(slotKey(slot))!;
  if (balance > mostHeld - transfer.amount) return { why: "overflow", account: slot };
  standings.set(slotKey(slot), { balance: balance + transfer.amount, reserved });
  return undefined;
}

const { MOVED, RESERVED, SETTLED } = TransactionStep;

/** The amounts that a transfer of its step can have. */
function amountsOf({ step, pendingAmount }: Transfer): { readonly least: bigint; readonly most: bigint } {
  if (step === MOVED || step === RESERVED) return { least: 1n, most: mostHeld };
  return { least: 0n, most: step === SETTLED ? pendingAmount : 0n };
}

/** Throws for what no caller may ask: a fault of the program, not of who called it. */
export function checkShape(chain: readonly Transfer[]): void {
  if (chain.length === 0 || chain.length > mostLinked)
    throw new Error(`a chain has 1 to ${mostLinked} transfers, not ${chain.length}`);
  const names = new Set(chain.map(({ orgId, transferId }) => `${orgId} ${transferId}`));
  if (names.size < chain.length) throw new Error("two transfers of a chain have the same id");
  for (const { orgId, transferId, debitId, creditOrgId, creditId, step } of chain) {
    // The end of a reserve is named after it: its id with a word behind.
    const most = step === RESERVED ? 112 : 128;
    if (!/^[\x21-\x7e]+$/.test(transferId) || transferId.length > most)
      throw new Error(`${transferId} is no id of a transfer`);
    if (kindOfAccount(debitId) === 0 || kindOfAccount(creditId) === 0)
      throw new Error(`there is no account ${debitId} or ${creditId}`);
    if (orgId === creditOrgId && debitId === creditId) throw new Error(`${debitId} would pay itself`);
    if (step === RESERVED && isPlatform(debitId)) throw new Error(`nothing is set aside in ${debitId}`);
  }
}

/** The most transfers of a chain. */
export const mostLinked = 16;
