-- Plays of agents that coordinate, and how the last run of each went.

create table lab_scenario (
  org_id text collate "C" not null,
  scenario_id text collate "C" not null,
  name text collate "C" not null,
  -- The numbers of Pattern and ScenarioState.
  pattern bigint not null,
  state bigint not null,
  agents bigint not null,
  timeout_ms bigint not null,
  seed bigint not null,
  -- JSON of SuccessCriteria and Faults.
  criteria text collate "C" not null,
  faults text collate "C" not null,
  -- The number of the last run; 0: none.
  run bigint not null,
  -- The server that runs it, or ran it last.
  server_id text collate "C" not null,
  trace_id text collate "C" not null,
  span_id text collate "C" not null,
  -- JSON of ScenarioResults; null: there are none.
  results text collate "C",
  -- Of the events: those of the last run are kept.
  last_sequence bigint not null,
  create_ms bigint not null,
  start_ms bigint,
  end_ms bigint,
  primary key (org_id, scenario_id)
);
-- Those that run, of all organisations: few.
create index lab_scenario_running on lab_scenario (org_id, scenario_id) where state = 2;

create table lab_event (
  org_id text collate "C" not null,
  scenario_id text collate "C" not null,
  sequence bigint not null,
  run bigint not null,
  -- The number of ScenarioEventKind.
  kind bigint not null,
  time_ms bigint not null,
  -- Null: it is about the whole run.
  agent bigint,
  message text collate "C" not null,
  primary key (org_id, scenario_id, sequence)
);

-- The organisations of runs, until nothing is left of them: few.
create table lab_sandbox (
  -- Of the scenario.
  org_id text collate "C" not null,
  scenario_id text collate "C" not null,
  run bigint not null,
  sandbox_org_id text collate "C" not null,
  server_id text collate "C" not null,
  create_ms bigint not null,
  primary key (org_id, scenario_id, run)
);
