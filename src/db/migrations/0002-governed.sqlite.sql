-- What governing needs to know of agents, contracts and tasks.

alter table agent add column weight integer not null default 1;
-- JSON of BreakerSettings, or empty for the defaults.
alter table agent add column breaker text not null default '';

-- Keys that agents' endpoints need, by value; sealed. Apart from the agent, so that reading one never touches them.
create table agent_secret (
  org_id text not null,
  agent_id text not null,
  secret blob not null,
  primary key (org_id, agent_id)
) strict;

alter table contract add column estimated_tokens integer not null default 0;
alter table contract add column max_tokens integer not null default 0;
alter table contract add column partner_agent_ids text not null default '[]';

-- Rebuilt, because added columns would come after the payloads, and whoever reads them would walk through those.
alter table task rename to task_before;
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
  requested_version text not null,
  origin text not null,
  grant_id text not null,
  approval_id text not null,
  retry_of_dead_letter_id text not null,
  cost_micros integer not null,
  -- Last, so that whoever reads the other columns does not walk through them.
  input blob not null,
  output blob,
  primary key (org_id, task_id)
) strict;
insert into task
  select org_id, task_id, state, namespace, contract_id, contract_version, caller_agent_id, caller_key_id, target_org_id,
    target_agent_id, wanted_agent_id, error, attempts, input_tokens, output_tokens, model, trace_id, span_id,
    parent_span_id, labels, create_ms, end_ms, deadline_ms, lease_owner, lease_token, in_flight, contract_version, 'bus',
    '', '', '', 0, input, output
  from task_before;
drop table task_before;
create index task_caller on task (org_id, caller_agent_id, task_id);
create index task_target on task (org_id, target_agent_id, task_id);
create index task_contract on task (org_id, contract_id, task_id);
create index task_trace on task (org_id, trace_id, task_id);
create index task_state on task (org_id, state, task_id);
-- Small whatever the number of tasks: recovery walks it.
create index task_open on task (org_id, task_id) where state < 4;

create table task_attempt (
  org_id text not null,
  task_id text not null,
  attempt integer not null,
  trace_id text not null,
  agent_id text not null,
  contract_id text not null,
  contract_version text not null,
  start_ms integer not null,
  end_ms integer,
  -- A sealed TaskError. Null while it runs, and when it succeeded.
  error blob,
  input_tokens integer not null,
  output_tokens integer not null,
  model text not null,
  primary key (org_id, task_id, attempt)
) strict, without rowid;
