-- How the circuit breaker of an agent stands. No row: closed, and no failure counts.

create table agent_circuit (
  org_id text not null,
  agent_id text not null,
  -- The number of CircuitState.
  state integer not null,
  -- JSON: when the failures happened that count, in milliseconds, the newest `failure_threshold` of them.
  failures text not null,
  -- When it opened last.
  open_ms integer,
  -- From when one task may try the agent. Null unless it is open.
  retry_ms integer,
  -- The attempt that tries the agent, and until when it is believed to. Empty, 0 and null unless it is half-open.
  probe_task_id text not null,
  probe_attempt integer not null,
  probe_until_ms integer,
  primary key (org_id, agent_id)
) strict, without rowid;
-- Few whatever the number of agents: the metrics count them.
create index agent_circuit_not_closed on agent_circuit (org_id, agent_id, state) where state > 1;
