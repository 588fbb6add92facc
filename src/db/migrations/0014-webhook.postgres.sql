-- Webhooks: URLs that are told of events.

create table webhook (
  org_id text collate "C" not null,
  webhook_id text collate "C" not null,
  -- Empty: the organisation's own.
  agent_id text collate "C" not null,
  url text collate "C" not null,
  description text collate "C" not null,
  -- As given, JSON.
  event_types text collate "C" not null,
  disabled bigint not null,
  -- The numbers of DisableReason.
  disable_reason bigint not null,
  disable_ms bigint,
  -- Since when all attempts have failed.
  failing_ms bigint,
  former_expire_ms bigint,
  create_ms bigint not null,
  update_ms bigint not null,
  revision bigint not null,
  secrets bytea not null,
  primary key (org_id, webhook_id)
);
create index webhook_agent on webhook (org_id, agent_id, webhook_id);

-- Whom an event goes to: one row a pattern, so that an event finds its webhooks by the key, and none is read for it where there is none.
create table webhook_subscription (
  org_id text collate "C" not null,
  pattern text collate "C" not null,
  agent_id text collate "C" not null,
  webhook_id text collate "C" not null,
  primary key (org_id, pattern, agent_id, webhook_id)
);
create index webhook_subscription_webhook on webhook_subscription (org_id, webhook_id);

-- Events on their way. States are the numbers of DeliveryState: 1 pending, 2 delivered, 3 failed.
create table webhook_delivery (
  org_id text collate "C" not null,
  webhook_id text collate "C" not null,
  event_id text collate "C" not null,
  type text collate "C" not null,
  agent_id text collate "C" not null,
  event_ms bigint not null,
  trace_id text collate "C" not null,
  state bigint not null,
  attempts bigint not null,
  -- Of this series of attempts.
  failures bigint not null,
  -- When it is due; while an attempt is under way, when its lease ends.
  next_ms bigint not null,
  -- Of the attempt under way; empty unless there is one.
  lease_token text collate "C" not null,
  attempt_ms bigint,
  end_ms bigint,
  -- When it was changed last.
  touch_ms bigint not null,
  -- Sealed, the same for all deliveries of an event.
  payload bytea not null,
  primary key (org_id, webhook_id, event_id)
);
create index webhook_delivery_time on webhook_delivery (org_id, webhook_id, event_ms, event_id);
create index webhook_delivery_state on webhook_delivery (org_id, webhook_id, state, event_ms, event_id);
-- Those of the sender and the sweep, which serve all organisations.
create index webhook_delivery_due on webhook_delivery (webhook_id, next_ms) where state = 1;
create index webhook_delivery_leased on webhook_delivery (webhook_id, next_ms) where state = 1 and lease_token <> '';
create index webhook_delivery_age on webhook_delivery (touch_ms);

create table webhook_attempt (
  org_id text collate "C" not null,
  webhook_id text collate "C" not null,
  event_id text collate "C" not null,
  attempt bigint not null,
  start_ms bigint not null,
  took_ms bigint not null,
  status bigint not null,
  error text collate "C" not null,
  response bytea not null,
  primary key (org_id, webhook_id, event_id, attempt)
);

-- Webhooks that are gone, and whose deliveries are being removed.
create table webhook_drop (
  org_id text collate "C" not null,
  webhook_id text collate "C" not null,
  primary key (org_id, webhook_id)
);
