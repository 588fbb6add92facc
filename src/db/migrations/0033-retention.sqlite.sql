-- The last row of each log of an organisation that is no longer kept: a cursor before it has lost something.
create table log_floor (
  org_id text not null,
  -- "traces" or "events".
  log text not null,
  xid integer not null,
  seq integer not null,
  primary key (org_id, log)
) strict, without rowid;

-- The last row of the chain that is no longer kept; 0: all are.
alter table audit_head add column gone_number integer not null default 0;
alter table audit_head add column gone_hash text not null default '0000000000000000000000000000000000000000000000000000000000000000';
