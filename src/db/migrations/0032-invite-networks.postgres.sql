-- Where the keys may be used from that agents get by an invite, as JSON: the networks of the key that made it.
alter table invite add column allowed_networks text collate "C" not null default '[]';
