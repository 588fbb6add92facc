-- What tasks may use, and what they used.

-- 1: something is reserved for it, or may be spent, so that its end has budgets to settle. Read only where the whole row is written anyway.
alter table task add column budgeted bigint not null default 0;

alter table task_attempt add column cost_micros bigint not null default 0;
-- 1: nobody knows what it used; its tokens and cost are what was reserved.
alter table task_attempt add column estimated bigint not null default 0;
-- The rate that was applied, as JSON; empty: none.
alter table task_attempt add column rate text collate "C" not null default '';
create index task_attempt_trace on task_attempt (org_id, trace_id, end_ms, task_id, attempt) where end_ms is not null;

-- Prices of tokens. An empty agent or model: any.
create table rate (
  org_id text collate "C" not null,
  agent_id text collate "C" not null,
  model text collate "C" not null,
  effective_ms bigint not null,
  -- When the next one of the same name takes over; the largest exact number: never.
  end_ms bigint not null,
  input_micros bigint not null,
  output_micros bigint not null,
  inherit bigint not null,
  create_ms bigint not null,
  primary key (org_id, agent_id, model, effective_ms)
);
create index rate_live on rate (org_id, end_ms);

-- What an agent used on a day (the start of it) of a model: the sum of its attempts that ended then.
create table agent_cost (
  org_id text collate "C" not null,
  agent_id text collate "C" not null,
  day_ms bigint not null,
  model text collate "C" not null,
  tasks bigint not null,
  attempts bigint not null,
  input_tokens bigint not null,
  output_tokens bigint not null,
  cost_micros bigint not null,
  unrated_attempts bigint not null,
  last_ms bigint not null,
  primary key (org_id, agent_id, day_ms, model)
);
create index agent_cost_day on agent_cost (org_id, day_ms desc, agent_id);
create index agent_cost_model on agent_cost (org_id, agent_id, model);

-- Limits, by the numbers of BudgetScope and BudgetPeriod. A budget that is removed and set again has another id, and so counts anew.
create table budget (
  org_id text collate "C" not null,
  scope bigint not null,
  subject_id text collate "C" not null,
  period bigint not null,
  budget_id text collate "C" not null,
  limit_tokens bigint,
  limit_micros bigint,
  create_ms bigint not null,
  update_ms bigint not null,
  revision bigint not null,
  primary key (org_id, scope, subject_id, period)
);
create unique index budget_id on budget (org_id, budget_id);

-- How a budget stands for one subject, in the period that began at start_ms; a later period takes the row over.
create table budget_use (
  org_id text collate "C" not null,
  budget_id text collate "C" not null,
  subject_id text collate "C" not null,
  start_ms bigint not null,
  spent_tokens bigint not null,
  reserved_tokens bigint not null,
  spent_micros bigint not null,
  reserved_micros bigint not null,
  warned bigint not null,
  primary key (org_id, budget_id, subject_id)
);

-- What is set aside for a task that has not ended, and where.
create table budget_reserve (
  org_id text collate "C" not null,
  task_id text collate "C" not null,
  budget_id text collate "C" not null,
  subject_id text collate "C" not null,
  scope bigint not null,
  period bigint not null,
  start_ms bigint not null,
  tokens bigint not null,
  micros bigint not null,
  primary key (org_id, task_id, budget_id, subject_id)
);
