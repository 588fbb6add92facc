import { TransactionKind, TransactionStep } from "../../../gen/moltwire/exchange/v1/ledger_pb.ts";
import type { Account } from "./account.ts";

/** A transfer as the books have it, for ever. Amounts are micro-credits; empty texts are none. */
export type Transfer = {
  /** Of the account that pays. Transfer ids are unique in it. */
  readonly orgId: string;
  readonly transferId: string;
  readonly step: TransactionStep;
  readonly kind: TransactionKind;
  readonly debitId: string;
  readonly creditOrgId: string;
  readonly creditId: string;
  /** What it moves, or sets aside. */
  readonly amount: bigint;
  /** The transfer that set aside what this one ends, and how much that was. */
  readonly pendingId: string;
  readonly pendingAmount: bigint;
  /** The transfer that it undoes. */
  readonly reversesOrgId: string;
  readonly reversesId: string;
  /** The first of those that it was posted with. */
  readonly chainId: string;
  /** For how long it sets aside; null: until it is ended. */
  readonly timeoutMs: number | null;
  readonly reference: string;
  readonly createMs: number;
};

/** A transfer by its name. */
export type TransferRef = Pick<Transfer, "orgId" | "transferId">;

type Named = {
  /**
   * The asker's own, unique in the organisation that pays: of any number of calls with it one has an effect. Made of what is paid for, such as `mkt_…/accept`. Those that
   * begin with `txn_` are free to clients.
   */
  readonly transferId: string;
};

type Between = Named & {
  readonly kind: TransactionKind;
  readonly from: Account;
  readonly to: Account;
  /** From 1. */
  readonly amount: bigint;
  /** For the statement. */
  readonly reference?: string;
};

/** What is asked of the books. */
export type Wish =
  | (Between & { readonly does: "move" })
  /** Sets aside in `from`, until it is ended or `timeoutMs` have passed. `from` is no account of the platform. */
  | (Between & { readonly does: "reserve"; readonly timeoutMs?: number })
  /** Pays from 0 up to what was set aside, and releases the rest. */
  | (Named & { readonly does: "settle"; readonly of: TransferRef; readonly amount: bigint })
  | (Named & { readonly does: "void"; readonly of: TransferRef })
  /** As {@link expireReserves} does it. */
  | (Named & { readonly does: "expire"; readonly of: TransferRef })
  /** Pays back all that a transfer moved, once. `of` is one that moved or settled. */
  | (Named & { readonly does: "reverse"; readonly of: TransferRef });

const { MOVED, RESERVED, SETTLED, VOIDED, EXPIRED } = TransactionStep;
const endings = { settle: SETTLED, void: VOIDED, expire: EXPIRED } as const;

/** Whether a transfer ends one that set something aside. */
export const isEnding = ({ pendingId }: Pick<Transfer, "pendingId">): boolean => pendingId !== "";

/** By how much a transfer changes the balances: less for who pays, more for who is paid. */
export const movedBy = ({ step, amount }: Pick<Transfer, "step" | "amount">): bigint =>
  step === MOVED || step === SETTLED ? amount : 0n;

/** By how much a transfer changes what the account that pays has set aside. */
export const reservedBy = ({
  step,
  amount,
  pendingAmount,
}: Pick<Transfer, "step" | "amount" | "pendingAmount">): bigint => (step === RESERVED ? amount : -pendingAmount);

/** The transfer by which the rows of its accounts are chosen; see `slotOf`. */
export const rootOf = ({ transferId, pendingId, reversesId }: Transfer): string =>
  reversesId || pendingId || transferId;

/** The account that pays. */
export const debitOf = ({ orgId, debitId }: Transfer): Account => ({ orgId, accountId: debitId });

/** The account that is paid. */
export const creditOf = ({ creditOrgId, creditId }: Transfer): Account => ({ orgId: creditOrgId, accountId: creditId });

/** What a wish would write. `before` is the transfer it speaks of, where it speaks of one. */
export function written(wish: Wish, before: Transfer | undefined, chainId: string, now: number): Transfer {
  const base = {
    ...{ transferId: wish.transferId, chainId, createMs: now, timeoutMs: null },
    ...{ pendingId: "", pendingAmount: 0n, reversesOrgId: "", reversesId: "" },
  };
  if (wish.does === "move" || wish.does === "reserve") {
    const { kind, from, to, amount, reference = "" } = wish;
    const parties = { orgId: from.orgId, debitId: from.accountId, creditOrgId: to.orgId, creditId: to.accountId };
    const own = { ...base, ...parties, kind, amount, reference };
    if (wish.does === "move") return { ...own, step: MOVED };
    return { ...own, step: RESERVED, timeoutMs: wish.timeoutMs ?? null };
  }
  const { kind, orgId, debitId, creditOrgId, creditId, reference } = before!;
  if (wish.does === "reverse") {
    const parties = { orgId: creditOrgId, debitId: creditId, creditOrgId: orgId, creditId: debitId };
    const undone = { reversesOrgId: orgId, reversesId: before!.transferId, amount: movedBy(before!) };
    return { ...base, ...parties, ...undone, step: MOVED, kind: TransactionKind.REVERSAL, reference };
  }
  const ended = { pendingId: before!.transferId, pendingAmount: before!.amount };
  const own = { ...base, ...ended, kind, orgId, debitId, creditOrgId, creditId, reference };
  return { ...own, step: endings[wish.does], amount: wish.does === "settle" ? wish.amount : 0n };
}

/** Whether two transfers are the same, but for their time. */
export const isSame = (a: Transfer, b: Transfer): boolean =>
  (Object.keys(a) as (keyof Transfer)[]).every((name) => name === "createMs" || a[name] === b[name]);
