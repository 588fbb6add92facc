-- What governing needs to know of agents, contracts and tasks.

alter table agent add column weight bigint not null default 1;
-- JSON of BreakerSettings, or empty for the defaults.
alter table agent add column breaker text collate "C" not null default '';

-- Keys that agents' endpoints need, by value; sealed. Apart from the agent, so that reading one never touches them.
create table agent_secret (
  org_id text collate "C" not null,
  agent_id text collate "C" not null,
  secret bytea not null,
  primary key (org_id, agent_id)
);

alter table contract add column estimated_tokens bigint not null default 0;
alter table contract add column max_tokens bigint not null default 0;
alter table contract add column partner_agent_ids text collate "C" not null default '[]';

alter table task add column requested_version text collate "C" not null default '';
alter table task add column origin text collate "C" not null default 'bus';
alter table task add column grant_id text collate "C" not null default '';
alter table task add column approval_id text collate "C" not null default '';
alter table task add column retry_of_dead_letter_id text collate "C" not null default '';
alter table task add column cost_micros bigint not null default 0;
update task set requested_version = contract_version;

create table task_attempt (
  org_id text collate "C" not null,
  task_id text collate "C" not null,
  attempt bigint not null,
  trace_id text collate "C" not null,
  agent_id text collate "C" not null,
  contract_id text collate "C" not null,
  contract_version text collate "C" not null,
  start_ms bigint not null,
  end_ms bigint,
  -- A sealed TaskError. Null while it runs, and when it succeeded.
  error bytea,
  input_tokens bigint not null,
  output_tokens bigint not null,
  model text collate "C" not null,
  primary key (org_id, task_id, attempt)
);
