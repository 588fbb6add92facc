-- Queues of jobs. States are the numbers of JobState: 1 scheduled, 2 pending, 3 leased, 4 completed, 5 failed, 6 canceled.

create table queue_job (
  -- The order among equals.
  seq integer primary key autoincrement,
  org_id text not null,
  job_id text not null,
  queue text not null,
  state integer not null,
  priority integer not null,
  max_attempts integer not null,
  attempts integer not null,
  -- How many attempts there may be: `max_attempts`, and as many again after each redrive.
  attempt_limit integer not null,
  redrives integer not null,
  backoff_ms integer not null,
  max_backoff_ms integer not null,
  timeout_ms integer,
  unique_key text not null,
  tags text not null,
  submitter_agent_id text not null,
  worker_agent_id text not null,
  -- Of the latest lease; empty unless there is one.
  lease_token text not null,
  -- The Work stream that took it, or empty.
  lease_stream text not null,
  lease_ms integer not null,
  lease_expire_ms integer,
  cancel_requested integer not null,
  trace_id text not null,
  span_id text not null,
  schedule_id text not null,
  nominal_ms integer,
  create_ms integer not null,
  run_ms integer not null,
  -- Since when it can be claimed, or could be.
  ready_ms integer,
  start_ms integer,
  end_ms integer,
  error blob,
  progress blob,
  unique (org_id, job_id)
) strict;
-- What a claim walks: only jobs that can be claimed, in the order in which they are. Its cost does not grow with the queue.
create index queue_job_pending on queue_job (org_id, queue, priority desc, seq) where state = 2;
create index queue_job_waiting on queue_job (org_id, queue, run_ms) where state = 1;
-- Those of the sweep, which serves all organisations. An expression, so that no plan of one queue's claim walks all queues' jobs along it.
create index queue_job_due on queue_job ((run_ms + 0)) where state = 1;
create index queue_job_lease on queue_job (lease_expire_ms) where state = 3;
create index queue_job_end on queue_job (end_ms) where end_ms is not null;
-- Decides races for a key.
create unique index queue_job_unique on queue_job (org_id, queue, unique_key) where unique_key <> '' and state < 4;
-- Those of lists. Expressions, so that no plan of a claim sorts what they hold of its queue.
create index queue_job_state on queue_job (org_id, (state + 0), seq);
create index queue_job_listed on queue_job (org_id, queue, (state + 0), seq);
create index queue_job_dead on queue_job (org_id, (end_ms + 0), seq) where state = 5;
create index queue_job_dead_queue on queue_job (org_id, queue, end_ms, seq) where state = 5;

-- Beside the job, so that a claim or heartbeat does not write the payload again.
create table queue_job_data (
  org_id text not null,
  job_id text not null,
  payload blob,
  result blob,
  primary key (org_id, job_id)
) strict;

-- Attempts that failed. One that succeeded stands in its job.
create table queue_attempt (
  org_id text not null,
  job_id text not null,
  attempt integer not null,
  worker_agent_id text not null,
  start_ms integer not null,
  end_ms integer not null,
  -- Whether its lease ended, and not its worker ended it.
  expired integer not null,
  error blob not null,
  primary key (org_id, job_id, attempt)
) strict, without rowid;

-- What WatchJobs tells: an order-only log.
create table queue_change (
  seq integer primary key autoincrement,
  org_id text not null,
  xid integer not null,
  job_id text not null,
  queue text not null,
  state integer not null,
  attempts integer not null,
  worker_agent_id text not null,
  time_ms integer not null,
  error blob
) strict;
create index queue_change_log on queue_change (org_id, xid, seq);

-- The last change that is no longer kept.
create table queue_change_floor (
  org_id text primary key,
  xid integer not null,
  seq integer not null
) strict, without rowid;

-- How many jobs are in a state: the sum over the shards, which keep transactions of one queue from waiting for one another. The queue '' counts the unfinished
-- jobs of the organisation, as pending.
create table queue_level (
  org_id text not null,
  queue text not null,
  shard integer not null,
  scheduled integer not null,
  pending integer not null,
  leased integer not null,
  failed integer not null,
  primary key (org_id, queue, shard)
) strict, without rowid;

-- What happened in a minute: `kind` 0 submitted, 1 completed, 2 failed, and from 10 on the buckets of waits.
create table queue_minute (
  org_id text not null,
  queue text not null,
  minute integer not null,
  kind integer not null,
  shard integer not null,
  n integer not null,
  primary key (org_id, queue, minute, kind, shard)
) strict, without rowid;
create index queue_minute_age on queue_minute (minute);
