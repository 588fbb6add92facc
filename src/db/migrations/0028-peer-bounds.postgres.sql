-- What a peer may touch.

-- The peer that a contract was brought over from; empty: the organisation registered it. Of what was brought over before, that is known of what is offered now.
alter table contract add column peer_id text collate "C" not null default '';
update contract set peer_id = (
    select o.peer_id from federation_peer_contract o where o.org_id = contract.org_id and o.contract_id = contract.contract_id and o.version = contract.version limit 1)
  where exists (
    select 1 from federation_peer_contract o where o.org_id = contract.org_id and o.contract_id = contract.contract_id and o.version = contract.version);

-- The trace that work of a peer came in, so that what agents pass on within it counts as gone on.
alter table federation_peer_call add column trace_id text collate "C" not null default '';
create index federation_peer_call_trace on federation_peer_call (trace_id, hops);

-- Whether work may still be under way with a peer that was removed: 0 or 1.
alter table federation_peer add column unsettled bigint not null default 0;
create index federation_peer_unsettled on federation_peer (peer_id) where unsettled = 1;
