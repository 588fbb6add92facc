-- What tasks may use, and what they used.

-- 1: something is reserved for it, or may be spent, so that its end has budgets to settle. Read only where the whole row is written anyway.
alter table task add column budgeted integer not null default 0;

alter table task_attempt add column cost_micros integer not null default 0;
-- 1: nobody knows what it used; its tokens and cost are what was reserved.
alter table task_attempt add column estimated integer not null default 0;
-- The rate that was applied, as JSON; empty: none.
alter table task_attempt add column rate text not null default '';
create index task_attempt_trace on task_attempt (org_id, trace_id, end_ms, task_id, attempt) where end_ms is not null;

-- Prices of tokens. An empty agent or model: any.
create table rate (
  org_id text not null,
  agent_id text not null,
  model text not null,
  effective_ms integer not null,
  -- When the next one of the same name takes over; the largest exact number: never.
  end_ms integer not null,
  input_micros integer not null,
  output_micros integer not null,
  inherit integer not null,
  create_ms integer not null,
  primary key (org_id, agent_id, model, effective_ms)
) strict, without rowid;
create index rate_live on rate (org_id, end_ms);

-- What an agent used on a day (the start of it) of a model: the sum of its attempts that ended then.
create table agent_cost (
  org_id text not null,
  agent_id text not null,
  day_ms integer not null,
  model text not null,
  tasks integer not null,
  attempts integer not null,
  input_tokens integer not null,
  output_tokens integer not null,
  cost_micros integer not null,
  unrated_attempts integer not null,
  last_ms integer not null,
  primary key (org_id, agent_id, day_ms, model)
) strict, without rowid;
create index agent_cost_day on agent_cost (org_id, day_ms desc, agent_id);
create index agent_cost_model on agent_cost (org_id, agent_id, model);

-- Limits, by the numbers of BudgetScope and BudgetPeriod. A budget that is removed and set again has another id, and so counts anew.
create table budget (
  org_id text not null,
  scope integer not null,
  subject_id text not null,
  period integer not null,
  budget_id text not null,
  limit_tokens integer,
  limit_micros integer,
  create_ms integer not null,
  update_ms integer not null,
  revision integer not null,
  primary key (org_id, scope, subject_id, period)
) strict, without rowid;
create unique index budget_id on budget (org_id, budget_id);

-- How a budget stands for one subject, in the period that began at start_ms; a later period takes the row over.
create table budget_use (
  org_id text not null,
  budget_id text not null,
  subject_id text not null,
  start_ms integer not null,
  spent_tokens integer not null,
  reserved_tokens integer not null,
  spent_micros integer not null,
  reserved_micros integer not null,
  warned integer not null,
  primary key (org_id, budget_id, subject_id)
) strict, without rowid;

-- What is set aside for a task that has not ended, and where.
create table budget_reserve (
  org_id text not null,
  task_id text not null,
  budget_id text not null,
  subject_id text not null,
  scope integer not null,
  period integer not null,
  start_ms integer not null,
  tokens integer not null,
  micros integer not null,
  primary key (org_id, task_id, budget_id, subject_id)
) strict, without rowid;
