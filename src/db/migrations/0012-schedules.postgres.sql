-- Schedules: what puts jobs into queues at its times.

create table queue_schedule (
  org_id text collate "C" not null,
  schedule_id text collate "C" not null,
  agent_id text collate "C" not null,
  name text collate "C" not null,
  cron text collate "C" not null,
  time_zone text collate "C" not null,
  start_ms bigint,
  end_ms bigint,
  -- The job that it makes, as JSON of ScheduledJob without its payload.
  job text collate "C" not null,
  disabled bigint not null,
  -- Numbers of Misfire and of Overlap.
  misfire bigint not null,
  catch_up_ms bigint not null,
  overlap bigint not null,
  jitter_ms bigint not null,
  revision bigint not null,
  create_ms bigint not null,
  update_ms bigint not null,
  -- Its next nominal time, and when it is looked at next: later where that has failed. Null: it has none.
  next_ms bigint,
  due_ms bigint,
  -- The latest nominal time that was dealt with: none up to it comes again by itself.
  seen_ms bigint not null,
  last_run_ms bigint,
  last_nominal_ms bigint,
  last_job_id text collate "C" not null,
  run_count bigint not null,
  missed_count bigint not null,
  skipped_count bigint not null,
  last_error bytea,
  primary key (org_id, schedule_id)
);
-- What the servers look at: the schedules that are due, of all organisations.
create index queue_schedule_due on queue_schedule (due_ms) where due_ms is not null;
create index queue_schedule_agent on queue_schedule (org_id, agent_id, schedule_id);

-- Beside the schedule, so that a time does not write the payload again.
create table queue_schedule_data (
  org_id text collate "C" not null,
  schedule_id text collate "C" not null,
  payload bytea not null,
  primary key (org_id, schedule_id)
);

-- The nominal times that have made a job, which make no other.
create table queue_schedule_run (
  org_id text collate "C" not null,
  schedule_id text collate "C" not null,
  nominal_ms bigint not null,
  primary key (org_id, schedule_id, nominal_ms)
);
create index queue_schedule_run_age on queue_schedule_run (nominal_ms);

-- Whether a schedule has an unfinished job.
create index queue_job_schedule on queue_job (org_id, schedule_id) where schedule_id <> '' and state < 4;
