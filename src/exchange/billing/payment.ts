/** A payment that an organisation has made to whoever takes payments for the operator. */
import { createHash } from "node:crypto";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { Role } from "../../../gen/moltwire/api/v1/access_pb.ts";
import { TransactionKind } from "../../../gen/moltwire/exchange/v1/ledger_pb.ts";
import type { PaymentConfirmation, PaymentReceiptSchema } from "../../../gen/moltwire/exchange/v1/payment_pb.ts";
import { AuditKind } from "../../../gen/moltwire/ops/v1/admin_service_pb.ts";
import type { App } from "../../app.ts";
import { sql, type Tx } from "../../db/db.ts";
import { Fault, notFound } from "../../errors.ts";
import { insertAudit } from "../../ops/audit-store.ts";
import { emit } from "../../ops/outbox.ts";
import { issuanceOf, walletOf } from "../ledger/account.ts";
import { postOnce } from "../ledger/post.ts";
import { toCreditTransfer } from "./message.ts";

/** Where payments are confirmed; see PaymentConfirmation. */
export const paymentPath = "/payments/callback";

/** What is confirmed, as it came, and where it stands in a trace. */
export type Confirmed = {
  readonly payment: PaymentConfirmation;
  readonly body: Uint8Array;
  readonly traceId: string;
  readonly now: number;
};

/**
 * Gives the organisation its credits, and tells it and its audit log of them: once for each reference, and again only the answer. Throws NOT_FOUND, IDEMPOTENCY_KEY_REUSED for a
 * reference that was confirmed with another amount or for another organisation, and QUOTA_EXCEEDED.
 */
export async function confirmPayment(
  tx: Tx,
  app: App,
  { payment, body, traceId, now }: Confirmed,
): Promise<MessageInitShape<typeof PaymentReceiptSchema>> {
  const { orgId, amountMicros, providerReference, currencyNote } = payment;
  if (!(await tx.one(sql`select 1 as found from organization where org_id = ${orgId}`)))
    throw notFound("organization", orgId);
  const transferId = `payment/${providerReference}`;
  const parties = { from: issuanceOf(app.homeOrgId), to: walletOf(orgId), amount: amountMicros };
  const move = { does: "move", transferId, kind: TransactionKind.TOP_UP, reference: providerReference } as const;
  const { transfers, isNew } = await postOnce(tx, [{ ...move, ...parties }], now).catch((error: unknown) => {
    throw isReused(error) ? otherPayment(providerReference) : error;
  });
  if (isNew) {
    await insertAudit(tx, app, {
      ...{ orgId, kind: AuditKind.CHANGE, timeMs: now, method: `POST ${paymentPath}`, role: Role.PUBLIC },
      ...{ keyId: "", agentId: "", traceId },
      resource: { org_id: orgId, transfer_id: transferId },
      requestSha256: createHash("sha256").update(body).digest("hex"),
    });
    await emit(tx, app, {
      ...{ orgId, type: "payment.received", agentId: "", timeMs: now, traceId },
      payload: {
        transfer_id: transferId,
        amount_micros: String(amountMicros),
        provider_reference: providerReference,
        currency_note: currencyNote,
      },
    });
  }
  return { transfer: toCreditTransfer(transfers[0]!) };
}

const isReused = (error: unknown): boolean => error instanceof Fault && error.reason === "IDEMPOTENCY_KEY_REUSED";

const otherPayment = (reference: string): Fault =>
  new Fault(
    "IDEMPOTENCY_KEY_REUSED",
    `the payment ${reference} was confirmed before with another amount or for another organization`,
    { idempotency_key: reference, field: "provider_reference" },
  );
