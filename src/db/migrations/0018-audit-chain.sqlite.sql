-- Audit rows are chained: see src/ops/AUDIT.md.

-- The number of AuditKind.
alter table audit_event add column kind integer not null default 1;
-- Set once, by the sealer.
alter table audit_event add column number integer;
alter table audit_event add column hash text;
-- No chain forks: of two sealers that gave the same number one fails. What is not chained is not in it, so writers do not pay for it.
create unique index audit_event_number on audit_event (org_id, number) where number is not null;

-- Where the chain of each organisation ends.
create table audit_head (
  org_id text primary key,
  -- The last row that is chained.
  number integer not null,
  hash text not null,
  seal_ms integer not null,
  -- The last row of the log that the sealer has seen.
  xid integer not null,
  seq integer not null
) strict, without rowid;
