-- The books. An organisation that is here already begins with no credits, as its accounts are made when they are first paid.

-- How each account stands: kept in the transaction of every transfer, and what its transfers come to.
create table ledger_account (
  org_id text collate "C" not null,
  account_id text collate "C" not null,
  -- Accounts of the platform, which many pay or are paid by at once, are the sum of rows 0 to 15, so that they do not wait for one another. Of all others there is row 0.
  shard bigint not null,
  -- 1: it may go below zero, as what has issued credits.
  source bigint not null,
  -- In micro-credits; reserved is a part of the balance.
  balance bigint not null,
  reserved bigint not null,
  create_ms bigint not null,
  primary key (org_id, account_id, shard),
  check (reserved >= 0 and (source = 1 or balance >= reserved))
);

-- Each transfer, for ever as it was made: one account pays, one is paid.
create table ledger_transfer (
  -- Of the account that pays.
  org_id text collate "C" not null,
  transfer_id text collate "C" not null,
  -- The numbers of TransactionStep and TransactionKind.
  step bigint not null,
  kind bigint not null,
  debit_id text collate "C" not null,
  credit_org_id text collate "C" not null,
  credit_id text collate "C" not null,
  -- What it moves, or sets aside.
  amount bigint not null,
  -- The transfer that set aside what this one ends, and how much that was; empty and 0: none.
  pending_id text collate "C" not null,
  pending_amount bigint not null,
  -- The transfer that it undoes; empty: none.
  reverses_org_id text collate "C" not null,
  reverses_id text collate "C" not null,
  -- The first of those that it was posted with; empty: it was alone.
  chain_id text collate "C" not null,
  -- For how long it sets aside; null: until it is ended.
  timeout_ms bigint,
  reference text collate "C" not null,
  create_ms bigint not null,
  primary key (org_id, transfer_id),
  check (amount >= 0 and pending_amount >= 0 and (org_id <> credit_org_id or debit_id <> credit_id))
);
-- What is set aside ends once, and a transfer is undone once.
create unique index ledger_transfer_pending on ledger_transfer (org_id, pending_id) where pending_id <> '';
create unique index ledger_transfer_reverses on ledger_transfer (reverses_org_id, reverses_id) where reverses_id <> '';

-- Whoever wants another past posts a transfer that undoes one.
create function ledger_transfer_is_final() returns trigger language plpgsql as $$
begin
  raise exception 'a transfer is never changed or deleted: undo it by another';
end
$$;
create trigger ledger_transfer_final before update or delete on ledger_transfer for each row execute function ledger_transfer_is_final();

-- What is set aside now, by the transfer that did it.
create table ledger_hold (
  org_id text collate "C" not null,
  transfer_id text collate "C" not null,
  -- The account that it is a part of.
  account_id text collate "C" not null,
  amount bigint not null,
  expire_ms bigint,
  primary key (org_id, transfer_id)
);
create index ledger_hold_account on ledger_hold (org_id, account_id, expire_ms) where expire_ms is not null;
-- Of all organisations: those whose time has to be looked at.
create index ledger_hold_due on ledger_hold (expire_ms) where expire_ms is not null;

-- The lines of statements: by which transfers each account was changed.
create table ledger_entry (
  org_id text collate "C" not null,
  account_id text collate "C" not null,
  time_ms bigint not null,
  -- The transfer.
  transfer_org_id text collate "C" not null,
  transfer_id text collate "C" not null,
  -- Its kind.
  kind bigint not null,
  primary key (org_id, time_ms, transfer_id, account_id, transfer_org_id)
);
create index ledger_entry_account on ledger_entry (org_id, account_id, time_ms, transfer_id, transfer_org_id);
create index ledger_entry_kind on ledger_entry (org_id, kind, time_ms, transfer_id, account_id, transfer_org_id);
