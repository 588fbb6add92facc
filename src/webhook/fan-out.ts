/** The seam between the outbox and webhooks: an event and its deliveries are written by one step of one transaction. */
import { type Queryable, type Sql, sql } from "../db/db.ts";
import { patternsOf } from "./event-types.ts";

/** Rung when something is to be sent. */
export const sendTopic = "webhooks";

/** What decides who is told of an event. */
export type Told = { readonly orgId: string; readonly type: string; readonly agentId: string };

/**
 * The subscriptions `s` that an event goes to, by their primary key: up to six probes, and no row is read where nobody asked for it. As feeds do (see
 * `concerns` in src/ops/visible.ts), an event that concerns an agent goes to that agent's webhooks and the organisation's, one that concerns the whole
 * organisation to all.
 */
const subscribed = ({ orgId, type, agentId }: Told): Sql => {
  const [all, area, name] = patternsOf(type);
  const owners = agentId === "" ? sql`` : sql`and s.agent_id in ('', ${agentId})`;
  return sql`webhook_subscription s where s.org_id = ${orgId} and s.pattern in (${all}, ${area}, ${name}) ${owners}`;
};

/** The webhooks an event goes to. */
export const subscribers = (db: Queryable, told: Told): Promise<{ readonly webhook_id: string }[]> =>
  db.all(sql`select s.webhook_id from ${subscribed(told)}`);

/** What of an event becomes columns of its deliveries; `payload` sealed for them. */
export type StoredEvent = Told & {
  readonly eventId: string;
  readonly timeMs: number;
  readonly traceId: string;
  readonly payload: Uint8Array;
};

const columns = sql`org_id, webhook_id, event_id, type, agent_id, event_ms, trace_id, payload, state, attempts, failures, next_ms, lease_token, touch_ms`;

/** The deliveries of an event whose values are at hand. */
export const insertDeliveries = (event: StoredEvent): Sql => sql`
  insert into webhook_delivery (${columns})
  select s.org_id, s.webhook_id, ${event.eventId}, ${event.type}, ${event.agentId}, ${event.timeMs}, ${event.traceId}, ${event.payload},
    1, 0, 0, ${event.timeMs}, '', ${event.timeMs}
  from ${subscribed(event)}`;

/** The deliveries of an event that the same statement inserts, as `event`: its columns have types, which parameters have not. */
export const insertDeliveriesOf = (event: Told, payload: Uint8Array): Sql => sql`
  insert into webhook_delivery (${columns})
  select s.org_id, s.webhook_id, event.event_id, event.type, event.agent_id, event.time_ms, event.trace_id, ${payload}::bytea,
    1, 0, 0, event.time_ms, '', event.time_ms
  from event, ${subscribed(event)}`;

/** One delivery of an event that is not in the outbox. */
export const insertDelivery = (event: StoredEvent, webhookId: string): Sql => sql`
  insert into webhook_delivery (${columns})
  values (${event.orgId}, ${webhookId}, ${event.eventId}, ${event.type}, ${event.agentId}, ${event.timeMs}, ${event.traceId}, ${event.payload},
    1, 0, 0, ${event.timeMs}, '', ${event.timeMs})`;
