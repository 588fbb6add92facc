/** The outbox: every event is a row in the transaction that causes it, and so are its deliveries to webhooks. Feeds read from it. */
import type { JsonObject, MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { EventSchema } from "../../gen/moltwire/ops/v1/event_pb.ts";
import type { App } from "../app.ts";
import { type Queryable, sql, type Tx } from "../db/db.ts";
import { committedBefore, type LogPosition, settled, settledAfter } from "../db/log.ts";
import { insertDeliveries, insertDeliveriesOf, sendTopic } from "../webhook/fan-out.ts";
import { deliveryPlace } from "../webhook/payload.ts";
import { logFloor } from "./log-floor.ts";

/** The events there are so far. */
export type EventType =
  | "task.completed"
  | "task.failed"
  | "approval.requested"
  | "circuit.opened"
  | "deadletter.created"
  | "budget.warning"
  | "budget.exceeded"
  | "job.completed"
  | "job.failed"
  | "message.received"
  | "webhook.disabled"
  | "grant.revoked"
  | "marketplace.task_claimed"
  | "marketplace.task_delivered"
  | "marketplace.task_reviewed"
  | "marketplace.task_expired"
  | "subscription.paused"
  | "payment.received";

export type NewEvent = {
  readonly orgId: string;
  readonly type: EventType;
  /** The agent it concerns; empty: the whole organisation. */
  readonly agentId: string;
  readonly timeMs: number;
  readonly traceId: string;
  readonly payload: JsonObject;
};

/** An event as it is stored; `payload` is sealed JSON. */
export type EventRow = {
  readonly xid: number;
  readonly seq: number;
  readonly org_id: string;
  readonly event_id: string;
  readonly type: string;
  readonly agent_id: string;
  readonly time_ms: number;
  readonly trace_id: string;
  readonly payload: Uint8Array;
};

/** Rung after an event of the organisation is committed. */
export const eventsTopic = (orgId: string): string => `events:${orgId}`;

/** Writes an event and its deliveries to webhooks: seen by everyone if, and only if, the transaction commits. */
export async function emit(tx: Tx, app: Pick<App, "ids" | "vault">, event: NewEvent): Promise<void> {
  const eventId = app.ids.next("evt");
  const bytes = Buffer.from(JSON.stringify(event.payload));
  const payload = app.vault.seal(eventPlace(event.orgId, eventId), bytes);
  const told = app.vault.seal(deliveryPlace(event.orgId, eventId), bytes);
  const insert = sql`
    insert into outbox (org_id, xid, event_id, type, agent_id, time_ms, trace_id, payload)
    values (${event.orgId}, ${tx.dialect.xid}, ${eventId}, ${event.type}, ${event.agentId}, ${event.timeMs}, ${event.traceId}, ${payload})`;
  let deliveries: number;
  if (tx.dialect.name === "postgres") {
    // One statement, as each is a round trip. SQLite has none of this form, and needs none.
    deliveries = await tx.run(sql`with event as (${insert} returning *) ${insertDeliveriesOf(event, told)}`);
  } else {
    await tx.run(insert);
    deliveries = await tx.run(insertDeliveries({ ...event, eventId, payload: told }));
  }
  if (deliveries > 0) tx.ring(sendTopic);
  tx.ring(eventsTopic(event.orgId));
}

/** Where the payload of an event lies. */
export const eventPlace = (orgId: string, eventId: string) => ({ orgId, table: "outbox", id: eventId });

/** The settled events after a position, oldest first. */
export const readEvents = (db: Queryable, orgId: string, after: LogPosition, limit: number): Promise<EventRow[]> =>
  db.all<EventRow>(sql`
    select xid, seq, org_id, event_id, type, agent_id, time_ms, trace_id, payload from outbox
    where org_id = ${orgId} and ${settledAfter(db.dialect, after)} order by xid, seq limit ${limit}`);

/** The settled events before a position, or the last ones, newest first. */
export const readEventsBack = (
  db: Queryable,
  orgId: string,
  before: LogPosition | undefined,
  limit: number,
): Promise<EventRow[]> =>
  db.all<EventRow>(sql`
    select xid, seq, org_id, event_id, type, agent_id, time_ms, trace_id, payload from outbox
    where org_id = ${orgId} and ${settled(db.dialect)} ${before ? sql`and ${committedBefore(db.dialect, before)}` : sql``}
    order by xid desc, seq desc limit ${limit}`);

/** Where the log of an organisation ends now. */
export const lastEvent = async (db: Queryable, orgId: string): Promise<LogPosition> =>
  (await db.one<LogPosition>(sql`
    select xid, seq from outbox where org_id = ${orgId} and ${settled(db.dialect)} order by xid desc, seq desc limit 1`)) ??
  logFloor(db, orgId, "events");

export const toEvent = (
  app: Pick<App, "vault">,
  row: EventRow,
  cursor: string,
): MessageInitShape<typeof EventSchema> => ({
  cursor,
  eventId: row.event_id,
  type: row.type,
  agentId: row.agent_id,
  time: timestampFromMs(row.time_ms),
  traceId: row.trace_id,
  payload: JSON.parse(
    Buffer.from(app.vault.open(eventPlace(row.org_id, row.event_id), row.payload)).toString(),
  ) as JsonObject,
});
