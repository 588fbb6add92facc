/** Deliveries and their attempts as they are stored. */
import { type Queryable, sql, type Tx } from "../db/db.ts";
import type { Position } from "../rpc/cursor.ts";
import type { WebhookRef } from "./store.ts";

/** `state` is the number of DeliveryState; `payload` is sealed as in the outbox. */
export type DeliveryRow = {
  readonly org_id: string;
  readonly webhook_id: string;
  readonly event_id: string;
  readonly type: string;
  readonly agent_id: string;
  readonly event_ms: number;
  readonly trace_id: string;
  readonly state: number;
  readonly attempts: number;
  readonly failures: number;
  readonly next_ms: number;
  readonly lease_token: string;
  readonly attempt_ms: number | null;
  readonly end_ms: number | null;
  readonly payload: Uint8Array;
};

/** `response` is sealed; `status` 0: there was no answer. */
export type AttemptRow = {
  readonly event_id: string;
  readonly attempt: number;
  readonly start_ms: number;
  readonly took_ms: number;
  readonly status: number;
  readonly error: string;
  readonly response: Uint8Array;
};

/** Which delivery. */
export type DeliveryRef = WebhookRef & { readonly eventId: string };

/** How many attempts of a delivery are kept. */
export const keptAttempts = 50;

/** The columns of a {@link DeliveryRow}. */
export const deliveryColumns = sql`org_id, webhook_id, event_id, type, agent_id, event_ms, trace_id, state, attempts, failures, next_ms, lease_token, attempt_ms, end_ms, payload`;
const keyOf = ({ orgId, webhookId, eventId }: DeliveryRef) =>
  sql`org_id = ${orgId} and webhook_id = ${webhookId} and event_id = ${eventId}`;

export const findDelivery = (db: Queryable, ref: DeliveryRef): Promise<DeliveryRow | undefined> =>
  db.one<DeliveryRow>(sql`select ${deliveryColumns} from webhook_delivery where ${keyOf(ref)}`);

export const lockDelivery = (tx: Tx, ref: DeliveryRef): Promise<DeliveryRow | undefined> =>
  tx.one<DeliveryRow>(sql`select ${deliveryColumns} from webhook_delivery where ${keyOf(ref)} ${tx.dialect.forUpdate}`);

/** Newest event first, along the index of the state or of the time. `state` 0: any. */
export function listDeliveries(
  db: Queryable,
  { orgId, webhookId }: WebhookRef,
  state: number,
  after: Position | undefined,
  limit: number,
): Promise<DeliveryRow[]> {
  const [ms, eventId] = (after ?? []) as [number, string];
  const only = state === 0 ? sql`` : sql`and state = ${state}`;
  const before = after ? sql`and (event_ms, event_id) < (${ms}, ${eventId})` : sql``;
  return db.all<DeliveryRow>(sql`
    select ${deliveryColumns} from webhook_delivery where org_id = ${orgId} and webhook_id = ${webhookId} ${only} ${before}
    order by event_ms desc, event_id desc limit ${limit}`);
}

/** Oldest event first, after a position: what a replay walks. */
export const deliveriesSince = (
  db: Queryable,
  { orgId, webhookId }: WebhookRef,
  [ms, eventId]: readonly [number, string],
  limit: number,
): Promise<Pick<DeliveryRow, "event_id" | "event_ms" | "state">[]> =>
  db.all(sql`
    select event_id, event_ms, state from webhook_delivery
    where org_id = ${orgId} and webhook_id = ${webhookId} and (event_ms, event_id) > (${ms}, ${eventId})
    order by event_ms, event_id limit ${limit}`);

/** The attempts of one webhook's deliveries that ended, oldest first: by their keys. */
export const attemptsOf = (
  db: Queryable,
  { orgId, webhookId }: WebhookRef,
  eventIds: ReturnType<typeof sql>,
): Promise<AttemptRow[]> =>
  db.all<AttemptRow>(sql`
    select event_id, attempt, start_ms, took_ms, status, error, response from webhook_attempt
    where org_id = ${orgId} and webhook_id = ${webhookId} and event_id in (${eventIds}) order by event_id, attempt`);

/** Writes down an attempt that ended, and forgets the one that is one too many. */
export async function insertAttempt(tx: Tx, ref: DeliveryRef, row: Omit<AttemptRow, "event_id">): Promise<void> {
  const { orgId, webhookId, eventId } = ref;
  await tx.run(sql`
    insert into webhook_attempt (org_id, webhook_id, event_id, attempt, start_ms, took_ms, status, error, response)
    values (${orgId}, ${webhookId}, ${eventId}, ${row.attempt}, ${row.start_ms}, ${row.took_ms}, ${row.status}, ${row.error}, ${row.response})`);
  if (row.attempt > keptAttempts)
    await tx.run(sql`delete from webhook_attempt where ${keyOf(ref)} and attempt <= ${row.attempt - keptAttempts}`);
}

/** How a leased attempt leaves its delivery. */
export type Outcome = {
  readonly state: number;
  readonly failures: number;
  readonly nextMs: number;
  readonly endMs: number | null;
};

/** Ends the attempt under way; false when its lease was lost, and nothing was changed. */
export const endAttempt = async (
  tx: Tx,
  ref: DeliveryRef,
  leaseToken: string,
  outcome: Outcome,
  now: number,
): Promise<boolean> =>
  (await tx.run(sql`
    update webhook_delivery set state = ${outcome.state}, failures = ${outcome.failures}, next_ms = ${outcome.nextMs}, end_ms = ${outcome.endMs},
      lease_token = '', touch_ms = ${now}
    where ${keyOf(ref)} and lease_token = ${leaseToken}`)) === 1;

/** Begins a new series of attempts, unless one is under way: that is left to go on. */
export const restart = (tx: Tx, ref: DeliveryRef, now: number): Promise<number> =>
  tx.run(sql`
    update webhook_delivery set state = 1, failures = 0, next_ms = ${now}, end_ms = null, touch_ms = ${now} where ${keyOf(ref)} and lease_token = ''`);
