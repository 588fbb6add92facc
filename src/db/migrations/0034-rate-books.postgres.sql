-- What counts of requests against limits that replicas share: who may call how often is no data of an organisation, and is of use for a minute.
create table rate_book (
  kind text not null,
  id text not null,
  -- Of whoever wrote it last: another's change is told by it.
  stamp text not null,
  -- JSON: [last_ms, count] of what was spent, [last_ms, count, holder] of what is allotted.
  book text not null,
  -- From then on nothing in it counts.
  over_ms bigint not null,
  primary key (kind, id)
);

create index rate_book_over on rate_book (over_ms);
