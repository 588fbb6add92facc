import { type TransactionStep, TransactionStepSchema } from "../../../gen/moltwire/exchange/v1/ledger_pb.ts";
import { badField, Fault } from "../../errors.ts";
import type { Refusal } from "./rule.ts";

const microsPerCredit = 1_000_000n;

/** Micro-credits for people: "12.5". */
export function creditsText(micros: bigint): string {
  const sign = micros < 0n ? "-" : "";
  const size = micros < 0n ? -micros : micros;
  const part = String(size % microsPerCredit)
    .padStart(6, "0")
    .replace(/0+$/, "");
  return `${sign}${size / microsPerCredit}${part && `.${part}`}`;
}

/** A refusal as it is answered. */
export function toFault(refusal: Exclude<Refusal, { readonly why: "ended" }>): Fault {
  switch (refusal.why) {
    case "insufficient": {
      const { account, available, required } = refusal;
      const message = `${account.accountId} has ${creditsText(available)} credits available, and ${creditsText(required)} are needed`;
      return new Fault("INSUFFICIENT_CREDITS", message, {
        account_id: account.accountId,
        available_micros: String(available),
        required_micros: String(required),
      });
    }
    case "overflow":
      return new Fault("QUOTA_EXCEEDED", `${refusal.account.accountId}: there cannot be as many credits`, {
        resource: "credits",
        account_id: refusal.account.accountId,
      });
    case "amount":
      return badField("amount_micros", `must be from ${refusal.least} to ${refusal.most}`);
  }
}

/** What was set aside can end no more. */
export const endedFault = (pendingId: string, step: TransactionStep): Fault =>
  new Fault("FAILED_PRECONDITION", `what ${pendingId} set aside has ended already`, {
    state: TransactionStepSchema.value[step]!.localName,
  });

/** Another transfer has the id. */
export const reusedFault = (transferId: string): Fault =>
  new Fault("IDEMPOTENCY_KEY_REUSED", `the transfer id ${transferId} was used before for another transfer`, {
    idempotency_key: transferId,
    field: "transfer_id",
  });
