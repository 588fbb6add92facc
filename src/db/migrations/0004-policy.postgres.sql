-- How often an organisation's policies were changed; every decision reads it. The counts are of all its policies, disabled ones too.
create table policy_set (
  org_id text collate "C" primary key,
  revision bigint not null,
  policies bigint not null,
  text_bytes bigint not null
);

create table policy (
  org_id text collate "C" not null,
  policy_id text collate "C" not null,
  cedar_text text collate "C" not null,
  description text collate "C" not null,
  effect bigint not null,
  disabled bigint not null,
  -- What can be told of the text without evaluating it; see Facts in src/bus/policy/statement.ts.
  facts text collate "C" not null,
  create_ms bigint not null,
  update_ms bigint not null,
  revision bigint not null,
  primary key (org_id, policy_id)
);

-- A decision is its row with nth 0; the others of it are only found by their policy. See src/bus/policy/decision-store.ts.
create table policy_decision (
  org_id text collate "C" not null,
  time_ms bigint not null,
  decision_id text collate "C" not null,
  nth bigint not null,
  policy_id text collate "C" not null,
  verdict bigint not null,
  agent_id text collate "C" not null,
  action text collate "C" not null,
  resource text collate "C" not null,
  task_id text collate "C" not null,
  trace_id text collate "C" not null,
  body bytea,
  primary key (org_id, time_ms, decision_id, nth)
);
create index policy_decision_policy on policy_decision (org_id, policy_id, time_ms, decision_id) where policy_id <> '';
create index policy_decision_agent on policy_decision (org_id, agent_id, time_ms, decision_id) where nth = 0 and agent_id <> '';
create index policy_decision_verdict on policy_decision (org_id, verdict, time_ms, decision_id) where nth = 0;
create index policy_decision_action on policy_decision (org_id, action, time_ms, decision_id) where nth = 0;
create index policy_decision_resource on policy_decision (org_id, resource, time_ms, decision_id) where nth = 0;
create index policy_decision_trace on policy_decision (org_id, trace_id, time_ms, decision_id) where nth = 0;
create index policy_decision_task on policy_decision (org_id, task_id, time_ms, decision_id) where nth = 0 and task_id <> '';
