-- How agents find one another, what they say of one another, who may join, and what a server tells of itself.

-- One row an agent, made and removed with it. Visibility: 1 private, 2 organisation, 3 public. Availability: 1 available, 2 busy, 3 away.
create table directory_profile (
  -- The row of directory_words, too.
  seq integer primary key,
  org_id text not null,
  agent_id text not null,
  description text not null default '',
  -- JSON: what it advertises.
  capabilities text not null default '[]',
  visibility integer not null default 2,
  availability integer not null default 1,
  busy_until_ms integer,
  looking_for text not null default '[]',
  -- 0: never.
  last_seen_ms integer not null default 0,
  -- Thousandths; rating_sum / rating_weight, both as they stood at rated_ms (src/directory/reputation.ts).
  reputation_milli integer not null default 0,
  ratings integer not null default 0,
  rating_sum real not null default 0,
  rating_weight real not null default 0,
  rated_ms integer not null default 0,
  revision integer not null default 1,
  -- As src/directory/words.ts has them.
  words text not null default '',
  unique (org_id, agent_id)
) strict;
create index directory_reputation on directory_profile (org_id, reputation_milli, agent_id);
create index directory_seen on directory_profile (org_id, last_seen_ms, agent_id);
-- Those of lists without an organisation.
create index directory_public on directory_profile (agent_id) where visibility = 3;
create index directory_public_reputation on directory_profile (reputation_milli, agent_id) where visibility = 3;
create index directory_public_seen on directory_profile (last_seen_ms, agent_id) where visibility = 3;

-- What each agent was granted, advertises, or both.
create table directory_capability (
  org_id text not null,
  capability text not null,
  agent_id text not null,
  -- Of directory_profile, with what candidates are chosen by.
  profile_seq integer not null,
  advertised integer not null,
  granted integer not null,
  reputation_milli integer not null,
  visibility integer not null,
  primary key (org_id, capability, agent_id)
) strict, without rowid;
create index directory_capability_agent on directory_capability (org_id, agent_id, capability);
create index directory_capability_best on directory_capability (org_id, capability, reputation_milli, profile_seq);
create index directory_capability_public on directory_capability (capability, reputation_milli, profile_seq) where visibility = 3 and advertised = 1;

-- Made of the profiles' words, whoever writes them: a restore of a backup too.
create virtual table directory_words using fts5(words, content='directory_profile', content_rowid='seq', detail=none, tokenize='unicode61');
create trigger directory_words_insert after insert on directory_profile begin
  insert into directory_words (rowid, words) values (new.seq, new.words);
end;
create trigger directory_words_delete after delete on directory_profile begin
  insert into directory_words (directory_words, rowid, words) values ('delete', old.seq, old.words);
end;
create trigger directory_words_update after update of words on directory_profile begin
  insert into directory_words (directory_words, rowid, words) values ('delete', old.seq, old.words);
  insert into directory_words (rowid, words) values (new.seq, new.words);
end;

insert into directory_profile (org_id, agent_id) select org_id, agent_id from agent order by agent_id;
insert into directory_capability (org_id, capability, agent_id, profile_seq, advertised, granted, reputation_milli, visibility)
  select c.org_id, c.capability, c.agent_id, p.seq, 0, 1, 0, 2
  from agent_capability c join directory_profile p on p.org_id = c.org_id and p.agent_id = c.agent_id;
update directory_profile as p set words = 'xscope' || replace(p.org_id, '_', '') || ' ' || a.name || ' ' || coalesce(
    (select group_concat(c.capability, ' ') from agent_capability c where c.org_id = a.org_id and c.agent_id = a.agent_id), '')
  from agent a where a.org_id = p.org_id and a.agent_id = p.agent_id;

-- What one agent said of another. Evidence: 1 a task, 2 a job; of the organisation of who says it.
create table collaboration (
  org_id text not null,
  collaboration_id text not null,
  agent_id text not null,
  partner_org_id text not null,
  partner_agent_id text not null,
  evidence_kind integer not null,
  evidence_id text not null,
  task_type text not null,
  outcome integer not null,
  rating integer not null,
  create_ms integer not null,
  primary key (org_id, collaboration_id)
) strict;
create unique index collaboration_once on collaboration (org_id, agent_id, evidence_kind, evidence_id);
create index collaboration_given on collaboration (org_id, agent_id, collaboration_id);
create index collaboration_received on collaboration (partner_org_id, partner_agent_id, collaboration_id);

-- Found by its secret, which tells the organisation.
create table invite (
  secret_sha256 text primary key,
  org_id text not null,
  invite_id text not null,
  trust_tier integer not null,
  max_uses integer not null,
  uses integer not null,
  create_ms integer not null,
  expire_ms integer not null
) strict, without rowid;
create index invite_org on invite (org_id, expire_ms);
create index invite_due on invite (expire_ms);

-- What an agent did, counted in memory and written now and then.
create table agent_activity (
  org_id text not null,
  agent_id text not null,
  requests integer not null,
  jobs integer not null,
  primary key (org_id, agent_id)
) strict, without rowid;

-- The minutes since 1970 in which the server wrote and read, and how long that took. No row: it did not.
create table self_check (
  minute integer primary key,
  took_us integer not null
) strict;

-- What people sent by the contact form. The body is sealed JSON.
create table contact (
  -- The operator's.
  org_id text not null,
  contact_id text not null,
  create_ms integer not null,
  body blob not null,
  primary key (org_id, contact_id)
) strict, without rowid;
