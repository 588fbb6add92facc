-- What agents remember. A memory is an agent's own (its id is the agent's) or a namespace that agents share; its row is the head of its log, and what its
-- quota is counted in.
create table memory (
  org_id text collate "C" not null,
  memory_id text collate "C" not null,
  -- The agent it belongs to.
  agent_id text collate "C" not null,
  -- The name of a shared namespace; null: an agent's own memory.
  namespace text collate "C",
  -- The revision of the last change, and up to which revision changes are no longer kept.
  head bigint not null,
  compacted bigint not null,
  -- With those that have expired and are not swept yet.
  entries bigint not null,
  bytes bigint not null,
  public_entries bigint not null,
  -- How many agents have ever written into it.
  contributors bigint not null,
  create_ms bigint not null,
  update_ms bigint not null,
  primary key (org_id, memory_id)
);
create unique index memory_namespace on memory (org_id, namespace) where namespace is not null;
create index memory_public on memory (org_id, namespace) where namespace is not null and public_entries > 0;
create index memory_agent on memory (org_id, agent_id, namespace);

create table memory_entry (
  org_id text collate "C" not null,
  memory_id text collate "C" not null,
  namespace text collate "C" not null,
  key text collate "C" not null,
  revision bigint not null,
  create_revision bigint not null,
  size_bytes bigint not null,
  create_ms bigint not null,
  update_ms bigint not null,
  expire_ms bigint,
  -- Whether other organisations read it.
  public bigint not null,
  -- Sealed: description and tags, null for neither; the value.
  about bytea,
  value bytea not null,
  primary key (org_id, memory_id, namespace, key)
);
-- The order of writing. Without the key, as SQLite has it: the planner would take this index to find one.
create index memory_entry_written on memory_entry (org_id, memory_id, namespace, revision);
create index memory_entry_due on memory_entry (expire_ms) where expire_ms is not null;

-- The log of each memory: one row a revision, without a gap.
create table memory_change (
  org_id text collate "C" not null,
  memory_id text collate "C" not null,
  revision bigint not null,
  namespace text collate "C" not null,
  key text collate "C" not null,
  -- The number of ChangeKind.
  kind bigint not null,
  time_ms bigint not null,
  -- Whether other organisations read the entry after the change, and before it.
  public bigint not null,
  was_public bigint not null,
  -- Sealed: the entry as the change left it; null where it is gone.
  body bytea,
  primary key (org_id, memory_id, revision)
);

-- Memories whose agents were deleted: nobody sees them any more, and the sweep removes what is left of them.
create table memory_drop (
  org_id text collate "C" not null,
  memory_id text collate "C" not null,
  primary key (org_id, memory_id)
);
