/** Adds the books up anew, from their rows in any order, and tells what cannot be. No database here. */
import { TransactionStep } from "../../../gen/moltwire/exchange/v1/ledger_pb.ts";
import { type Account, isSource, type Slot } from "./account.ts";
import { holdKey, type Standing } from "./rule.ts";
import { creditOf, debitOf, isEnding, movedBy, reservedBy, type Transfer } from "./transfer.ts";

/** Something that cannot be. Empty: of all organisations, of all accounts. */
export type ProofFault = { readonly orgId: string; readonly subjectId: string; readonly description: string };

export type Proof = {
  readonly accounts: number;
  readonly transfers: number;
  readonly liveReserves: number;
  /** In micro-credits. */
  readonly issued: bigint;
  readonly reserved: bigint;
  readonly sum: bigint;
  /** At most {@link mostFaults}. */
  readonly faults: readonly ProofFault[];
  readonly faultCount: number;
};

/** A row of an account. */
export type AccountLine = Slot & Standing;

/** A row of what is set aside. */
export type HoldLine = {
  readonly orgId: string;
  readonly transferId: string;
  readonly accountId: string;
  readonly amount: bigint;
};

/** Takes the rows; `end` tells what they come to. */
export type Proving = {
  account(line: AccountLine): void;
  transfer(transfer: Transfer): void;
  hold(line: HoldLine): void;
  end(): Proof;
};

/** How many faults are told of; the others are counted. */
export const mostFaults = 100;

/** An account, which may be kept in several rows, as it is kept and as its transfers say. */
type Summed = Account & { readonly kept: Sum; readonly right: Sum };
type Sum = { balance: bigint; reserved: bigint };
type Pending = { readonly orgId: string; readonly debit: string; readonly credit: string; readonly amount: bigint };

/** Holds in memory one line for each account, and one for each of what is set aside until its end is read. */
export function prove(): Proving {
  const accounts = new Map<string, Summed>();
  /** Set aside and not ended, ended and not seen set aside, and held, so far. */
  const [pending, endings, holds] = [
    new Map<string, Pending>(),
    new Map<string, Transfer>(),
    new Map<string, HoldLine>(),
  ];
  const faults: ProofFault[] = [];
  let faultCount = 0;
  let transfers = 0;
  const fault = (orgId: string, subjectId: string, description: string): void => {
    if (++faultCount <= mostFaults) faults.push({ orgId, subjectId, description });
  };
  const summed = ({ orgId, accountId }: Account): Summed => {
    const key = `${orgId} ${accountId}`;
    let found = accounts.get(key);
    const nothing = () => ({ balance: 0n, reserved: 0n });
    if (!found) accounts.set(key, (found = { orgId, accountId, kept: nothing(), right: nothing() }));
    return found;
  };
  const partiesOf = (one: Transfer) => ({ debit: one.debitId, credit: `${one.creditOrgId} ${one.creditId}` });
  const match = (before: Pending, ending: Transfer): void => {
    const { debit, credit } = partiesOf(ending);
    if (
      before.debit !== debit ||
      before.credit !== credit ||
      before.amount !== ending.pendingAmount ||
      ending.amount > before.amount
    )
      fault(ending.orgId, ending.transferId, `is not what ${ending.pendingId} set aside`);
  };

  return {
    account(line) {
      const { orgId, accountId, shard, balance, reserved } = line;
      const { kept } = summed(line);
      kept.balance += balance;
      kept.reserved += reserved;
      if (reserved < 0n || (!isSource(accountId) && balance < reserved))
        fault(orgId, accountId, `row ${shard} holds ${balance}, of which ${reserved} are set aside`);
    },
    hold(line) {
      holds.set(holdKey(line.orgId, line.transferId), line);
    },
    transfer(one) {
      transfers++;
      const moved = movedBy(one);
      const debit = summed(debitOf(one)).right;
      debit.balance -= moved;
      debit.reserved += reservedBy(one);
      if (moved > 0n) summed(creditOf(one)).right.balance += moved;
      if (one.amount < 0n || (one.orgId === one.creditOrgId && one.debitId === one.creditId))
        fault(one.orgId, one.transferId, `moves ${one.amount} from ${one.debitId} to ${one.creditId}`);
      if (one.step === TransactionStep.RESERVED) {
        const key = holdKey(one.orgId, one.transferId);
        const ending = endings.get(key);
        const before = { orgId: one.orgId, ...partiesOf(one), amount: one.amount };
        if (ending) match(before, ending);
        if (ending) endings.delete(key);
        else pending.set(key, before);
      } else if (isEnding(one)) {
        const key = holdKey(one.orgId, one.pendingId);
        const before = pending.get(key);
        if (before) match(before, one);
        if (before) pending.delete(key);
        else if (endings.has(key)) fault(one.orgId, one.transferId, `ends ${one.pendingId} a second time`);
        else endings.set(key, one);
      }
    },
    end() {
      let [sum, issued, reserved] = [0n, 0n, 0n];
      for (const { orgId, accountId, kept, right } of accounts.values()) {
        if (kept.balance !== right.balance || kept.reserved !== right.reserved) {
          const [is, comesTo] = [kept, right].map(({ balance, reserved }) => `${balance}, ${reserved} of it set aside`);
          fault(orgId, accountId, `holds ${is}, and its transfers come to ${comesTo}`);
        }
        sum += kept.balance;
        reserved += kept.reserved;
        if (isSource(accountId)) issued -= kept.balance;
      }
      if (sum !== 0n) fault("", "", `all accounts together hold ${sum} and not 0`);
      for (const { orgId, pendingId, transferId } of endings.values())
        fault(orgId, transferId, `ends ${pendingId}, which set nothing aside, or had ended`);
      for (const [key, before] of pending) {
        const held = holds.get(key);
        if (held?.amount !== before.amount || held.accountId !== before.debit)
          fault(before.orgId, key.split(" ")[1]!, "has not ended, and is not set aside");
        holds.delete(key);
      }
      for (const { orgId, transferId } of holds.values()) fault(orgId, transferId, "has ended, and is still set aside");
      const counts = { accounts: accounts.size, transfers, liveReserves: pending.size };
      return { ...counts, issued, reserved, sum, faults, faultCount };
    },
  };
}
