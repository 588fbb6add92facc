import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type {
  BalanceSchema,
  CreditTransferSchema,
  TransactionSchema,
} from "../../../gen/moltwire/exchange/v1/ledger_pb.ts";
import { type Account, isPlatform, kindOfAccount } from "../ledger/account.ts";
import type { Standing } from "../ledger/rule.ts";
import { creditOf, debitOf, movedBy, reservedBy, type Transfer } from "../ledger/transfer.ts";
import type { Line } from "./line-store.ts";

/** A line as its organisation reads it: of another organisation's account not more than whose it is and what for. */
export function toTransaction({ orgId, accountId, transfer }: Line): MessageInitShape<typeof TransactionSchema> {
  const pays = transfer.orgId === orgId && transfer.debitId === accountId;
  const other = pays ? creditOf(transfer) : debitOf(transfer);
  const isOwn = other.orgId === orgId;
  return {
    transferId: transfer.transferId,
    accountId,
    accountKind: kindOfAccount(accountId),
    step: transfer.step,
    kind: transfer.kind,
    amountMicros: pays ? -movedBy(transfer) : movedBy(transfer),
    reservedMicros: pays ? reservedBy(transfer) : 0n,
    counterpartyKind: kindOfAccount(other.accountId),
    counterpartyOrgId: isPlatform(other.accountId) ? "" : other.orgId,
    counterpartyAccountId: isOwn ? other.accountId : "",
    reserveId: pays ? transfer.pendingId : "",
    chainId: transfer.chainId,
    reversesId: transfer.reversesId,
    reference: transfer.reference,
    time: timestampFromMs(transfer.createMs),
  };
}

/** How an account stands; one that was never paid has 0. */
export function toBalance(
  { orgId, accountId }: Account,
  standing: (Standing & { readonly lapsed: bigint }) | undefined,
): MessageInitShape<typeof BalanceSchema> {
  const { balance, reserved, lapsed } = standing ?? { balance: 0n, reserved: 0n, lapsed: 0n };
  const live = reserved - lapsed;
  const amounts = { balanceMicros: balance, reservedMicros: live, availableMicros: balance - live };
  return { orgId, accountId, kind: kindOfAccount(accountId), ...amounts };
}

/** A transfer as who asked for it reads it. */
export const toCreditTransfer = (transfer: Transfer): MessageInitShape<typeof CreditTransferSchema> => ({
  transferId: transfer.transferId,
  fromAccountId: transfer.debitId,
  toAccountId: transfer.creditId,
  amountMicros: transfer.amount,
  reference: transfer.reference,
  createTime: timestampFromMs(transfer.createMs),
});
