-- Conventions: text ids, bigint milliseconds, 0/1 flags, JSON as text, sealed payloads as bytea (src/vault/sealed.ts). `org_id` leads every key
-- and index but those by which a request finds its organisation (api_key) and those of the server itself (setting, lease).
-- Text is compared byte by byte, as SQLite does, whatever the locale of the database.
-- Order-only logs have (xid, seq); see Dialect in src/db/db.ts.

create table setting (
  name text collate "C" primary key,
  value bytea not null
);

create table lease (
  name text collate "C" primary key,
  owner text collate "C" not null,
  token bigint not null,
  until_ms bigint not null
);

create table organization (
  org_id text collate "C" primary key,
  name text collate "C" not null unique,
  display_name text collate "C" not null,
  metadata text collate "C" not null,
  disabled bigint not null,
  create_ms bigint not null,
  update_ms bigint not null,
  revision bigint not null
);

create table agent (
  org_id text collate "C" not null,
  agent_id text collate "C" not null,
  name text collate "C" not null,
  description text collate "C" not null,
  trust_tier bigint not null,
  capabilities text collate "C" not null,
  allowed_tools text collate "C" not null,
  endpoint text collate "C",
  metadata text collate "C" not null,
  disabled bigint not null,
  create_ms bigint not null,
  update_ms bigint not null,
  revision bigint not null,
  primary key (org_id, agent_id),
  unique (org_id, name)
);

create table agent_capability (
  org_id text collate "C" not null,
  capability text collate "C" not null,
  agent_id text collate "C" not null,
  primary key (org_id, capability, agent_id)
);
create index agent_capability_agent on agent_capability (org_id, agent_id);

create table api_key (
  org_id text collate "C" not null,
  key_id text collate "C" not null primary key,
  secret_sha256 text collate "C" not null,
  name text collate "C" not null,
  role bigint not null,
  agent_id text collate "C" not null,
  scopes text collate "C" not null,
  create_ms bigint not null,
  expire_ms bigint,
  revoke_ms bigint,
  rotated_from text collate "C",
  last_used_ms bigint
);
create index api_key_org on api_key (org_id, key_id);
create index api_key_agent on api_key (org_id, agent_id, key_id);

create table contract (
  org_id text collate "C" not null,
  contract_id text collate "C" not null,
  version text collate "C" not null,
  capability text collate "C" not null,
  description text collate "C" not null,
  input_schema text collate "C" not null,
  output_schema text collate "C" not null,
  input_schema_sha256 text collate "C" not null,
  output_schema_sha256 text collate "C" not null,
  security_class bigint not null,
  required_tools text collate "C" not null,
  timeout_ms bigint not null,
  repeatable bigint not null,
  max_retries bigint not null,
  backoff_ms bigint not null,
  max_backoff_ms bigint not null,
  approval_required bigint not null,
  fallbacks text collate "C" not null,
  create_ms bigint not null,
  deprecate_ms bigint,
  primary key (org_id, contract_id, version)
);
create index contract_listed on contract (org_id, contract_id, create_ms, version);

create table task (
  org_id text collate "C" not null,
  task_id text collate "C" not null,
  state bigint not null,
  namespace text collate "C" not null,
  contract_id text collate "C" not null,
  contract_version text collate "C" not null,
  caller_agent_id text collate "C" not null,
  caller_key_id text collate "C" not null,
  target_org_id text collate "C" not null,
  target_agent_id text collate "C" not null,
  wanted_agent_id text collate "C" not null,
  error bytea,
  attempts bigint not null,
  input_tokens bigint not null,
  output_tokens bigint not null,
  model text collate "C" not null,
  trace_id text collate "C" not null,
  span_id text collate "C" not null,
  parent_span_id text collate "C" not null,
  labels text collate "C" not null,
  create_ms bigint not null,
  end_ms bigint,
  deadline_ms bigint,
  lease_owner text collate "C" not null,
  lease_token bigint not null,
  in_flight bigint not null,
  -- Last, so that whoever reads the other columns does not walk through them.
  input bytea not null,
  output bytea,
  primary key (org_id, task_id)
);
create index task_caller on task (org_id, caller_agent_id, task_id);
create index task_target on task (org_id, target_agent_id, task_id);
create index task_contract on task (org_id, contract_id, task_id);
create index task_trace on task (org_id, trace_id, task_id);
create index task_state on task (org_id, state, task_id);
-- Small whatever the number of tasks: recovery walks it.
create index task_open on task (org_id, task_id) where state < 4;

create table trace (
  org_id text collate "C" not null,
  trace_id text collate "C" not null,
  contract_id text collate "C" not null,
  opener_agent_id text collate "C" not null,
  start_ms bigint not null,
  primary key (org_id, trace_id)
);
create index trace_start on trace (org_id, start_ms, trace_id);
create index trace_opener on trace (org_id, opener_agent_id, start_ms, trace_id);

create table trace_event (
  seq bigint generated always as identity,
  org_id text collate "C" not null,
  xid bigint not null,
  trace_id text collate "C" not null,
  task_id text collate "C" not null,
  kind bigint not null,
  caller_agent_id text collate "C" not null,
  target_agent_id text collate "C" not null,
  contract_id text collate "C" not null,
  body bytea not null,
  primary key (org_id, xid, seq)
);
create index trace_event_trace on trace_event (org_id, trace_id, xid, seq);

create table outbox (
  seq bigint generated always as identity,
  org_id text collate "C" not null,
  xid bigint not null,
  event_id text collate "C" not null,
  type text collate "C" not null,
  agent_id text collate "C" not null,
  time_ms bigint not null,
  trace_id text collate "C" not null,
  payload bytea not null,
  primary key (org_id, xid, seq)
);

create table audit_event (
  seq bigint generated always as identity,
  org_id text collate "C" not null,
  xid bigint not null,
  audit_id text collate "C" not null,
  time_ms bigint not null,
  method text collate "C" not null,
  role bigint not null,
  key_id text collate "C" not null,
  agent_id text collate "C" not null,
  resource text collate "C" not null,
  request_sha256 text collate "C" not null,
  trace_id text collate "C" not null,
  primary key (org_id, xid, seq)
);

create table idempotency (
  org_id text collate "C" not null,
  caller text collate "C" not null,
  method text collate "C" not null,
  key text collate "C" not null,
  request_sha256 text collate "C" not null,
  reply bytea,
  create_ms bigint not null,
  primary key (org_id, caller, method, key)
);
create index idempotency_age on idempotency (create_ms);
