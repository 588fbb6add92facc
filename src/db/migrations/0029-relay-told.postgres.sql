-- What retention took from a consumer group before it was done with it, and from an inbox before it was read, is told.

-- How many messages the channel let go of that the group had not acknowledged.
alter table relay_group add column lost bigint not null default 0;
-- The newest message of an inbox that was not read and is gone, until it is marked as read; 0: there is none.
alter table relay_log add column unread_gone bigint not null default 0;
