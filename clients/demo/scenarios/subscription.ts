/** A subscription of 50 credits a day: paid once, at once, and ten requests at the same time cost nothing more. */
import { Charge } from "../../../gen/moltwire/bus/v1/receipt_pb.ts";
import { SubscriptionStateSchema } from "../../../gen/moltwire/exchange/v1/subscription_pb.ts";
import { SubscriptionService } from "../../../gen/moltwire/exchange/v1/subscription_service_pb.ts";
import { creditsText } from "../../cli/credits.ts";
import { nameIn } from "../../cli/names.ts";
import { outputOf } from "../ask.ts";
import { refused, same } from "./claim.ts";
import type { Outcome, World } from "./scenario.ts";
import { atFirst, buy, credits, daily, openShop, subscribe, walletsOf } from "./shop.ts";

/** Subscribes, and uses what is included. */
export async function subscription(world: World): Promise<Outcome> {
  const shop = await openShop(world, "subscription", { plans: [daily] });
  const made = await subscribe(shop);
  const days = Number(made.periodEndTime!.seconds - made.periodStartTime!.seconds) / 86_400;
  same("its state and its days", [nameIn(SubscriptionStateSchema, made.state), days], ["ACTIVE", 1]);
  const { metadata } = await refused("ALREADY_EXISTS", subscribe(shop));
  const paid = [atFirst - daily.priceMicros, atFirst + credits(45)];
  same("what buyer and provider hold then", await walletsOf(shop), paid);

  const count = Number(daily.includedRequests);
  const tasks = await Promise.all(Array.from({ length: count }, () => buy(shop, "included in the day")));
  for (const task of tasks) {
    same("what is answered", outputOf(task), { words: 4 });
    const { charge, amountMicros, subscriptionId } = task.receipt!;
    same("its receipt", [charge, amountMicros, subscriptionId], [Charge.INCLUDED, 0n, made.subscriptionId]);
  }
  same("what both hold after ten requests", await walletsOf(shop), paid);
  const [now] = (await shop.buyer.admin(SubscriptionService).listSubscriptions({})).subscriptions;
  same("how many were used", now?.usedRequests, daily.includedRequests);
  return {
    proof: `${creditsText(daily.priceMicros)} credits for the day, ${creditsText(credits(45))} of them to the provider; ${count} requests at once are INCLUDED and cost nothing more: the buyer still has ${creditsText(paid[0]!)}; a second one is refused (ALREADY_EXISTS)`,
    traceId: metadata.trace_id!,
  };
}
