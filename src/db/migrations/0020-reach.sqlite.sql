-- Messages across organisations, what agents sent, mails to the operator, what consumer groups hold, and invites by their ids.

-- An agent by its id alone: whoever writes to an agent does not say of which organisation it is.
create index agent_anywhere on agent (agent_id);
-- Whether anybody may write to it: the numbers 0 and 1.
alter table directory_profile add column accept_public_messages integer not null default 0;

-- The organisation of its sender, if that is another than the one it lies in.
alter table relay_message add column sender_org_id text not null default '';
-- What an agent has sent into other organisations.
create index relay_message_abroad on relay_message (sender_org_id, sender_agent_id, message_id) where sender_org_id <> '';
-- How much of an inbox is not read and of strangers, by their organisations: everything that is counted is in it.
create index relay_message_strangers on relay_message (org_id, log_id, sender_org_id, size_bytes) where unread = 1 and sender_org_id <> '';

alter table agent_activity add column messages integer not null default 0;
-- Of what was sent before, what is still kept counts.
insert into agent_activity (org_id, agent_id, requests, jobs, messages)
  select a.org_id, a.agent_id, 0, 0, sent.n
  from (select org_id, sender_agent_id, count(*) as n from relay_message where sender_agent_id <> '' group by org_id, sender_agent_id) sent
    join agent a on a.org_id = sent.org_id and a.agent_id = sent.sender_agent_id where true
  on conflict (org_id, agent_id) do update set messages = excluded.messages;

-- When it is to be mailed to the operator, or is taken for lost by who mails it; null: it need not be. How often that was tried, and when it was done.
alter table contact add column mail_due_ms integer;
alter table contact add column mail_attempts integer not null default 0;
alter table contact add column mail_ms integer;
create index contact_mail on contact (org_id, mail_due_ms) where mail_due_ms is not null;

-- How many messages are with readers or wait to be handed out again; how many dead letters went since there were too many; and whether the group is being removed.
alter table relay_group add column outstanding integer not null default 0;
alter table relay_group add column dead_lost integer not null default 0;
alter table relay_group add column dropped integer not null default 0;
update relay_group set outstanding = (
  select count(*) from relay_flight f where f.org_id = relay_group.org_id and f.log_id = relay_group.log_id and f.group_name = relay_group.name);
create index relay_group_dropped on relay_group (org_id, log_id, name) where dropped = 1;

create unique index invite_id on invite (org_id, invite_id);
