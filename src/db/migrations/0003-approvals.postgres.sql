create table approval (
  org_id text collate "C" not null,
  approval_id text collate "C" not null,
  state bigint not null,
  task_id text collate "C" not null,
  trace_id text collate "C" not null,
  caller_agent_id text collate "C" not null,
  caller_key_id text collate "C" not null,
  target_agent_id text collate "C" not null,
  contract_id text collate "C" not null,
  contract_version text collate "C" not null,
  digest text collate "C" not null,
  required_by_contract bigint not null,
  policy_ids text collate "C" not null,
  reasons text collate "C" not null,
  reserved_tokens bigint not null,
  reserved_micros bigint not null,
  create_ms bigint not null,
  expire_ms bigint not null,
  decide_ms bigint,
  decided_by text collate "C" not null,
  note text collate "C" not null,
  primary key (org_id, approval_id)
);
create index approval_state on approval (org_id, state, approval_id);
create index approval_caller on approval (org_id, caller_agent_id, approval_id);
create index approval_target on approval (org_id, target_agent_id, approval_id);
create index approval_contract on approval (org_id, contract_id, approval_id);
create index approval_task on approval (org_id, task_id, approval_id);
create index approval_trace on approval (org_id, trace_id, approval_id);
-- Work of the server for all organisations; small, as only what nobody has decided is in it.
create index approval_due on approval (expire_ms) where state = 1;

-- Keys are found by their ids alone, as a request finds its organisation by its key.
create index api_key_rotated on api_key (rotated_from) where rotated_from is not null;
