-- Where a key may be used from: addresses and CIDRs as JSON; none: anywhere.
alter table api_key add column allowed_networks text not null default '[]';
-- How many requests a minute it may make; 0: as many as whom it speaks for.
alter table api_key add column requests_per_minute integer not null default 0;
