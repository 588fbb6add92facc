-- Messages between agents. A log is an agent's inbox (its id is the agent's) or a channel's (`chn_…`); its row is its head, from which messages take their
-- sequence, and what its retention is counted in.
create table relay_log (
  org_id text collate "C" not null,
  log_id text collate "C" not null,
  -- The sequence of the last message, and up to which one they are no longer kept.
  head bigint not null,
  floor bigint not null,
  -- With those that have expired and are not swept yet.
  messages bigint not null,
  bytes bigint not null,
  primary key (org_id, log_id)
);

create table relay_message (
  org_id text collate "C" not null,
  log_id text collate "C" not null,
  sequence bigint not null,
  message_id text collate "C" not null,
  -- Empty for an administrator's own.
  sender_agent_id text collate "C" not null,
  label text collate "C" not null,
  thread_id text collate "C" not null,
  size_bytes bigint not null,
  create_ms bigint not null,
  expire_ms bigint,
  -- Of inboxes only.
  delivered_ms bigint,
  read_ms bigint,
  unread bigint not null,
  primary key (org_id, log_id, sequence)
);
create unique index relay_message_id on relay_message (org_id, message_id);
create index relay_message_sender on relay_message (org_id, sender_agent_id, message_id) where sender_agent_id <> '';
create index relay_message_unread on relay_message (org_id, log_id, sequence) where unread = 1;
create index relay_message_due on relay_message (expire_ms) where expire_ms is not null;

-- Beside the message, so that a receipt does not write the payload again. Sealed.
create table relay_body (
  org_id text collate "C" not null,
  log_id text collate "C" not null,
  sequence bigint not null,
  body bytea not null,
  primary key (org_id, log_id, sequence)
);

-- Logs that are gone: nobody sees them any more, and the sweep removes what is left of them.
create table relay_drop (
  org_id text collate "C" not null,
  log_id text collate "C" not null,
  primary key (org_id, log_id)
);

create table relay_channel (
  org_id text collate "C" not null,
  name text collate "C" not null,
  log_id text collate "C" not null,
  description text collate "C" not null,
  -- Empty for an administrator's.
  owner_agent_id text collate "C" not null,
  members_only bigint not null,
  members bigint not null,
  revision bigint not null,
  create_ms bigint not null,
  update_ms bigint not null,
  primary key (org_id, name)
);
create unique index relay_channel_log on relay_channel (org_id, log_id);

create table relay_member (
  org_id text collate "C" not null,
  log_id text collate "C" not null,
  agent_id text collate "C" not null,
  join_ms bigint not null,
  primary key (org_id, log_id, agent_id)
);
create index relay_member_agent on relay_member (org_id, agent_id, log_id);

-- Readers who share a channel. What has gone through is told by a position; only what is with readers, or waits to be handed out again, has rows.
create table relay_group (
  org_id text collate "C" not null,
  log_id text collate "C" not null,
  name text collate "C" not null,
  -- Up to which sequence messages were handed out for the first time.
  position bigint not null,
  ack_timeout_ms bigint not null,
  max_deliveries bigint not null,
  owner_agent_id text collate "C" not null,
  create_ms bigint not null,
  primary key (org_id, log_id, name)
);

create table relay_flight (
  org_id text collate "C" not null,
  log_id text collate "C" not null,
  group_name text collate "C" not null,
  sequence bigint not null,
  deliveries bigint not null,
  -- Of the latest delivery; empty while it waits to be handed out again.
  token text collate "C" not null,
  agent_id text collate "C" not null,
  -- From when on it is handed out again.
  due_ms bigint not null,
  -- Whether it dies then instead.
  last bigint not null,
  primary key (org_id, log_id, group_name, sequence)
);
create index relay_flight_due on relay_flight (org_id, log_id, group_name, due_ms, sequence) where last = 0;
create index relay_flight_last on relay_flight (due_ms) where last = 1;

-- Dead letters of groups: copies, which outlive what the log keeps. One that was redriven stays until it is acknowledged or dies again.
create table relay_dead (
  org_id text collate "C" not null,
  log_id text collate "C" not null,
  group_name text collate "C" not null,
  sequence bigint not null,
  deliveries bigint not null,
  agent_id text collate "C" not null,
  dead_ms bigint not null,
  redriven bigint not null,
  -- Sealed: the message, and why.
  body bytea not null,
  primary key (org_id, log_id, group_name, sequence)
);
create index relay_dead_letter on relay_dead (org_id, log_id, group_name, sequence) where redriven = 0;
create index relay_dead_age on relay_dead (dead_ms);

-- Agents with a conversation open: one row for each, good until its time.
create table relay_presence (
  org_id text collate "C" not null,
  agent_id text collate "C" not null,
  stream text collate "C" not null,
  -- The number of PresenceStatus.
  status bigint not null,
  since_ms bigint not null,
  until_ms bigint not null,
  primary key (org_id, agent_id, stream)
);
create index relay_presence_due on relay_presence (until_ms);
