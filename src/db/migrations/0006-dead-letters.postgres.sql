-- Tasks that failed for good. What was asked for, and each attempt, stay where they are: in task and task_attempt.

create table dead_letter (
  org_id text collate "C" not null,
  dead_letter_id text collate "C" not null,
  -- The number of DeadLetterState.
  state bigint not null,
  task_id text collate "C" not null,
  trace_id text collate "C" not null,
  caller_agent_id text collate "C" not null,
  target_agent_id text collate "C" not null,
  contract_id text collate "C" not null,
  contract_version text collate "C" not null,
  -- The number of ErrorReason.
  reason bigint not null,
  create_ms bigint not null,
  resolve_ms bigint,
  resolved_by text collate "C" not null,
  resolve_note text collate "C" not null,
  primary key (org_id, dead_letter_id),
  unique (org_id, task_id)
);
-- One for each way to list them, newest first.
create index dead_letter_time on dead_letter (org_id, create_ms, dead_letter_id);
create index dead_letter_state on dead_letter (org_id, state, create_ms, dead_letter_id);
create index dead_letter_reason on dead_letter (org_id, reason, create_ms, dead_letter_id);
create index dead_letter_contract on dead_letter (org_id, contract_id, create_ms, dead_letter_id);
create index dead_letter_caller on dead_letter (org_id, caller_agent_id, create_ms, dead_letter_id);
create index dead_letter_target on dead_letter (org_id, target_agent_id, create_ms, dead_letter_id);
create index dead_letter_trace on dead_letter (org_id, trace_id, create_ms, dead_letter_id);

-- Those that failed before. Their reasons are sealed, so that no filter by reason finds them; the task tells it.
insert into dead_letter
  select org_id, 'dlq_' || substr(task_id, 5), 1, task_id, trace_id, caller_agent_id, target_agent_id, contract_id, contract_version, 0, end_ms, null, '', ''
  from task where state = 5;

-- The retries of a dead letter; most tasks are none.
create index task_retry on task (org_id, retry_of_dead_letter_id, task_id) where retry_of_dead_letter_id <> '';
