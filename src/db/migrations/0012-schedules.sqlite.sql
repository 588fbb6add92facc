-- Schedules: what puts jobs into queues at its times.

create table queue_schedule (
  org_id text not null,
  schedule_id text not null,
  agent_id text not null,
  name text not null,
  cron text not null,
  time_zone text not null,
  start_ms integer,
  end_ms integer,
  -- The job that it makes, as JSON of ScheduledJob without its payload.
  job text not null,
  disabled integer not null,
  -- Numbers of Misfire and of Overlap.
  misfire integer not null,
  catch_up_ms integer not null,
  overlap integer not null,
  jitter_ms integer not null,
  revision integer not null,
  create_ms integer not null,
  update_ms integer not null,
  -- Its next nominal time, and when it is looked at next: later where that has failed. Null: it has none.
  next_ms integer,
  due_ms integer,
  -- The latest nominal time that was dealt with: none up to it comes again by itself.
  seen_ms integer not null,
  last_run_ms integer,
  last_nominal_ms integer,
  last_job_id text not null,
  run_count integer not null,
  missed_count integer not null,
  skipped_count integer not null,
  last_error blob,
  primary key (org_id, schedule_id)
) strict;
-- What the servers look at: the schedules that are due, of all organisations.
create index queue_schedule_due on queue_schedule (due_ms) where due_ms is not null;
create index queue_schedule_agent on queue_schedule (org_id, agent_id, schedule_id);

-- Beside the schedule, so that a time does not write the payload again.
create table queue_schedule_data (
  org_id text not null,
  schedule_id text not null,
  payload blob not null,
  primary key (org_id, schedule_id)
) strict;

-- The nominal times that have made a job, which make no other.
create table queue_schedule_run (
  org_id text not null,
  schedule_id text not null,
  nominal_ms integer not null,
  primary key (org_id, schedule_id, nominal_ms)
) strict, without rowid;
create index queue_schedule_run_age on queue_schedule_run (nominal_ms);

-- Whether a schedule has an unfinished job.
create index queue_job_schedule on queue_job (org_id, schedule_id) where schedule_id <> '' and state < 4;
