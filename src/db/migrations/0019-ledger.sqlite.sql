-- The books. An organisation that is here already begins with no credits, as its accounts are made when they are first paid.

-- How each account stands: kept in the transaction of every transfer, and what its transfers come to.
create table ledger_account (
  org_id text not null,
  account_id text not null,
  -- Accounts of the platform, which many pay or are paid by at once, are the sum of rows 0 to 15, so that they do not wait for one another. Of all others there is row 0.
  shard integer not null,
  -- 1: it may go below zero, as what has issued credits.
  source integer not null,
  -- In micro-credits; reserved is a part of the balance.
  balance integer not null,
  reserved integer not null,
  create_ms integer not null,
  primary key (org_id, account_id, shard),
  check (reserved >= 0 and (source = 1 or balance >= reserved))
) strict, without rowid;

-- Each transfer, for ever as it was made: one account pays, one is paid.
create table ledger_transfer (
  -- Of the account that pays.
  org_id text not null,
  transfer_id text not null,
  -- The numbers of TransactionStep and TransactionKind.
  step integer not null,
  kind integer not null,
  debit_id text not null,
  credit_org_id text not null,
  credit_id text not null,
  -- What it moves, or sets aside.
  amount integer not null,
  -- The transfer that set aside what this one ends, and how much that was; empty and 0: none.
  pending_id text not null,
  pending_amount integer not null,
  -- The transfer that it undoes; empty: none.
  reverses_org_id text not null,
  reverses_id text not null,
  -- The first of those that it was posted with; empty: it was alone.
  chain_id text not null,
  -- For how long it sets aside; null: until it is ended.
  timeout_ms integer,
  reference text not null,
  create_ms integer not null,
  primary key (org_id, transfer_id),
  check (amount >= 0 and pending_amount >= 0 and (org_id <> credit_org_id or debit_id <> credit_id))
) strict;
-- What is set aside ends once, and a transfer is undone once.
create unique index ledger_transfer_pending on ledger_transfer (org_id, pending_id) where pending_id <> '';
create unique index ledger_transfer_reverses on ledger_transfer (reverses_org_id, reverses_id) where reverses_id <> '';

-- Whoever wants another past posts a transfer that undoes one.
create trigger ledger_transfer_no_update before update on ledger_transfer begin
  select raise(abort, 'a transfer is never changed: undo it by another');
end;
create trigger ledger_transfer_no_delete before delete on ledger_transfer begin
  select raise(abort, 'a transfer is never deleted: undo it by another');
end;

-- What is set aside now, by the transfer that did it.
create table ledger_hold (
  org_id text not null,
  transfer_id text not null,
  -- The account that it is a part of.
  account_id text not null,
  amount integer not null,
  expire_ms integer,
  primary key (org_id, transfer_id)
) strict;
create index ledger_hold_account on ledger_hold (org_id, account_id, expire_ms) where expire_ms is not null;
-- Of all organisations: those whose time has to be looked at.
create index ledger_hold_due on ledger_hold (expire_ms) where expire_ms is not null;

-- The lines of statements: by which transfers each account was changed.
create table ledger_entry (
  org_id text not null,
  account_id text not null,
  time_ms integer not null,
  -- The transfer.
  transfer_org_id text not null,
  transfer_id text not null,
  -- Its kind.
  kind integer not null,
  primary key (org_id, time_ms, transfer_id, account_id, transfer_org_id)
) strict, without rowid;
create index ledger_entry_account on ledger_entry (org_id, account_id, time_ms, transfer_id, transfer_org_id);
create index ledger_entry_kind on ledger_entry (org_id, kind, time_ms, transfer_id, account_id, transfer_org_id);
