-- Conventions: text ids, integer milliseconds, 0/1 flags, JSON as text, sealed payloads as blobs (src/vault/sealed.ts). `org_id` leads every key
-- and index but those by which a request finds its organisation (api_key) and those of the server itself (setting, lease).
-- Order-only logs have (xid, seq); see Dialect in src/db/db.ts.

create table setting (
  name text primary key,
  value blob not null
) strict, without rowid;

create table lease (
  name text primary key,
  owner text not null,
  token integer not null,
  until_ms integer not null
) strict, without rowid;

create table organization (
  org_id text primary key,
  name text not null unique,
  display_name text not null,
  metadata text not null,
  disabled integer not null,
  create_ms integer not null,
  update_ms integer not null,
  revision integer not null
) strict, without rowid;

create table agent (
  org_id text not null,
  agent_id text not null,
  name text not null,
  description text not null,
  trust_tier integer not null,
  capabilities text not null,
  allowed_tools text not null,
  endpoint text,
  metadata text not null,
  disabled integer not null,
  create_ms integer not null,
  update_ms integer not null,
  revision integer not null,
  primary key (org_id, agent_id),
  unique (org_id, name)
) strict;

create table agent_capability (
  org_id text not null,
  capability text not null,
  agent_id text not null,
  primary key (org_id, capability, agent_id)
) strict, without rowid;
create index agent_capability_agent on agent_capability (org_id, agent_id);

create table api_key (
  org_id text not null,
  key_id text not null primary key,
  secret_sha256 text not null,
  name text not null,
  role integer not null,
  agent_id text not null,
  scopes text not null,
  create_ms integer not null,
  expire_ms integer,
  revoke_ms integer,
  rotated_from text,
  last_used_ms integer
) strict, without rowid;
create index api_key_org on api_key (org_id, key_id);
create index api_key_agent on api_key (org_id, agent_id, key_id);

create table contract (
  org_id text not null,
  contract_id text not null,
  version text not null,
  capability text not null,
  description text not null,
  input_schema text not null,
  output_schema text not null,
  input_schema_sha256 text not null,
  output_schema_sha256 text not null,
  security_class integer not null,
  required_tools text not null,
  timeout_ms integer not null,
  repeatable integer not null,
  max_retries integer not null,
  backoff_ms integer not null,
  max_backoff_ms integer not null,
  approval_required integer not null,
  fallbacks text not null,
  create_ms integer not null,
  deprecate_ms integer,
  primary key (org_id, contract_id, version)
) strict;
create index contract_listed on contract (org_id, contract_id, create_ms, version);

create table task (
  org_id text not null,
  task_id text not null,
  state integer not null,
  namespace text not null,
  contract_id text not null,
  contract_version text not null,
  caller_agent_id text not null,
  caller_key_id text not null,
  target_org_id text not null,
  target_agent_id text not null,
  wanted_agent_id text not null,
  error blob,
  attempts integer not null,
  input_tokens integer not null,
  output_tokens integer not null,
  model text not null,
  trace_id text not null,
  span_id text not null,
  parent_span_id text not null,
  labels text not null,
  create_ms integer not null,
  end_ms integer,
  deadline_ms integer,
  lease_owner text not null,
  lease_token integer not null,
  in_flight integer not null,
  -- Last, so that whoever reads the other columns does not walk through them.
  input blob not null,
  output blob,
  primary key (org_id, task_id)
) strict;
create index task_caller on task (org_id, caller_agent_id, task_id);
create index task_target on task (org_id, target_agent_id, task_id);
create index task_contract on task (org_id, contract_id, task_id);
create index task_trace on task (org_id, trace_id, task_id);
create index task_state on task (org_id, state, task_id);
-- Small whatever the number of tasks: recovery walks it.
create index task_open on task (org_id, task_id) where state < 4;

create table trace (
  org_id text not null,
  trace_id text not null,
  contract_id text not null,
  opener_agent_id text not null,
  start_ms integer not null,
  primary key (org_id, trace_id)
) strict;
create index trace_start on trace (org_id, start_ms, trace_id);
create index trace_opener on trace (org_id, opener_agent_id, start_ms, trace_id);

create table trace_event (
  seq integer primary key autoincrement,
  org_id text not null,
  xid integer not null,
  trace_id text not null,
  task_id text not null,
  kind integer not null,
  caller_agent_id text not null,
  target_agent_id text not null,
  contract_id text not null,
  body blob not null
) strict;
create index trace_event_log on trace_event (org_id, xid, seq);
create index trace_event_trace on trace_event (org_id, trace_id, xid, seq);

create table outbox (
  seq integer primary key autoincrement,
  org_id text not null,
  xid integer not null,
  event_id text not null,
  type text not null,
  agent_id text not null,
  time_ms integer not null,
  trace_id text not null,
  payload blob not null
) strict;
create index outbox_log on outbox (org_id, xid, seq);

create table audit_event (
  seq integer primary key autoincrement,
  org_id text not null,
  xid integer not null,
  audit_id text not null,
  time_ms integer not null,
  method text not null,
  role integer not null,
  key_id text not null,
  agent_id text not null,
  resource text not null,
  request_sha256 text not null,
  trace_id text not null
) strict;
create index audit_event_log on audit_event (org_id, xid, seq);

create table idempotency (
  org_id text not null,
  caller text not null,
  method text not null,
  key text not null,
  request_sha256 text not null,
  reply blob,
  create_ms integer not null,
  primary key (org_id, caller, method, key)
) strict, without rowid;
create index idempotency_age on idempotency (create_ms);
