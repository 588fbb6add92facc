/** Who sends what: a delivery is leased to one sender at a time, and each webhook has only so many under way, in all replicas together. */
import type { App } from "../app.ts";
import { join, type Queryable, sql, type Tx } from "../db/db.ts";
import { type DeliveryRow, deliveryColumns, insertAttempt } from "./delivery-store.ts";
import { sealResponse } from "./response.ts";
import { lockWebhookUnlessTaken, type WebhookRef, type WebhookRow } from "./store.ts";

/** How long one attempt may take, everything included, unless a test says otherwise. */
export const attemptTimeoutMs = 10_000;
/** How long a delivery is another's after its sender was lost: longer than an attempt, and its settling. */
export const leaseMs = 20_000;
/** Requests under way to one webhook; to one whose last attempt failed, only one, so that dead endpoints hold few of the sender's places. */
export const maxPerWebhook = 8;

/** A webhook with something pending, and since or from when that is due. */
export type PendingRow = {
  readonly webhook_id: string;
  readonly org_id: string;
  readonly next_ms: number;
  /** 1: it is sent to; 0: it or its organisation is disabled; null: there is no such webhook any more. */
  readonly enabled: number | null;
  /** Since when all of its attempts have failed. */
  readonly failing_ms: number | null;
};

/** How many requests may be under way to a webhook. */
export const mostFor = ({ failing_ms }: Pick<WebhookRow, "failing_ms">): number =>
  failing_ms === null ? maxPerWebhook : 1;

/**
 * The webhooks after one that have something pending, whether or not it is due. Leaps from webhook to webhook along the index of what is pending, two probes
 * each, so that a backlog of any size costs what one delivery does.
 */
export const pendingWebhooks = (db: Queryable, after: string, limit: number): Promise<PendingRow[]> =>
  db.all<PendingRow>(sql`
    with recursive walk (webhook_id, n) as (
      select (select min(webhook_id) from webhook_delivery where state = 1 and webhook_id > ${after}), 1
      union all
      select (select min(d.webhook_id) from webhook_delivery d where d.state = 1 and d.webhook_id > walk.webhook_id), walk.n + 1
      from walk where walk.webhook_id is not null and walk.n < ${limit}),
    found as materialized (
      select walk.webhook_id,
        (select d.org_id from webhook_delivery d where d.state = 1 and d.webhook_id = walk.webhook_id order by d.next_ms limit 1) as org_id,
        (select d.next_ms from webhook_delivery d where d.state = 1 and d.webhook_id = walk.webhook_id order by d.next_ms limit 1) as next_ms
      from walk where walk.webhook_id is not null)
    select found.webhook_id, found.org_id, found.next_ms, case when w.disabled = 0 and o.disabled = 0 then 1 when w.disabled is null then null else 0 end as enabled, w.failing_ms
    from found left join webhook w on w.org_id = found.org_id and w.webhook_id = found.webhook_id
      left join organization o on o.org_id = found.org_id
    where found.org_id is not null
    order by found.webhook_id`);

/** What was leased: deliveries as they are with the attempt counted. */
export type Claimed = { readonly webhook: WebhookRow; readonly deliveries: readonly DeliveryRow[] };

/** Leases what is due of a webhook, longest due first, at most `room`; nothing while another sender is doing so. */
export async function claim(
  tx: Tx,
  app: Pick<App, "ids" | "vault">,
  ref: WebhookRef,
  room: number,
  now: number,
): Promise<Claimed | undefined> {
  // Locked, so that two senders do not both count the leases there are.
  const webhook = await lockWebhookUnlessTaken(tx, ref);
  if (!webhook || webhook.disabled) return undefined;
  const most = mostFor(webhook);
  const free = Math.min(room, most - (await countLeases(tx, ref.webhookId, now, most)));
  if (free <= 0) return undefined;
  const due = await tx.all<DeliveryRow>(sql`
    select ${deliveryColumns} from webhook_delivery where webhook_id = ${ref.webhookId} and state = 1 and next_ms <= ${now}
    order by next_ms limit ${free} ${tx.dialect.skipLocked}`);
  if (due.length === 0) return undefined;
  for (const lost of due.filter(({ lease_token }) => lease_token !== "")) await recordLost(tx, app, lost, now);
  const token = Buffer.from(app.ids.bytes(16)).toString("hex");
  const deliveries = await tx.all<DeliveryRow>(sql`
    update webhook_delivery set lease_token = ${token}, next_ms = ${now + leaseMs}, attempts = attempts + 1, attempt_ms = ${now}, touch_ms = ${now}
    where org_id = ${ref.orgId} and webhook_id = ${ref.webhookId} and event_id in (${join(due.map(({ event_id }) => event_id))})
    returning ${deliveryColumns}`);
  return { webhook, deliveries };
}

/** Leases that have not run out, counted up to a bound. */
export const countLeases = async (db: Queryable, webhookId: string, now: number, bound: number): Promise<number> =>
  (await db.one<{ n: number }>(sql`
    select count(*) as n from (
      select 1 as one from webhook_delivery where webhook_id = ${webhookId} and state = 1 and lease_token <> '' and next_ms > ${now} limit ${bound}) counted`))!
    .n;

/** An attempt whose sender was lost is listed too. It is nobody's failure, and does not shorten the series. */
const recordLost = (tx: Tx, app: Pick<App, "vault">, row: DeliveryRow, now: number): Promise<void> => {
  const ref = { orgId: row.org_id, webhookId: row.webhook_id, eventId: row.event_id };
  const start_ms = row.attempt_ms ?? now;
  const error = "the server stopped during this attempt; it may have arrived";
  const response = sealResponse(app, ref, row.attempts, "");
  return insertAttempt(tx, ref, { attempt: row.attempts, start_ms, took_ms: 0, status: 0, error, response });
};

/** A SQLite file has one process, so at its start nobody holds a lease: what was being sent is due at once. By the index of leases. */
export async function releaseLeases(tx: Tx, now: number): Promise<void> {
  if (tx.dialect.name === "sqlite")
    await tx.run(sql`update webhook_delivery set next_ms = ${now} where state = 1 and lease_token <> ''`);
}
