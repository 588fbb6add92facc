/** Sending events once more. */
import { DeliveryState } from "../../gen/moltwire/webhook/v1/delivery_pb.ts";
import { join, sql, type Tx } from "../db/db.ts";
import { deliveriesSince } from "./delivery-store.ts";
import { sendTopic } from "./fan-out.ts";
import type { WebhookRef } from "./store.ts";

/** Deliveries that one call looks at. */
export const replayBatch = 1_000;

/** A place in a webhook's deliveries, by the time of their events. */
export type ReplayPosition = readonly [eventMs: number, eventId: string];

/** What a step did, and where the next one begins; undefined: there is none. */
export type ReplayStep = { readonly replayed: number; readonly next: ReplayPosition | undefined };

/**
 * Begins new series of attempts for what ended after a position: the events that failed, or all. What is pending anyway is left to its own series.
 */
export async function replayAfter(
  tx: Tx,
  ref: WebhookRef,
  after: ReplayPosition,
  includeDelivered: boolean,
  now: number,
): Promise<ReplayStep> {
  const rows = await deliveriesSince(tx, ref, after, replayBatch);
  const last = rows.at(-1);
  const ids = rows
    .filter(({ state }) => state === DeliveryState.FAILED || (includeDelivered && state === DeliveryState.DELIVERED))
    .map(({ event_id }) => event_id);
  const next: ReplayPosition | undefined =
    last && rows.length === replayBatch ? [last.event_ms, last.event_id] : undefined;
  if (ids.length === 0) return { replayed: 0, next };
  const replayed = await tx.run(sql`
    update webhook_delivery set state = 1, failures = 0, next_ms = ${now}, end_ms = null, touch_ms = ${now}
    where org_id = ${ref.orgId} and webhook_id = ${ref.webhookId} and event_id in (${join(ids)}) and state <> 1`);
  tx.ring(sendTopic);
  return { replayed, next };
}
