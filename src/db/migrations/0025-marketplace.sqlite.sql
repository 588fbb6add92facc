-- Work that is offered for credits.

create table marketplace_task (
  -- The row of marketplace_words, too.
  seq integer primary key,
  -- Of its creator; which agent: empty for the organisation itself.
  org_id text not null,
  task_id text not null,
  creator_agent_id text not null,
  title text not null,
  description text not null,
  category text not null,
  -- JSON.
  requirements text not null,
  tags text not null,
  -- What it is found by: its words as src/directory/words.ts has them, and its tags.
  words text not null,
  -- In micro-credits.
  reward integer not null,
  fee_bps integer not null,
  priority integer not null,
  effort_ms integer,
  deadline_ms integer,
  claim_timeout_ms integer,
  dispute_window_ms integer not null,
  -- The number of MarketplaceTaskState, since when, and when it changes by itself; null: it does not.
  state integer not null,
  state_ms integer not null,
  due_ms integer,
  -- Until when only the worker may claim it whose result was rejected.
  held_until_ms integer,
  -- Who works on it, or did last; empty: nobody.
  worker_org_id text not null,
  worker_agent_id text not null,
  deliveries integer not null,
  rating integer not null,
  -- What the worker was paid.
  paid integer not null,
  create_ms integer not null,
  unique (org_id, task_id)
) strict;
-- Whoever looks at a task does not say of which organisation it is.
create unique index marketplace_task_anywhere on marketplace_task (task_id);
create index marketplace_task_state on marketplace_task (state, seq);
create index marketplace_task_category on marketplace_task (state, category, seq);
create index marketplace_task_due on marketplace_task (due_ms, seq) where due_ms is not null;
create index marketplace_task_org on marketplace_task (org_id, seq);
create index marketplace_task_creator on marketplace_task (org_id, creator_agent_id, seq);
create index marketplace_task_worker_org on marketplace_task (worker_org_id, seq) where worker_agent_id <> '';
create index marketplace_task_worker on marketplace_task (worker_org_id, worker_agent_id, seq) where worker_agent_id <> '';
-- What has not ended, and what is claimed: they are counted.
create index marketplace_task_live on marketplace_task (org_id) where state < 5;
create index marketplace_task_claims on marketplace_task (worker_org_id, worker_agent_id) where state = 2;

create virtual table marketplace_words using fts5(words, content='marketplace_task', content_rowid='seq', detail=none, tokenize='unicode61');
create trigger marketplace_words_insert after insert on marketplace_task begin
  insert into marketplace_words (rowid, words) values (new.seq, new.words);
end;
create trigger marketplace_words_delete after delete on marketplace_task begin
  insert into marketplace_words (marketplace_words, rowid, words) values ('delete', old.seq, old.words);
end;

-- What was delivered for a task, the first is 1.
create table marketplace_delivery (
  org_id text not null,
  task_id text not null,
  number integer not null,
  worker_org_id text not null,
  worker_agent_id text not null,
  -- Sealed.
  result blob not null,
  deliver_ms integer not null,
  -- The number of ReviewVerdict; 0: none yet.
  verdict integer not null,
  review_ms integer,
  -- Sealed JSON: what was said of it.
  said blob,
  primary key (org_id, task_id, number)
) strict;

-- Evidence of collaborations is also: 3 a thread of messages, 4 a task of the marketplace. Who wrote into which log of a thread:
create index relay_message_thread on relay_message (org_id, sender_agent_id, thread_id, log_id) where thread_id <> '';
