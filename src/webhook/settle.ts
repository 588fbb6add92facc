/** What an attempt that ended does to its delivery and its webhook. */
import { DeliveryState } from "../../gen/moltwire/webhook/v1/delivery_pb.ts";
import { DisableReason } from "../../gen/moltwire/webhook/v1/webhook_pb.ts";
import type { App } from "../app.ts";
import { sql, type Tx } from "../db/db.ts";
import { emit } from "../ops/outbox.ts";
import { type DeliveryRef, type DeliveryRow, endAttempt, insertAttempt, type Outcome } from "./delivery-store.ts";
import { sendTopic } from "./fan-out.ts";
import { sealResponse } from "./response.ts";
import { givenUp, maxAttempts, nextAttemptMs } from "./schedule.ts";
import type { Sent } from "./send.ts";
import { lockWebhook, updateWebhook, type WebhookRow } from "./store.ts";

/** How an attempt ended, for those who count: `lost` when another sender has the delivery by now. */
export type Settled = "delivered" | "retried" | "failed" | "unsent" | "lost";

type Needs = Pick<App, "vault" | "ids">;

/** Rung when an attempt of the delivery has ended. */
export const deliveryTopic = ({ webhookId, eventId }: DeliveryRef): string => `delivery:${webhookId}:${eventId}`;

/**
 * Writes down an attempt. A webhook is locked before its delivery, as a claim does, and only where the attempt may change it.
 */
export async function settle(tx: Tx, app: Needs, row: DeliveryRow, sent: Sent, now: number): Promise<Settled> {
  const ref = { orgId: row.org_id, webhookId: row.webhook_id, eventId: row.event_id };
  if (sent.result === "unsent") return giveBack(tx, ref, row, now);
  const delivered = sent.result === "delivered";
  const webhook = delivered ? await forgive(tx, ref) : await lockWebhook(tx, ref);
  const failures = delivered ? row.failures : row.failures + 1;
  const gone = sent.status === 410;
  const again = delivered || gone ? undefined : nextAttemptMs(failures, now, app.ids.chance(), sent.retryAfterMs);
  const outcome: Outcome =
    again !== undefined
      ? { state: DeliveryState.PENDING, failures, nextMs: again, endMs: null }
      : {
          state: delivered ? DeliveryState.DELIVERED : DeliveryState.FAILED,
          failures: Math.min(failures, maxAttempts),
          nextMs: now,
          endMs: now,
        };
  if (!(await endAttempt(tx, ref, row.lease_token, outcome, now))) return "lost";
  await insertAttempt(tx, ref, {
    attempt: row.attempts,
    start_ms: row.attempt_ms ?? now,
    took_ms: sent.tookMs,
    status: sent.status,
    error: sent.error,
    response: sealResponse(app, ref, row.attempts, sent.response),
  });
  if (webhook) await noteFailure(tx, app, webhook, { status: sent.status, failures }, now);
  tx.ring(deliveryTopic(ref));
  return delivered ? "delivered" : again === undefined ? "failed" : "retried";
}

/** The server stops, or has no place: as if the attempt had not been. */
async function giveBack(tx: Tx, ref: DeliveryRef, row: DeliveryRow, now: number): Promise<Settled> {
  const given = await tx.run(sql`
    update webhook_delivery set lease_token = '', attempts = attempts - 1, next_ms = ${now}, touch_ms = ${now}
    where org_id = ${ref.orgId} and webhook_id = ${ref.webhookId} and event_id = ${ref.eventId} and lease_token = ${row.lease_token}`);
  if (given === 0) return "lost";
  tx.ring(sendTopic);
  return "unsent";
}

/** The endpoint is fine again. Writes nothing where it was. */
async function forgive(tx: Tx, { orgId, webhookId }: DeliveryRef): Promise<undefined> {
  await tx.run(sql`
    update webhook set failing_ms = null where org_id = ${orgId} and webhook_id = ${webhookId} and failing_ms is not null`);
}

/** A failed attempt begins or prolongs the time of failing, and can be the last. The caller has locked the webhook. */
async function noteFailure(
  tx: Tx,
  app: Needs,
  webhook: WebhookRow,
  { status, failures }: { readonly status: number; readonly failures: number },
  now: number,
): Promise<void> {
  if (webhook.disabled) return;
  const failingMs = webhook.failing_ms ?? now;
  const why = givenUp(status, failures, failingMs, now);
  if (!why) {
    if (webhook.failing_ms === null)
      await tx.run(sql`
        update webhook set failing_ms = ${now} where org_id = ${webhook.org_id} and webhook_id = ${webhook.webhook_id}`);
    return;
  }
  await updateWebhook(tx, {
    ...webhook,
    disabled: 1,
    disable_reason: DisableReason[why],
    disable_ms: now,
    failing_ms: failingMs,
    update_ms: now,
    revision: webhook.revision + 1,
  });
  await emit(tx, app, {
    orgId: webhook.org_id,
    type: "webhook.disabled",
    agentId: webhook.agent_id,
    timeMs: now,
    traceId: app.ids.trace(),
    payload: {
      webhook_id: webhook.webhook_id,
      url: webhook.url,
      reason: why,
      failing_since_time: new Date(failingMs).toISOString(),
    },
  });
}
