-- Categories count what is found in them: until now they also counted listings of organisations that are disabled.
delete from exchange_category;
insert into exchange_category (category, listings)
select l.category, count(*) from exchange_listing l join organization o on o.org_id = l.org_id and o.disabled = 0 where l.state = 1 group by l.category;

-- What free requests were used in periods that are long over is deleted, oldest first.
create index exchange_free_use_old on exchange_free_use (period_ms);
