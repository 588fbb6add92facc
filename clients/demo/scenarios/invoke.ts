/** A request for a listing: 5 credits from the buyer, 4.5 to the provider, 0.5 to the platform, and a receipt on both sides. One that fails costs nothing. */

import { BusService } from "../../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { Charge, ReceiptState, ReceiptStateSchema } from "../../../gen/moltwire/bus/v1/receipt_pb.ts";
import { BillingService } from "../../../gen/moltwire/exchange/v1/billing_service_pb.ts";
import { creditsText } from "../../cli/credits.ts";
import { nameIn, stateName } from "../../cli/names.ts";
import { outputOf } from "../ask.ts";
import { same } from "./claim.ts";
import type { Outcome, World } from "./scenario.ts";
import { atFirst, buy, openShop, price, share, walletsOf } from "./shop.ts";

const text = "five words that were paid";

/** Buys one request that is done, and one that fails. */
export async function invoke(world: World): Promise<Outcome> {
  const shop = await openShop(world, "invoke");
  const { provider, buyer, listing } = shop;
  same("what both begin with", await walletsOf(shop), [atFirst, atFirst]);
  const task = await buy(shop, text);
  same("what is answered", outputOf(task), { words: 5 });
  const { receipt, taskId, traceId } = task;
  same(
    "the receipt",
    [receipt?.listingId, receipt?.charge, receipt?.state, receipt?.amountMicros, receipt?.feeMicros],
    [listing.listingId, Charge.PRICED, ReceiptState.SETTLED, price, share.platform],
  );
  const theirs = (await provider.admin(BusService).getTask({ taskId })).task;
  same("the receipt on the provider's side", theirs?.receipt, receipt);
  const paid = [atFirst - price, atFirst + share.provider];
  same("what both hold then", await walletsOf(shop), paid);
  // The platform's account has the fees of all listings; each line names its own.
  const fees = await world.operator(BillingService).listTransactions({ accountId: "fees" });
  const own = fees.transactions.filter(({ reference }) => reference === listing.listingId);
  same(
    "what the platform was paid",
    own.map(({ amountMicros }) => amountMicros),
    [share.platform],
  );

  const failed = await buy(shop, "a crash on the way");
  same(
    "a request that fails, and its receipt",
    [stateName(failed.state), nameIn(ReceiptStateSchema, failed.receipt!.state), failed.receipt!.amountMicros],
    ["FAILED", "VOIDED", 0n],
  );
  same("what both hold after it", await walletsOf(shop), paid);
  same("what is set aside", (await buyer.admin(BillingService).getBalance({})).balance!.reservedMicros, 0n);
  return {
    proof: `COMPLETED for ${creditsText(receipt!.amountMicros)} credits: ${creditsText(share.provider)} to the provider, ${creditsText(receipt!.feeMicros)} to the platform, and the same receipt, SETTLED, on both sides; one that FAILED is VOIDED and cost ${creditsText(failed.receipt!.amountMicros)}`,
    traceId,
  };
}
