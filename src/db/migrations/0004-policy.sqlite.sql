-- How often an organisation's policies were changed; every decision reads it. The counts are of all its policies, disabled ones too.
create table policy_set (
  org_id text primary key,
  revision integer not null,
  policies integer not null,
  text_bytes integer not null
) strict, without rowid;

create table policy (
  org_id text not null,
  policy_id text not null,
  cedar_text text not null,
  description text not null,
  effect integer not null,
  disabled integer not null,
  -- What can be told of the text without evaluating it; see Facts in src/bus/policy/statement.ts.
  facts text not null,
  create_ms integer not null,
  update_ms integer not null,
  revision integer not null,
  primary key (org_id, policy_id)
) strict;

-- A decision is its row with nth 0; the others of it are only found by their policy. See src/bus/policy/decision-store.ts.
create table policy_decision (
  org_id text not null,
  time_ms integer not null,
  decision_id text not null,
  nth integer not null,
  policy_id text not null,
  verdict integer not null,
  agent_id text not null,
  action text not null,
  resource text not null,
  task_id text not null,
  trace_id text not null,
  body blob,
  primary key (org_id, time_ms, decision_id, nth)
) strict;
create index policy_decision_policy on policy_decision (org_id, policy_id, time_ms, decision_id) where policy_id <> '';
create index policy_decision_agent on policy_decision (org_id, agent_id, time_ms, decision_id) where nth = 0 and agent_id <> '';
create index policy_decision_verdict on policy_decision (org_id, verdict, time_ms, decision_id) where nth = 0;
create index policy_decision_action on policy_decision (org_id, action, time_ms, decision_id) where nth = 0;
create index policy_decision_resource on policy_decision (org_id, resource, time_ms, decision_id) where nth = 0;
create index policy_decision_trace on policy_decision (org_id, trace_id, time_ms, decision_id) where nth = 0;
create index policy_decision_task on policy_decision (org_id, task_id, time_ms, decision_id) where nth = 0 and task_id <> '';
