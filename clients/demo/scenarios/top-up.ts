/** The operator gives an organisation credits: once by one id, however often it is asked; and its statement adds up to its balance. */

import { BillingService } from "../../../gen/moltwire/exchange/v1/billing_service_pb.ts";
import { TransactionKind } from "../../../gen/moltwire/exchange/v1/ledger_pb.ts";
import { creditsText } from "../../cli/credits.ts";
import { newTrace } from "../planner.ts";
import { refused, same } from "./claim.ts";
import { addPartner } from "./partner.ts";
import type { Outcome, World } from "./scenario.ts";
import { atFirst, credits, walletOf } from "./shop.ts";

const amountMicros = credits(500);

/** Tops one up twice by the same id. */
export async function topUp(world: World): Promise<Outcome> {
  const { orgId, admin } = await addPartner(world, "top-up");
  const first = await walletOf(admin);
  same("what it begins with", first, atFirst);
  const transferId = `txn_${newTrace().traceId}`;
  const wish = { orgId, amountMicros, transferId, reference: "invoice 1" };
  const { metadata } = await refused("ROLE_REQUIRED", admin(BillingService).topUp(wish));
  for (let n = 0; n < 2; n++) {
    const { transfer, balance } = await world.operator(BillingService).topUp(wish);
    same(
      "the transfer, and the balance after it",
      [transfer!.transferId, balance!.balanceMicros],
      [transferId, first + amountMicros],
    );
  }
  await refused(
    "IDEMPOTENCY_KEY_REUSED",
    world.operator(BillingService).topUp({ ...wish, amountMicros: amountMicros + 1n }),
  );
  const held = await walletOf(admin);
  const { transactions } = await admin(BillingService).listTransactions({});
  const topUps = transactions.filter(({ kind }) => kind === TransactionKind.TOP_UP);
  same(
    "the sum of its statement",
    transactions.reduce((sum, line) => sum + line.amountMicros, 0n),
    held,
  );
  same("its lines with this reference", topUps.filter(({ reference }) => reference === wish.reference).length, 1);
  return {
    proof: `${creditsText(first)} + ${creditsText(amountMicros)} = ${creditsText(held)} credits, and the sum of its ${transactions.length} lines; asked for again by the same id it is given once; an administrator may not (ROLE_REQUIRED, ${metadata.required_role})`,
    traceId: metadata.trace_id!,
  };
}
