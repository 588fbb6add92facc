-- Namespaces, and grants between organisations.

-- The numbers 0 and 1.
alter table organization add column auto_accept_grants integer not null default 0;

create table federation_namespace (
  org_id text not null,
  name text not null,
  description text not null,
  create_ms integer not null,
  primary key (org_id, name)
) strict;

-- The namespace that it belongs to; empty: none.
alter table agent add column namespace text not null default '';
create index agent_namespace on agent (org_id, namespace, agent_id);
alter table contract add column namespace text not null default '';
create index contract_namespace on contract (org_id, namespace, contract_id, create_ms, version);

-- One row for both organisations, so that whoever changes it holds it against the other. Each finds it by indexes that begin with itself.
create table federation_grant (
  -- The grantor.
  org_id text not null,
  grant_id text not null,
  grantee_org_id text not null,
  -- The number of GrantState; of a grant whose time is over perhaps still the one before.
  state integer not null,
  -- "capability", "contractId" or "namespace", and which.
  subject_kind text not null,
  subject text not null,
  -- GrantTerms as JSON, and the time in it.
  terms text not null,
  expire_ms integer,
  revision integer not null,
  create_ms integer not null,
  update_ms integer not null,
  primary key (org_id, grant_id)
) strict;
create index federation_grant_state on federation_grant (org_id, state, grant_id);
create index federation_grant_received on federation_grant (grantee_org_id, grant_id);
create index federation_grant_received_state on federation_grant (grantee_org_id, state, grant_id);
-- Of two organisations, from either side.
create index federation_grant_received_from on federation_grant (grantee_org_id, org_id, grant_id);
-- Of all organisations: those whose time has to be looked at. PROPOSED, ACTIVE and SUSPENDED are the numbers below 4.
create index federation_grant_due on federation_grant (expire_ms) where state < 4 and expire_ms is not null;

-- What each change made of a grant.
create table federation_grant_revision (
  org_id text not null,
  grant_id text not null,
  revision integer not null,
  -- The numbers of GrantAct, GrantParty and GrantState.
  act integer not null,
  party integer not null,
  key_id text not null,
  state integer not null,
  terms text not null,
  create_ms integer not null,
  primary key (org_id, grant_id, revision)
) strict;

-- What is used under a grant on a day of UTC.
create table federation_grant_usage (
  org_id text not null,
  grant_id text not null,
  day_ms integer not null,
  requests integer not null,
  denials integer not null,
  tokens integer not null,
  reserved_tokens integer not null,
  cost_micros integer not null,
  primary key (org_id, grant_id, day_ms)
) strict;
