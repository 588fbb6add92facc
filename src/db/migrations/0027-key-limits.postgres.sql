-- Where a key may be used from: addresses and CIDRs as JSON; none: anywhere.
alter table api_key add column allowed_networks text collate "C" not null default '[]';
