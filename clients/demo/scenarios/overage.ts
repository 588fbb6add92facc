/** The 11th request of a subscription with ten costs its plan's overage, not the listing's price. */
import { Charge, ChargeSchema } from "../../../gen/moltwire/bus/v1/receipt_pb.ts";
import { BillingService } from "../../../gen/moltwire/exchange/v1/billing_service_pb.ts";
import { creditsText } from "../../cli/credits.ts";
import { nameIn } from "../../cli/names.ts";
import { outputOf } from "../ask.ts";
import { same } from "./claim.ts";
import type { Outcome, World } from "./scenario.ts";
import { atFirst, buy, credits, daily, openShop, price, subscribe, walletsOf } from "./shop.ts";

/** Uses up what is included, and asks once more. */
export async function overage(world: World): Promise<Outcome> {
  const shop = await openShop(world, "overage", { plans: [daily] });
  await subscribe(shop);
  const included = Number(daily.includedRequests);
  const first = await Promise.all(Array.from({ length: included }, () => buy(shop, "one of the ten")));
  same(
    "how the first ten were charged",
    new Set(first.map(({ receipt }) => receipt!.charge)),
    new Set([Charge.INCLUDED]),
  );
  const task = await buy(shop, "one beyond the ten");
  outputOf(task);
  const { charge, amountMicros } = task.receipt!;
  same("the receipt of the next", [charge, amountMicros], [Charge.OVERAGE, daily.overageMicros]);
  const [buyer = 0n, provider = 0n] = await walletsOf(shop);
  const held = [atFirst - credits(50 + 3), atFirst + credits(45 + 2.7)];
  same("what buyer and provider hold then", [buyer, provider], held);
  const { total } = await shop.provider.admin(BillingService).getEarnings({});
  same(
    "what the provider earned",
    [total!.subscriptionsMicros, total!.requestsMicros, total!.netMicros, total!.completedRequests],
    [daily.priceMicros, daily.overageMicros, provider - atFirst, 11n],
  );
  return {
    proof: `after ${included} requests, the 11th is ${nameIn(ChargeSchema, charge)}: ${creditsText(amountMicros)} credits instead of ${creditsText(price)}; the buyer has ${creditsText(buyer)} left, and the provider's earnings say ${creditsText(total!.netMicros)} for ${total!.completedRequests}`,
    traceId: task.traceId,
  };
}
