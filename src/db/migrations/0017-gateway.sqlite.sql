-- Work across organisations.

-- Whether tasks under a grant that is not in force any more may still be open: 0 or 1.
alter table federation_grant add column unsettled integer not null default 0;
create index federation_grant_unsettled on federation_grant (org_id, grant_id) where unsettled = 1;
-- Those in force, by what they are on. ACTIVE is the number 2.
create index federation_grant_in_force on federation_grant (grantee_org_id, org_id, subject_kind, subject, grant_id) where state = 2;

create index contract_capability on contract (org_id, capability, contract_id, create_ms, version);

-- A request across organisations: one row for both, found by each along an index of its own. The task has the same id on both sides.
create table federation_crossing (
  -- The organisation that does the work.
  org_id text not null,
  -- Of a request that was refused: an id that no task has.
  task_id text not null,
  caller_org_id text not null,
  caller_agent_id text not null,
  trace_id text not null,
  contract_id text not null,
  contract_version text not null,
  grant_id text not null,
  grant_revision integer not null,
  -- The numbers of PolicyVerdict; 0: not asked.
  caller_verdict integer not null,
  target_verdict integer not null,
  -- Why it was refused: the name of an ErrorReason, or empty.
  reason text not null,
  -- What is set aside under the grant, on which day.
  day_ms integer not null,
  reserved_tokens integer not null,
  -- 1 from the acceptance of the task to its end.
  is_open integer not null,
  create_ms integer not null,
  primary key (org_id, task_id)
) strict;
create index federation_crossing_caller on federation_crossing (caller_org_id, trace_id, task_id);
create index federation_crossing_trace on federation_crossing (org_id, trace_id, task_id);
create index federation_crossing_open on federation_crossing (org_id, grant_id, task_id) where is_open = 1;
