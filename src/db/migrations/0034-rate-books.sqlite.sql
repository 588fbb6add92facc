-- What counts of requests against limits that replicas share. A file has one process, which counts in its memory: the table is here so that both engines have the same.
create table rate_book (
  kind text not null,
  id text not null,
  stamp text not null,
  book text not null,
  over_ms integer not null,
  primary key (kind, id)
) strict, without rowid;

create index rate_book_over on rate_book (over_ms);
