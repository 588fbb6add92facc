-- How much work of one trace a peer has asked for is counted.
drop index federation_peer_call_trace;
create index federation_peer_call_trace on federation_peer_call (trace_id, org_id);
