-- Namespaces, and grants between organisations.

-- The numbers 0 and 1.
alter table organization add column auto_accept_grants bigint not null default 0;

create table federation_namespace (
  org_id text collate "C" not null,
  name text collate "C" not null,
  description text collate "C" not null,
  create_ms bigint not null,
  primary key (org_id, name)
);

-- The namespace that it belongs to; empty: none.
alter table agent add column namespace text collate "C" not null default '';
create index agent_namespace on agent (org_id, namespace, agent_id);
alter table contract add column namespace text collate "C" not null default '';
create index contract_namespace on contract (org_id, namespace, contract_id, create_ms, version);

-- One row for both organisations, so that whoever changes it holds it against the other. Each finds it by indexes that begin with itself.
create table federation_grant (
  -- The grantor.
  org_id text collate "C" not null,
  grant_id text collate "C" not null,
  grantee_org_id text collate "C" not null,
  -- The number of GrantState; of a grant whose time is over perhaps still the one before.
  state bigint not null,
  -- "capability", "contractId" or "namespace", and which.
  subject_kind text collate "C" not null,
  subject text collate "C" not null,
  -- GrantTerms as JSON, and the time in it.
  terms text collate "C" not null,
  expire_ms bigint,
  revision bigint not null,
  create_ms bigint not null,
  update_ms bigint not null,
  primary key (org_id, grant_id)
);
create index federation_grant_state on federation_grant (org_id, state, grant_id);
create index federation_grant_received on federation_grant (grantee_org_id, grant_id);
create index federation_grant_received_state on federation_grant (grantee_org_id, state, grant_id);
-- Of two organisations, from either side.
create index federation_grant_received_from on federation_grant (grantee_org_id, org_id, grant_id);
-- Of all organisations: those whose time has to be looked at. PROPOSED, ACTIVE and SUSPENDED are the numbers below 4.
create index federation_grant_due on federation_grant (expire_ms) where state < 4 and expire_ms is not null;

-- What each change made of a grant.
create table federation_grant_revision (
  org_id text collate "C" not null,
  grant_id text collate "C" not null,
  revision bigint not null,
  -- The numbers of GrantAct, GrantParty and GrantState.
  act bigint not null,
  party bigint not null,
  key_id text collate "C" not null,
  state bigint not null,
  terms text collate "C" not null,
  create_ms bigint not null,
  primary key (org_id, grant_id, revision)
);

-- What is used under a grant on a day of UTC.
create table federation_grant_usage (
  org_id text collate "C" not null,
  grant_id text collate "C" not null,
  day_ms bigint not null,
  requests bigint not null,
  denials bigint not null,
  tokens bigint not null,
  reserved_tokens bigint not null,
  cost_micros bigint not null,
  primary key (org_id, grant_id, day_ms)
);
