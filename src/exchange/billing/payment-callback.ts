/** `POST /payments/callback`: where whoever takes payments for the operator confirms them; see PaymentConfirmation. Bound to no provider: what is signed is the body as it came. */
import { create, fromJsonString, toJsonString } from "@bufbuild/protobuf";
import type { FastifyInstance, FastifyRequest } from "fastify";
import {
  type PaymentConfirmation,
  PaymentConfirmationSchema,
  type PaymentReceipt,
  PaymentReceiptSchema,
} from "../../../gen/moltwire/exchange/v1/payment_pb.ts";
import type { App } from "../../app.ts";
import { Fault, toConnectError } from "../../errors.ts";
import { clientAddress } from "../../rpc/client-address.ts";
import { addressGroup, take } from "../../rpc/limits.ts";
import { refuse } from "../../rpc/refuse.ts";
import { traceContext } from "../../rpc/trace-context.ts";
import { check } from "../../rpc/validate.ts";
import { type SignatureFlaw, signatureFlaw, toleranceMs } from "../../webhook/signature.ts";
import { confirmPayment, paymentPath } from "./payment.ts";

const maxBodyBytes = 65_536;
const strangers: ReadonlySet<string> = new Set(["NOT_FOUND", "SIGNATURE_INVALID", "RATE_LIMITED"]);

/** Serves it, whether payments are taken or not. What is not a fault of the asker's goes to the server's own handler: the asker tries again, as nothing counts twice. */
export function servePayments(http: FastifyInstance, app: App): void {
  void http.register(async (scope) => {
    const takesBytes = { parseAs: "buffer", bodyLimit: maxBodyBytes } as const;
    scope.removeAllContentTypeParsers();
    scope.addContentTypeParser("*", takesBytes, (_request, body, done) => done(null, body));
    scope.post(paymentPath, async (request, reply) => {
      const { traceId } = traceContext(request.headers.traceparent?.toString() ?? null, app.ids);
      reply.header("x-trace-id", traceId);
      try {
        const receipt = await confirmed(app, request, traceId);
        return reply.type("application/json").send(toJsonString(PaymentReceiptSchema, receipt));
      } catch (error) {
        if (!(error instanceof Fault)) throw error;
        // Of strangers there is no end.
        const level = strangers.has(error.reason) ? "debug" : "warn";
        app.log[level]({ reason: error.reason, trace_id: traceId }, `a payment was not confirmed: ${error.message}`);
        return refuse(reply, request, toConnectError(error, traceId));
      }
    });
    scope.setErrorHandler((error: { readonly statusCode?: number }, request, reply) => {
      if (error.statusCode !== 413) throw error;
      const metadata = { field: "body", limit: String(maxBodyBytes) };
      const fault = new Fault("PAYLOAD_TOO_LARGE", `the body has more than ${maxBodyBytes} bytes`, metadata);
      return refuse(reply, request, toConnectError(fault));
    });
  });
}

async function confirmed(app: App, request: FastifyRequest, traceId: string): Promise<PaymentReceipt> {
  const { paymentSecrets } = app.config;
  // Only what is refused is counted: a provider confirms as many payments as there are.
  const countStranger = () => take(app.limiters.doors, "address", addressGroup(clientAddress(request)), new Headers());
  if (paymentSecrets.length === 0) {
    await countStranger();
    throw new Fault("NOT_FOUND", "this server takes no payments: its operator has set no MOLTWIRE_PAYMENT_SECRET", {
      resource: "payments",
    });
  }
  const body = request.body instanceof Uint8Array ? request.body : new Uint8Array();
  const now = app.clock.now();
  const header = (name: string): string => request.headers[name]?.toString() ?? "";
  const flaw = signatureFlaw(paymentSecrets, header, body, now);
  if (flaw) {
    await countStranger();
    throw new Fault("SIGNATURE_INVALID", flaws[flaw], { detail: flaw });
  }
  const payment = parsed(body);
  check(PaymentConfirmationSchema, payment);
  return create(
    PaymentReceiptSchema,
    await app.db.tx((tx) => confirmPayment(tx, app, { payment, body, traceId, now })),
  );
}

function parsed(body: Uint8Array): PaymentConfirmation {
  try {
    return fromJsonString(PaymentConfirmationSchema, Buffer.from(body).toString(), { ignoreUnknownFields: true });
  } catch (error) {
    throw new Fault(
      "MALFORMED_REQUEST",
      `no PaymentConfirmation as JSON: ${(error as Error).message}`,
      {},
      { cause: error },
    );
  }
}

const flaws: Readonly<Record<SignatureFlaw, string>> = {
  MISSING: "send webhook-id, webhook-timestamp and webhook-signature, as Standard Webhooks says",
  TIME: `webhook-timestamp is no time in seconds that is at most ${toleranceMs / 60_000} minutes off`,
  WRONG: "webhook-signature is not of this body and MOLTWIRE_PAYMENT_SECRET",
};
