/** One period of a subscription is paid for. */
import { TransactionKind } from "../../../gen/moltwire/exchange/v1/ledger_pb.ts";
import type { App } from "../../app.ts";
import { dayStart } from "../../bus/cost/day.ts";
import type { Tx } from "../../db/db.ts";
import { addToDay } from "../call/call-store.ts";
import { feesOf, walletOf } from "../ledger/account.ts";
import { postTransfers } from "../ledger/post.ts";
import type { Wish } from "../ledger/transfer.ts";
import { feeOf } from "../listing/price.ts";
import { planOf, type SubscriptionRow } from "./store.ts";

/** The price to the provider, and of that the fee to the platform: both or neither. `row.payments` counts this one. Throws INSUFFICIENT_CREDITS. */
export async function payPeriod(tx: Tx, app: App, row: SubscriptionRow, now: number): Promise<void> {
  const { org_id, provider_org_id: orgId, listing_id: listingId, subscription_id, payments, payer_id } = row;
  const { priceMicros: amount } = planOf(row);
  const fee = feeOf(amount, app.config.feeBps);
  await addToDay(tx, { orgId, listingId, dayMs: dayStart(now), subscriptionsMicros: amount, feesMicros: fee });
  const transferId = `${subscription_id}/${payments}`;
  const seller = walletOf(orgId);
  const from = { orgId: org_id, accountId: payer_id };
  const reference = listingId;
  const price: Wish = {
    does: "move",
    transferId,
    kind: TransactionKind.SUBSCRIPTION,
    from,
    to: seller,
    amount,
    reference,
  };
  const part: Wish = {
    ...{ does: "move", transferId: `${transferId}/fee`, kind: TransactionKind.FEE, reference },
    ...{ from: seller, to: feesOf(app.homeOrgId), amount: fee },
  };
  await postTransfers(tx, fee > 0n ? [price, part] : [price], now);
}
