-- Queues of jobs. States are the numbers of JobState: 1 scheduled, 2 pending, 3 leased, 4 completed, 5 failed, 6 canceled.

create table queue_job (
  -- The order among equals.
  seq bigint generated always as identity primary key,
  org_id text collate "C" not null,
  job_id text collate "C" not null,
  queue text collate "C" not null,
  state bigint not null,
  priority bigint not null,
  max_attempts bigint not null,
  attempts bigint not null,
  -- How many attempts there may be: `max_attempts`, and as many again after each redrive.
  attempt_limit bigint not null,
  redrives bigint not null,
  backoff_ms bigint not null,
  max_backoff_ms bigint not null,
  timeout_ms bigint,
  unique_key text collate "C" not null,
  tags text collate "C" not null,
  submitter_agent_id text collate "C" not null,
  worker_agent_id text collate "C" not null,
  -- Of the latest lease; empty unless there is one.
  lease_token text collate "C" not null,
  -- The Work stream that took it, or empty.
  lease_stream text collate "C" not null,
  lease_ms bigint not null,
  lease_expire_ms bigint,
  cancel_requested bigint not null,
  trace_id text collate "C" not null,
  span_id text collate "C" not null,
  schedule_id text collate "C" not null,
  nominal_ms bigint,
  create_ms bigint not null,
  run_ms bigint not null,
  -- Since when it can be claimed, or could be.
  ready_ms bigint,
  start_ms bigint,
  end_ms bigint,
  error bytea,
  progress bytea,
  unique (org_id, job_id)
);
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
  org_id text collate "C" not null,
  job_id text collate "C" not null,
  payload bytea,
  result bytea,
  primary key (org_id, job_id)
);

-- Attempts that failed. One that succeeded stands in its job.
create table queue_attempt (
  org_id text collate "C" not null,
  job_id text collate "C" not null,
  attempt bigint not null,
  worker_agent_id text collate "C" not null,
  start_ms bigint not null,
  end_ms bigint not null,
  -- Whether its lease ended, and not its worker ended it.
  expired bigint not null,
  error bytea not null,
  primary key (org_id, job_id, attempt)
);

-- What WatchJobs tells: an order-only log.
create table queue_change (
  seq bigint generated always as identity primary key,
  org_id text collate "C" not null,
  xid bigint not null,
  job_id text collate "C" not null,
  queue text collate "C" not null,
  state bigint not null,
  attempts bigint not null,
  worker_agent_id text collate "C" not null,
  time_ms bigint not null,
  error bytea
);
create index queue_change_log on queue_change (org_id, xid, seq);

-- The last change that is no longer kept.
create table queue_change_floor (
  org_id text collate "C" primary key,
  xid bigint not null,
  seq bigint not null
);

-- How many jobs are in a state: the sum over the shards, which keep transactions of one queue from waiting for one another. The queue '' counts the unfinished
-- jobs of the organisation, as pending.
create table queue_level (
  org_id text collate "C" not null,
  queue text collate "C" not null,
  shard bigint not null,
  scheduled bigint not null,
  pending bigint not null,
  leased bigint not null,
  failed bigint not null,
  primary key (org_id, queue, shard)
);

-- What happened in a minute: `kind` 0 submitted, 1 completed, 2 failed, and from 10 on the buckets of waits.
create table queue_minute (
  org_id text collate "C" not null,
  queue text collate "C" not null,
  minute bigint not null,
  kind bigint not null,
  shard bigint not null,
  n bigint not null,
  primary key (org_id, queue, minute, kind, shard)
);
create index queue_minute_age on queue_minute (minute);
