-- Plays of agents that coordinate, and how the last run of each went.

create table lab_scenario (
  org_id text not null,
  scenario_id text not null,
  name text not null,
  -- The numbers of Pattern and ScenarioState.
  pattern integer not null,
  state integer not null,
  agents integer not null,
  timeout_ms integer not null,
  seed integer not null,
  -- JSON of SuccessCriteria and Faults.
  criteria text not null,
  faults text not null,
  -- The number of the last run; 0: none.
  run integer not null,
  -- The server that runs it, or ran it last.
  server_id text not null,
  trace_id text not null,
  span_id text not null,
  -- JSON of ScenarioResults; null: there are none.
  results text,
  -- Of the events: those of the last run are kept.
  last_sequence integer not null,
  create_ms integer not null,
  start_ms integer,
  end_ms integer,
  primary key (org_id, scenario_id)
) strict, without rowid;
-- Those that run, of all organisations: few.
create index lab_scenario_running on lab_scenario (org_id, scenario_id) where state = 2;

create table lab_event (
  org_id text not null,
  scenario_id text not null,
  sequence integer not null,
  run integer not null,
  -- The number of ScenarioEventKind.
  kind integer not null,
  time_ms integer not null,
  -- Null: it is about the whole run.
  agent integer,
  message text not null,
  primary key (org_id, scenario_id, sequence)
) strict, without rowid;

-- The organisations of runs, until nothing is left of them: few.
create table lab_sandbox (
  -- Of the scenario.
  org_id text not null,
  scenario_id text not null,
  run integer not null,
  sandbox_org_id text not null,
  server_id text not null,
  create_ms integer not null,
  primary key (org_id, scenario_id, run)
) strict, without rowid;
