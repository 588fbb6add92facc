/** A price that is set aside before it is known whether it is owed. For several at once, or with other transfers, call `postTransfers`. */
import type { TransactionKind } from "../../../gen/moltwire/exchange/v1/ledger_pb.ts";
import type { Tx } from "../../db/db.ts";
import type { Account } from "./account.ts";
import { postTransfers } from "./post.ts";
import type { Transfer, TransferRef } from "./transfer.ts";

/** What is to be set aside: micro-credits of `from`, for `to`. */
export type ReserveWish = {
  /** The asker's own, such as `tsk_…/price`; what ends it makes its id of it. */
  readonly transferId: string;
  readonly kind: TransactionKind;
  readonly from: Account;
  readonly to: Account;
  readonly amount: bigint;
  readonly reference?: string;
  /** Released by itself after this time, to the millisecond; default: never. */
  readonly timeoutMs?: number;
};

/** Sets an amount aside. Throws as `postTransfers` does: INSUFFICIENT_CREDITS when there is too little that is not set aside already. */
export const reserve = async (tx: Tx, wish: ReserveWish, now: number): Promise<Transfer> =>
  (await postTransfers(tx, [{ does: "reserve", ...wish }], now))[0]!;

/**
 * Pays some or all of what was set aside, from 0 on, and releases the rest. Once: the same again gives the same, another amount is refused with IDEMPOTENCY_KEY_REUSED,
 * and what was released or whose time was over with FAILED_PRECONDITION.
 */
export const settle = async (tx: Tx, of: TransferRef, amount: bigint, now: number): Promise<Transfer> =>
  (await postTransfers(tx, [{ does: "settle", transferId: `${of.transferId}/settled`, of, amount }], now))[0]!;

/** Releases what was set aside. Once, as {@link settle}. */
export const voidReserve = async (tx: Tx, of: TransferRef, now: number): Promise<Transfer> =>
  (await postTransfers(tx, [{ does: "void", transferId: `${of.transferId}/voided`, of }], now))[0]!;
