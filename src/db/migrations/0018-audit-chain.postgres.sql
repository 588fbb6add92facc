-- Audit rows are chained: see src/ops/AUDIT.md.

-- The number of AuditKind.
alter table audit_event add column kind bigint not null default 1;
-- Set once, by the sealer.
alter table audit_event add column number bigint;
alter table audit_event add column hash text collate "C";
-- No chain forks: of two sealers that gave the same number one fails. What is not chained is not in it, so writers do not pay for it.
create unique index audit_event_number on audit_event (org_id, number) where number is not null;

-- Where the chain of each organisation ends.
create table audit_head (
  org_id text collate "C" primary key,
  -- The last row that is chained.
  number bigint not null,
  hash text collate "C" not null,
  seal_ms bigint not null,
  -- The last row of the log that the sealer has seen.
  xid bigint not null,
  seq bigint not null
);
