-- How the circuit breaker of an agent stands. No row: closed, and no failure counts.

create table agent_circuit (
  org_id text collate "C" not null,
  agent_id text collate "C" not null,
  -- The number of CircuitState.
  state bigint not null,
  -- JSON: when the failures happened that count, in milliseconds, the newest `failure_threshold` of them.
  failures text collate "C" not null,
  -- When it opened last.
  open_ms bigint,
  -- From when one task may try the agent. Null unless it is open.
  retry_ms bigint,
  -- The attempt that tries the agent, and until when it is believed to. Empty, 0 and null unless it is half-open.
  probe_task_id text collate "C" not null,
  probe_attempt bigint not null,
  probe_until_ms bigint,
  primary key (org_id, agent_id)
);
-- Few whatever the number of agents: the metrics count them.
create index agent_circuit_not_closed on agent_circuit (org_id, agent_id, state) where state > 1;
