-- Encryption at rest; see src/vault/VAULT.md. Without a row in `vault` nothing is encrypted.

-- One row. `master_id` names the master key that wraps new data keys, and `check_value` is something that it has wrapped.
create table vault (
  one bigint primary key check (one = 1),
  master_id text collate "C" not null,
  check_value bytea not null,
  -- Counts the changes that every server has to hear of.
  epoch bigint not null,
  -- Data keys of an earlier generation seal nothing any more, and what those of one before `reseal_generation` have sealed is sealed anew.
  generation bigint not null,
  reseal_generation bigint not null,
  create_ms bigint not null,
  rotate_ms bigint not null
);

-- The data keys of organisations.
create table vault_key (
  org_id text collate "C" not null,
  key_id text collate "C" not null,
  -- 1: seals and opens; 2: only opens; 3: is gone.
  state bigint not null,
  generation bigint not null,
  -- Which master key has wrapped it; empty once it is gone.
  master_id text collate "C" not null,
  -- Null once it is gone.
  wrapped bytea,
  -- How many payloads it has sealed, at least, in steps.
  seals bigint not null,
  create_ms bigint not null,
  -- The epoch in which its state changed; 0 when it is as it was made.
  epoch bigint not null,
  primary key (org_id, key_id)
);
-- Decides which of the servers that make an organisation's key at once has made it.
create unique index vault_key_active on vault_key (org_id) where state = 1;
create index vault_key_id on vault_key (key_id);
create index vault_key_master on vault_key (master_id, key_id);
create index vault_key_stale on vault_key (generation, key_id) where state = 1;
create index vault_key_epoch on vault_key (epoch, key_id) where epoch > 0;

-- How far a table's old rows are sealed.
create table vault_walk (
  table_name text collate "C" primary key,
  -- The `reseal_generation` it is walked for.
  generation bigint not null,
  -- JSON of the key of the last row looked at; empty at the beginning of a pass.
  after_key text collate "C" not null,
  passes bigint not null,
  -- How many rows this pass, and all passes of this walk, found to seal.
  found bigint not null,
  sealed bigint not null,
  -- When it found nothing more to seal.
  done_ms bigint,
  -- From when on a row that is not encrypted is refused.
  strict_ms bigint
);

-- Tells the rows of one trace and kind apart, so that the body of one is refused in the place of another; empty in rows of before.
alter table trace_event add column event_id text collate "C" not null default '';
