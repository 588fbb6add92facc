-- Listings, and what is bought and said of them. Amounts are micro-credits.

create table exchange_listing (
  -- The row of exchange_words, too.
  seq integer primary key,
  -- Who offers it.
  org_id text not null,
  listing_id text not null,
  -- The number of ListingState.
  state integer not null,
  -- The current one of exchange_offer, and what is found and sorted by of it.
  version integer not null,
  offer text not null,
  category text not null,
  -- JSON: what of `offer` is searched.
  tags text not null,
  -- The most that one request can cost.
  price_micros integer not null,
  -- The words of the title, each between blanks; and all, as src/directory/words.ts has them.
  title_words text not null,
  words text not null,
  -- How many reviews there are of each rating, their mean in thousandths, and the one that listings are sorted by (src/exchange/review/rating.ts).
  rated_1 integer not null default 0,
  rated_2 integer not null default 0,
  rated_3 integer not null default 0,
  rated_4 integer not null default 0,
  rated_5 integer not null default 0,
  mean_milli integer not null default 0,
  rank_milli integer not null,
  create_ms integer not null,
  update_ms integer not null,
  unique (listing_id)
) strict;
create index exchange_listing_org on exchange_listing (org_id, seq);
-- Those of the catalog. PUBLISHED is the number 1.
create index exchange_listing_best on exchange_listing (rank_milli, seq) where state = 1;
create index exchange_listing_newest on exchange_listing (seq) where state = 1;
create index exchange_listing_price on exchange_listing (price_micros, seq) where state = 1;
create index exchange_listing_category_best on exchange_listing (category, rank_milli, seq) where state = 1;
create index exchange_listing_category_newest on exchange_listing (category, seq) where state = 1;
create index exchange_listing_category_price on exchange_listing (category, price_micros, seq) where state = 1;

-- Made of the listings' words, whoever writes them: a restore of a backup too.
create virtual table exchange_words using fts5(words, content='exchange_listing', content_rowid='seq', detail=none, tokenize='unicode61');
create trigger exchange_words_insert after insert on exchange_listing begin
  insert into exchange_words (rowid, words) values (new.seq, new.words);
end;
create trigger exchange_words_delete after delete on exchange_listing begin
  insert into exchange_words (exchange_words, rowid, words) values ('delete', old.seq, old.words);
end;
create trigger exchange_words_update after update of words on exchange_listing begin
  insert into exchange_words (exchange_words, rowid, words) values ('delete', old.seq, old.words);
  insert into exchange_words (rowid, words) values (new.seq, new.words);
end;

-- Every offer that was made of a listing: the message Offer as JSON.
create table exchange_offer (
  org_id text not null,
  listing_id text not null,
  version integer not null,
  offer text not null,
  create_ms integer not null,
  primary key (org_id, listing_id, version)
) strict, without rowid;

-- How many published listings each category has. Of the whole server, as the catalog is.
create table exchange_category (
  category text not null primary key,
  listings integer not null
) strict, without rowid;

-- Each request for a listing, by its task on the provider's side.
create table exchange_call (
  -- The provider.
  org_id text not null,
  task_id text not null,
  listing_id text not null,
  listing_version integer not null,
  caller_org_id text not null,
  payer_id text not null,
  -- The numbers of Charge and ReceiptState.
  charge integer not null,
  state integer not null,
  -- The price, as it was when the request was accepted.
  request_micros integer not null,
  thousand_tokens_micros integer not null,
  max_tokens integer not null,
  fee_bps integer not null,
  -- What was set aside, what was paid, and what of that went to the platform.
  reserved_micros integer not null,
  amount_micros integer not null,
  fee_micros integer not null,
  tokens integer not null,
  -- What it counts for, and in which period of that; empty and 0: nothing.
  subscription_id text not null,
  period_ms integer not null,
  create_ms integer not null,
  end_ms integer,
  primary key (org_id, task_id)
) strict;
-- SETTLED is the number 2.
create index exchange_call_settled on exchange_call (org_id, listing_id, end_ms, create_ms) where state = 2;
create index exchange_call_bought on exchange_call (caller_org_id, listing_id) where state = 2;

-- What came of the requests for a listing on a day of UTC, and of its subscriptions.
create table exchange_day (
  org_id text not null,
  day_ms integer not null,
  listing_id text not null,
  completed integer not null,
  failed integer not null,
  requests_micros integer not null,
  subscriptions_micros integer not null,
  fees_micros integer not null,
  primary key (org_id, listing_id, day_ms)
) strict, without rowid;
create index exchange_day_latest on exchange_day (org_id, day_ms, listing_id);

-- How many requests of the free tier an organisation has used in a period that began then.
create table exchange_free_use (
  -- Who asks.
  org_id text not null,
  listing_id text not null,
  period_ms integer not null,
  used integer not null,
  primary key (org_id, listing_id, period_ms)
) strict, without rowid;

create table exchange_subscription (
  -- Who pays.
  org_id text not null,
  subscription_id text not null,
  provider_org_id text not null,
  listing_id text not null,
  -- The number of SubscriptionState.
  state integer not null,
  payer_id text not null,
  -- The message SubscriptionPlan as JSON, and what is asked of it by statements.
  plan text not null,
  included integer not null,
  used integer not null,
  -- From when periods are counted, how many were paid for since, and how many in all, by which the transfers are named.
  anchor_ms integer not null,
  periods integer not null,
  payments integer not null,
  period_start_ms integer not null,
  period_end_ms integer not null,
  -- 0 or 1.
  cancel_at_end integer not null,
  create_ms integer not null,
  primary key (org_id, subscription_id)
) strict;
-- ACTIVE and PAUSED are the numbers 1 and 2.
create unique index exchange_subscription_live on exchange_subscription (org_id, listing_id) where state < 3;
-- Of all organisations: those whose time has to be looked at.
create index exchange_subscription_due on exchange_subscription (period_end_ms) where state = 1;

create table exchange_review (
  -- The provider.
  org_id text not null,
  listing_id text not null,
  reviewer_org_id text not null,
  review_id text not null,
  rating integer not null,
  body text not null,
  response text not null,
  create_ms integer not null,
  update_ms integer not null,
  response_ms integer,
  primary key (org_id, listing_id, reviewer_org_id)
) strict;
create unique index exchange_review_id on exchange_review (org_id, review_id);
create index exchange_review_latest on exchange_review (org_id, listing_id, update_ms, review_id);

-- Grants on listings: one that has not ended for each organisation, whoever makes it first. PROPOSED, ACTIVE and SUSPENDED are the numbers below 4.
create unique index federation_grant_listing on federation_grant (grantee_org_id, subject) where subject_kind = 'listingId' and state < 4;
-- Of a listing's grants of an organisation, the latest.
create index federation_grant_listings on federation_grant (grantee_org_id, subject, grant_id) where subject_kind = 'listingId';
-- Those that an organisation has proposed itself.
create index federation_grant_proposed on federation_grant (org_id) where state < 4 and subject_kind <> 'listingId';

-- The message Receipt as JSON; empty: it costs nothing.
alter table task add column receipt text not null default '';
