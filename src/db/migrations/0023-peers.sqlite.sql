-- Other servers: what this one signs with, whom it federates with, and what has crossed.

-- The keys of this server, of the operator's organisation.
create table server_key (
  org_id text not null,
  -- From 1: the first one can be made by one server alone.
  generation integer not null,
  key_id text not null,
  -- base64url.
  public_key text not null,
  -- Sealed.
  private_key blob not null,
  -- From when it signs.
  active_ms integer not null,
  create_ms integer not null,
  primary key (org_id, generation)
);

create table federation_peer (
  -- The organisation that stands for it.
  org_id text not null,
  peer_id text not null,
  name text not null,
  base_url text not null,
  audience text not null,
  -- Empty: none.
  remote_org_id text not null,
  agent_id text not null,
  -- The numbers of PeerState: 1 active, 2 removed.
  state integer not null,
  create_ms integer not null,
  update_ms integer not null,
  primary key (org_id, peer_id)
);
create unique index federation_peer_id on federation_peer (peer_id);
create unique index federation_peer_active on federation_peer (peer_id) where state = 1;
create unique index federation_peer_name on federation_peer (name) where state = 1;
create unique index federation_peer_org on federation_peer (org_id) where state = 1;
-- Or one peer could pass what is meant for another on to it.
create unique index federation_peer_audience on federation_peer (audience) where state = 1;

create table federation_peer_key (
  org_id text not null,
  peer_id text not null,
  key_id text not null,
  -- base64url.
  public_key text not null,
  create_ms integer not null,
  expire_ms integer,
  primary key (org_id, peer_id, key_id)
);
-- A message names its key and nothing else.
create unique index federation_peer_key_id on federation_peer_key (key_id);

-- Messages that were taken, until they have expired. By key: a peer that is removed and added again is the same to them.
create table federation_peer_nonce (
  key_id text not null,
  nonce text not null,
  expire_ms integer not null,
  primary key (key_id, nonce)
);
create index federation_peer_nonce_expiry on federation_peer_nonce (expire_ms);

-- Work that peers asked for, so that none is begun twice.
create table federation_peer_call (
  org_id text not null,
  call_id text not null,
  peer_id text not null,
  request_sha256 text not null,
  target_org_id text not null,
  task_id text not null,
  -- How often it has gone from server to server, and what it may cost, which go on with it.
  hops integer not null,
  budget_micros integer,
  create_ms integer not null,
  primary key (org_id, call_id)
);
create index federation_peer_call_task on federation_peer_call (org_id, task_id);
create index federation_peer_call_age on federation_peer_call (create_ms);

-- Contract versions that are offered for a peer.
create table federation_peer_contract (
  org_id text not null,
  peer_id text not null,
  contract_id text not null,
  version text not null,
  primary key (org_id, peer_id, contract_id, version)
);
