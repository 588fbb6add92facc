create table job (
  id text primary key,
  state text not null,
  priority integer not null,
  worker text,
  amount integer not null default 0,
  payload blob
) strict;
create index job_ready on job (state, priority desc, id);
create table event (
  xid integer not null,
  seq integer primary key autoincrement,
  writer text not null
) strict;
create index event_order on event (xid, seq);
