-- Tasks in the hands of agents that pull: each open task whose `lease_owner` is 'pull' has one row here, and no other task has.

create table pulled_task (
  org_id text not null,
  task_id text not null,
  agent_id text not null,
  -- Which instance of the agent has it. Empty while it waits for one.
  instance text not null,
  -- The contract of the attempt: the task's own or a fallback.
  contract_id text not null,
  contract_version text not null,
  -- The task's, by which the oldest comes first.
  create_ms integer not null,
  -- JSON: what has been tried so far (src/bus/retry.ts).
  tried text not null,
  -- When the waiting ends.
  wait_until_ms integer not null,
  -- The delivery, once there is one: the task's fencing token, its lease, and when its time is over whatever the lease.
  token integer not null,
  attempt integer not null,
  start_ms integer not null,
  lease_ms integer not null,
  lease_until_ms integer not null,
  stop_ms integer not null,
  -- When somebody has to look at it: the end of the waiting, of the lease or of the time, whichever comes first.
  due_ms integer not null,
  -- When its instance last told of progress that was kept.
  told_ms integer not null default 0,
  primary key (org_id, task_id)
) strict;
-- An instance's own tasks and, under the empty name, those that wait, oldest first.
create index pulled_task_instance on pulled_task (org_id, agent_id, instance, create_ms, task_id);
-- The server's own: what is due, of all organisations.
create index pulled_task_due on pulled_task (due_ms);

-- Recovery walks what servers work on, however many tasks wait to be pulled.
drop index task_open;
create index task_open on task (org_id, task_id) where state < 4 and lease_owner <> 'pull';
