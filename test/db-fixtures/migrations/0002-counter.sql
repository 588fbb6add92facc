create table counter (id text primary key, n bigint not null);
insert into counter values ('head', 0);
