create table approval (
  org_id text not null,
  approval_id text not null,
  state integer not null,
  task_id text not null,
  trace_id text not null,
  caller_agent_id text not null,
  caller_key_id text not null,
  target_agent_id text not null,
  contract_id text not null,
  contract_version text not null,
  digest text not null,
  required_by_contract integer not null,
  policy_ids text not null,
  reasons text not null,
  reserved_tokens integer not null,
  reserved_micros integer not null,
  create_ms integer not null,
  expire_ms integer not null,
  decide_ms integer,
  decided_by text not null,
  note text not null,
  primary key (org_id, approval_id)
) strict;
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
