/** A request for a listing ends with its task: what it costs is paid, or nothing is. In the transaction of that end. */

import { Charge, ReceiptState } from "../../../gen/moltwire/bus/v1/receipt_pb.ts";
import { TaskState } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import { TransactionKind } from "../../../gen/moltwire/exchange/v1/ledger_pb.ts";
import type { App } from "../../app.ts";
import type { Usage } from "../../bus/adapter.ts";
import { dayStart } from "../../bus/cost/day.ts";
import { putReceipt, type TaskSummaryRow } from "../../bus/task-store.ts";
import type { Step } from "../../bus/trace-store.ts";
import type { Tx } from "../../db/db.ts";
import { isAway } from "../../federation/gateway/sides.ts";
import { feesOf, walletOf } from "../ledger/account.ts";
import { postTransfers } from "../ledger/post.ts";
import { voidReserve } from "../ledger/reserve.ts";
import type { Wish } from "../ledger/transfer.ts";
import { amountOf, feeOf } from "../listing/price.ts";
import { giveBackIncluded } from "../subscription/store.ts";
import { addToDay, type CallRow, endCall, findCall, giveBackFree, priceTransferId, receiptText } from "./call-store.ts";
import { chargedStep } from "./receipt-step.ts";

/** How a task ended, as far as its price goes. */
export type Ending = {
  readonly state: TaskState;
  readonly endMs: number;
  /** Of the attempt that ended with it. */
  readonly attempt?: { readonly usage: Usage } | undefined;
  /** Of the side that asked, when it ends with the work. */
  readonly used?: unknown;
};

/** What a request came to; `pays`: it is for whoever got this to call {@link pay}. */
export type Charged = { readonly call: CallRow; readonly pays: boolean; readonly steps: readonly Step[] };

const nothing: readonly Step[] = [];

/**
 * Decides what the request of a task costs, and writes that down; undefined for every other task. By the side that does the work, or by the one that asked while nothing has come to the other;
 * the side that asked then reads it. No account is locked yet.
 */
export async function charge(tx: Tx, task: TaskSummaryRow, end: Ending): Promise<Charged | undefined> {
  if (task.origin !== "listing") return undefined;
  const ref = { org_id: task.target_org_id, task_id: task.task_id };
  const before = await findCall(tx, ref.org_id, ref.task_id);
  if (!before) throw new Error(`task ${task.task_id} was asked for by a listing and has no price`);
  if (isAway(task) && end.used) return { call: before, pays: false, steps: [chargedStep(before, end.endMs)] };
  const isDone = end.state === TaskState.COMPLETED;
  const { inputTokens = 0, outputTokens = 0 } = (isDone && end.attempt?.usage) || {};
  const tokens =
    before.thousand_tokens_micros > 0 ? BigInt(Math.min(inputTokens + outputTokens, before.max_tokens)) : 0n;
  const amount = isDone ? amountOf(pricesAsAgreed(before), tokens) : 0n;
  const fee = feeOf(amount, before.fee_bps);
  const state = isDone ? ReceiptState.SETTLED : ReceiptState.VOIDED;
  const call = await endCall(tx, ref, { state, amount, fee, tokens, end_ms: end.endMs });
  return call
    ? { call, pays: true, steps: [chargedStep(call, end.endMs)] }
    : { call: before, pays: false, steps: nothing };
}

const pricesAsAgreed = ({ request_micros, thousand_tokens_micros, max_tokens }: CallRow) => ({
  requestMicros: BigInt(request_micros),
  thousandTokensMicros: BigInt(thousand_tokens_micros),
  maxTokens: BigInt(max_tokens),
});

/** Does what {@link charge} has decided, last in the transaction: counts, then accounts are locked, as when the task was accepted. */
export async function pay(tx: Tx, app: App, { call, pays }: Charged, state: TaskState): Promise<void> {
  if (!pays) return;
  const { org_id: orgId, task_id: taskId, caller_org_id: callerOrgId, listing_id: listingId } = call;
  const endMs = call.end_ms!;
  const isPaid = call.state === ReceiptState.SETTLED;
  if (!isPaid) await giveBack(tx, call);
  if (isPaid || state === TaskState.FAILED) {
    const requestsMicros = BigInt(call.amount_micros);
    const feesMicros = BigInt(call.fee_micros);
    const ended = isPaid ? { completed: 1, requestsMicros, feesMicros } : { failed: 1 };
    await addToDay(tx, { orgId, listingId, dayMs: dayStart(endMs), ...ended });
  }
  const receipt = receiptText(call);
  for (const side of [callerOrgId, orgId]) await putReceipt(tx, side, taskId, receipt);
  if (call.reserved_micros === 0) return;
  const of = { orgId: callerOrgId, transferId: priceTransferId(taskId) };
  if (isPaid) await postTransfers(tx, paymentOf(app, call, of), endMs);
  else await voidReserve(tx, of, endMs);
}

/** The price to the provider, and of that the fee to the platform: both or neither. */
function paymentOf(app: App, call: CallRow, of: { readonly orgId: string; readonly transferId: string }): Wish[] {
  const { org_id: orgId, task_id: taskId, amount_micros, fee_micros, listing_id: reference } = call;
  const settle = { does: "settle", transferId: `${of.transferId}/settled`, of, amount: BigInt(amount_micros) } as const;
  if (fee_micros === 0) return [settle];
  const parties = { from: walletOf(orgId), to: feesOf(app.homeOrgId), amount: BigInt(fee_micros) };
  return [settle, { does: "move", transferId: `${taskId}/fee`, kind: TransactionKind.FEE, ...parties, reference }];
}

/** A request that came to nothing does not count. */
async function giveBack(tx: Tx, call: CallRow): Promise<void> {
  const { caller_org_id: orgId, listing_id: listingId, period_ms: periodMs } = call;
  if (call.charge === Charge.INCLUDED) await giveBackIncluded(tx, orgId, call.subscription_id, periodMs);
  if (call.charge === Charge.FREE) await giveBackFree(tx, { orgId, listingId, periodMs });
}
