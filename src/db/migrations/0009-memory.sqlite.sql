-- What agents remember. A memory is an agent's own (its id is the agent's) or a namespace that agents share; its row is the head of its log, and what its
-- quota is counted in.
create table memory (
  org_id text not null,
  memory_id text not null,
  -- The agent it belongs to.
  agent_id text not null,
  -- The name of a shared namespace; null: an agent's own memory.
  namespace text,
  -- The revision of the last change, and up to which revision changes are no longer kept.
  head integer not null,
  compacted integer not null,
  -- With those that have expired and are not swept yet.
  entries integer not null,
  bytes integer not null,
  public_entries integer not null,
  -- How many agents have ever written into it.
  contributors integer not null,
  create_ms integer not null,
  update_ms integer not null,
  primary key (org_id, memory_id)
) strict, without rowid;
create unique index memory_namespace on memory (org_id, namespace) where namespace is not null;
create index memory_public on memory (org_id, namespace) where namespace is not null and public_entries > 0;
create index memory_agent on memory (org_id, agent_id, namespace);

create table memory_entry (
  org_id text not null,
  memory_id text not null,
  namespace text not null,
  key text not null,
  revision integer not null,
  create_revision integer not null,
  size_bytes integer not null,
  create_ms integer not null,
  update_ms integer not null,
  expire_ms integer,
  -- Whether other organisations read it.
  public integer not null,
  -- Sealed: description and tags, null for neither; the value.
  about blob,
  value blob not null,
  primary key (org_id, memory_id, namespace, key)
) strict;
-- The order of writing; the key, so that a prefix is told without the row.
create index memory_entry_written on memory_entry (org_id, memory_id, namespace, revision, key);
create index memory_entry_due on memory_entry (expire_ms) where expire_ms is not null;

-- The log of each memory: one row a revision, without a gap.
create table memory_change (
  org_id text not null,
  memory_id text not null,
  revision integer not null,
  namespace text not null,
  key text not null,
  -- The number of ChangeKind.
  kind integer not null,
  time_ms integer not null,
  -- Whether other organisations read the entry after the change, and before it.
  public integer not null,
  was_public integer not null,
  -- Sealed: the entry as the change left it; null where it is gone.
  body blob,
  primary key (org_id, memory_id, revision)
) strict;

-- Memories whose agents were deleted: nobody sees them any more, and the sweep removes what is left of them.
create table memory_drop (
  org_id text not null,
  memory_id text not null,
  primary key (org_id, memory_id)
) strict, without rowid;
