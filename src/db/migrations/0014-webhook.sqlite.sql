-- Webhooks: URLs that are told of events.

create table webhook (
  org_id text not null,
  webhook_id text not null,
  -- Empty: the organisation's own.
  agent_id text not null,
  url text not null,
  description text not null,
  -- As given, JSON.
  event_types text not null,
  disabled integer not null,
  -- The numbers of DisableReason.
  disable_reason integer not null,
  disable_ms integer,
  -- Since when all attempts have failed.
  failing_ms integer,
  former_expire_ms integer,
  create_ms integer not null,
  update_ms integer not null,
  revision integer not null,
  secrets blob not null,
  primary key (org_id, webhook_id)
) strict;
create index webhook_agent on webhook (org_id, agent_id, webhook_id);

-- Whom an event goes to: one row a pattern, so that an event finds its webhooks by the key, and none is read for it where there is none.
create table webhook_subscription (
  org_id text not null,
  pattern text not null,
  agent_id text not null,
  webhook_id text not null,
  primary key (org_id, pattern, agent_id, webhook_id)
) strict, without rowid;
create index webhook_subscription_webhook on webhook_subscription (org_id, webhook_id);

-- Events on their way. States are the numbers of DeliveryState: 1 pending, 2 delivered, 3 failed.
create table webhook_delivery (
  org_id text not null,
  webhook_id text not null,
  event_id text not null,
  type text not null,
  agent_id text not null,
  event_ms integer not null,
  trace_id text not null,
  state integer not null,
  attempts integer not null,
  -- Of this series of attempts.
  failures integer not null,
  -- When it is due; while an attempt is under way, when its lease ends.
  next_ms integer not null,
  -- Of the attempt under way; empty unless there is one.
  lease_token text not null,
  attempt_ms integer,
  end_ms integer,
  -- When it was changed last.
  touch_ms integer not null,
  -- Sealed, the same for all deliveries of an event.
  payload blob not null,
  primary key (org_id, webhook_id, event_id)
) strict;
create index webhook_delivery_time on webhook_delivery (org_id, webhook_id, event_ms, event_id);
create index webhook_delivery_state on webhook_delivery (org_id, webhook_id, state, event_ms, event_id);
-- Those of the sender and the sweep, which serve all organisations.
create index webhook_delivery_due on webhook_delivery (webhook_id, next_ms) where state = 1;
create index webhook_delivery_leased on webhook_delivery (webhook_id, next_ms) where state = 1 and lease_token <> '';
create index webhook_delivery_age on webhook_delivery (touch_ms);

create table webhook_attempt (
  org_id text not null,
  webhook_id text not null,
  event_id text not null,
  attempt integer not null,
  start_ms integer not null,
  took_ms integer not null,
  status integer not null,
  error text not null,
  response blob not null,
  primary key (org_id, webhook_id, event_id, attempt)
) strict;

-- Webhooks that are gone, and whose deliveries are being removed.
create table webhook_drop (
  org_id text not null,
  webhook_id text not null,
  primary key (org_id, webhook_id)
) strict, without rowid;
