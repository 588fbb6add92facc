/** A request for a listing is accepted: its price is fixed, and set aside. */

import { ReceiptState } from "../../../gen/moltwire/bus/v1/receipt_pb.ts";
import { TransactionKind } from "../../../gen/moltwire/exchange/v1/ledger_pb.ts";
import type { Offer } from "../../../gen/moltwire/exchange/v1/listing_pb.ts";
import type { App } from "../../app.ts";
import { spanOf } from "../../bus/conclude.ts";
import { putReceipt, type TaskRow } from "../../bus/task-store.ts";
import { recordSteps } from "../../bus/trace-store.ts";
import type { Tx } from "../../db/db.ts";
import { Fault } from "../../errors.ts";
import type { Account } from "../ledger/account.ts";
import { walletOf } from "../ledger/account.ts";
import { Raced } from "../ledger/afford.ts";
import { creditsText } from "../ledger/fault.ts";
import { reserve } from "../ledger/reserve.ts";
import { mostOf } from "../listing/price.ts";
import type { ListingRow } from "../listing/store.ts";
import { type CallRow, insertCall, priceTransferId, receiptText } from "./call-store.ts";
import { chargedStep } from "./receipt-step.ts";
import { takeTariff } from "./tariff.ts";

/** What is bought, by whom. */
export type Sale = {
  readonly listing: ListingRow;
  readonly offer: Offer;
  /** The task of the side that asks, and of the side that does it, unless it waits for an approval first. */
  readonly home: TaskRow;
  readonly guest: TaskRow | undefined;
  readonly payer: Account;
  /** Undefined: whatever it costs. */
  readonly maxPriceMicros: bigint | undefined;
  /** What it was to cost at most when budgets were asked for that. */
  readonly expectedMicros: bigint;
  readonly now: number;
};

/** Why a request is not made that can cost more than whoever asks would pay. */
export function tooDear(listingId: string, micros: bigint, most: bigint | undefined): Fault | undefined {
  if (most === undefined || micros <= most) return undefined;
  const message = `a request can cost ${creditsText(micros)} credits, and max_price_micros allows ${creditsText(most)}`;
  return new Fault("FAILED_PRECONDITION", message, {
    field: "max_price_micros",
    listing_id: listingId,
    price_micros: String(micros),
  });
}

/**
 * Fixes the price in the transaction in which the task was accepted, after everything else of it, and sets it aside: the accounts are locked last, as when it ends. Gives the receipt as it is
 * stored. Throws INSUFFICIENT_CREDITS, FAILED_PRECONDITION when it costs more than whoever asks would pay, and Raced when it costs more than was expected.
 */
export async function sell(tx: Tx, app: App, sale: Sale): Promise<string> {
  const { listing, offer, home, guest, payer, now } = sale;
  const { org_id: orgId, listing_id: listingId } = listing;
  const asked = { orgId: home.org_id, listingId, offer, now };
  const { tariff, subscriptionId, periodMs } = await takeTariff(tx, asked);
  const { charge, prices } = tariff;
  const reserved = mostOf(prices);
  const dear = tooDear(listingId, reserved, sale.maxPriceMicros);
  if (dear) throw dear;
  if (reserved > sale.expectedMicros) throw new Raced("another request has just used what would have covered this one");
  const call: CallRow = {
    ...{ org_id: orgId, task_id: home.task_id, listing_id: listingId, listing_version: listing.version },
    ...{ caller_org_id: home.org_id, payer_id: payer.accountId, charge, state: ReceiptState.RESERVED },
    request_micros: Number(prices.requestMicros),
    thousand_tokens_micros: Number(prices.thousandTokensMicros),
    max_tokens: Number(prices.maxTokens),
    fee_bps: app.config.feeBps,
    ...{ reserved_micros: Number(reserved), amount_micros: 0, fee_micros: 0, tokens: 0 },
    ...{ subscription_id: subscriptionId, period_ms: periodMs, create_ms: now, end_ms: null },
  };
  await insertCall(tx, call);
  const receipt = receiptText(call);
  for (const side of guest ? [home, guest] : [home]) {
    await putReceipt(tx, side.org_id, side.task_id, receipt);
    await recordSteps(tx, app, spanOf(side), [chargedStep(call, now)]);
  }
  if (reserved > 0n)
    await reserve(
      tx,
      {
        transferId: priceTransferId(home.task_id),
        kind: TransactionKind.LISTING,
        ...{ from: payer, to: walletOf(orgId), amount: reserved, reference: listingId },
      },
      now,
    );
  return receipt;
}
