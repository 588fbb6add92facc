create table job (
  id text primary key,
  state text not null,
  priority bigint not null,
  worker text,
  amount bigint not null default 0,
  payload bytea
);
create index job_ready on job (state, priority desc, id);
create table event (
  xid bigint not null,
  seq bigint generated always as identity,
  writer text not null,
  primary key (xid, seq)
);
