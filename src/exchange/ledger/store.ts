import type { TransactionKind, TransactionStep } from "../../../gen/moltwire/exchange/v1/ledger_pb.ts";
import { join, type Queryable, type Sql, sql, type Tx } from "../../db/db.ts";
import { type Account, isSource, type Slot, slotKey } from "./account.ts";
import { type Hold, holdKey, type Standing } from "./rule.ts";
import { movedBy, type Transfer, type TransferRef } from "./transfer.ts";

/** Integers come as bigint only beyond 2^53. */
type Stored = number | bigint;

/** A transfer as it is stored; columns are described in the migration. */
export type TransferRow = {
  readonly org_id: string;
  readonly transfer_id: string;
  readonly step: TransactionStep;
  readonly kind: TransactionKind;
  readonly debit_id: string;
  readonly credit_org_id: string;
  readonly credit_id: string;
  readonly amount: Stored;
  readonly pending_id: string;
  readonly pending_amount: Stored;
  readonly reverses_org_id: string;
  readonly reverses_id: string;
  readonly chain_id: string;
  readonly timeout_ms: number | null;
  readonly reference: string;
  readonly create_ms: number;
};

const columns = sql`org_id, transfer_id, step, kind, debit_id, credit_org_id, credit_id, amount, pending_id, pending_amount, reverses_org_id, reverses_id, chain_id, timeout_ms, reference, create_ms`;

/** What any of several conditions holds for; each is a look-up of its own. */
const anyOf = (conditions: readonly Sql[]): Sql => sql`(${join(conditions, " or ")})`;

const slotIs = ({ orgId, accountId, shard }: Slot): Sql =>
  sql`(org_id = ${orgId} and account_id = ${accountId} and shard = ${shard})`;
const transferIs = ({ orgId, transferId }: TransferRef): Sql =>
  sql`(org_id = ${orgId} and transfer_id = ${transferId})`;

type AccountRow = { readonly org_id: string; readonly account_id: string; readonly shard: number } & {
  readonly [Column in "balance" | "reserved"]: Stored;
};

/**
 * The rows as they stand now that nobody else can change them. `slots` are in lock order, and PostgreSQL locks in the order of the sort: two chains that share
 * rows never wait for each other both. A row that is not there cannot be locked, so it is made first.
 */
export async function lockStandings(tx: Tx, slots: readonly Slot[], now: number): Promise<Map<string, Standing>> {
  const found = await selectLocked(tx, slots);
  if (found.size === slots.length) return found;
  const missing = slots.filter((slot) => !found.has(slotKey(slot)));
  await tx.run(sql`
    insert into ledger_account (org_id, account_id, shard, source, balance, reserved, create_ms)
    values ${join(missing.map((slot) => sql`(${slot.orgId}, ${slot.accountId}, ${slot.shard}, ${isSource(slot.accountId) ? 1 : 0}, 0, 0, ${now})`))}
    on conflict do nothing`);
  return selectLocked(tx, slots);
}

async function selectLocked(tx: Tx, slots: readonly Slot[]): Promise<Map<string, Standing>> {
  const rows = await tx.all<AccountRow>(sql`
    select org_id, account_id, shard, balance, reserved from ledger_account where ${anyOf(slots.map(slotIs))}
    order by org_id, account_id, shard ${tx.dialect.forUpdate}`);
  return new Map(
    rows.map(({ org_id, account_id, shard, balance, reserved }) => [
      slotKey({ orgId: org_id, accountId: account_id, shard }),
      { balance: BigInt(balance), reserved: BigInt(reserved) },
    ]),
  );
}

/** Of rows that are locked: one statement for all, which finds each of them there. */
export const putStandings = (
  tx: Tx,
  slots: readonly Slot[],
  standings: ReadonlyMap<string, Standing>,
): Promise<number> =>
  tx.run(sql`
    insert into ledger_account (org_id, account_id, shard, source, balance, reserved, create_ms)
    values ${join(
      slots.map((slot) => {
        const { balance, reserved } = standings.get(slotKey(slot))!;
        return sql`(${slot.orgId}, ${slot.accountId}, ${slot.shard}, ${isSource(slot.accountId) ? 1 : 0}, ${balance}, ${reserved}, 0)`;
      }),
    )}
    on conflict (org_id, account_id, shard) do update set balance = excluded.balance, reserved = excluded.reserved`);

/** How an account stands at a time, all its rows together; `lapsed` is what is still counted as reserved and whose time is over. Undefined: it was never paid. */
export async function readStanding(
  db: Queryable,
  { orgId, accountId }: Account,
  now: number,
): Promise<(Standing & { readonly lapsed: bigint }) | undefined> {
  const row = await db.one<{ n: number; balance: Stored; reserved: Stored; lapsed: Stored }>(sql`
    select count(*) as n, cast(coalesce(sum(balance), 0) as bigint) as balance, cast(coalesce(sum(reserved), 0) as bigint) as reserved,
      (select cast(coalesce(sum(amount), 0) as bigint) from ledger_hold where org_id = ${orgId} and account_id = ${accountId} and expire_ms <= ${now}) as lapsed
    from ledger_account where org_id = ${orgId} and account_id = ${accountId}`);
  if (!row || row.n === 0) return undefined;
  return { balance: BigInt(row.balance), reserved: BigInt(row.reserved), lapsed: BigInt(row.lapsed) };
}

/** What can be paid with. */
export const availableOf = ({ balance, reserved, lapsed }: Standing & { readonly lapsed: bigint }): bigint =>
  balance - reserved + lapsed;

/** Those of the transfers that there are, by their key. */
export async function findTransfers(db: Queryable, refs: readonly TransferRef[]): Promise<Transfer[]> {
  const rows = await db.all<TransferRow>(
    sql`select ${columns} from ledger_transfer where ${anyOf(refs.map(transferIs))}`,
  );
  return rows.map(toTransfer);
}

/** The transfer that has ended one that set something aside, by its own index. */
export async function findEnding(db: Queryable, orgId: string, pendingId: string): Promise<Transfer | undefined> {
  const row = await db.one<TransferRow>(
    sql`select ${columns} from ledger_transfer where org_id = ${orgId} and pending_id = ${pendingId} and pending_id <> ''`,
  );
  return row && toTransfer(row);
}

/** Whether a transfer has been undone, by its own index. */
export const isReversed = async (db: Queryable, { orgId, transferId }: TransferRef): Promise<boolean> =>
  (await db.one(
    sql`select 1 as found from ledger_transfer where reverses_org_id = ${orgId} and reverses_id = ${transferId} and reverses_id <> ''`,
  )) !== undefined;

/** Adds transfers; gives how many: fewer, when another has an id of theirs, or has ended or undone the same one. */
export const insertTransfers = (tx: Tx, chain: readonly Transfer[]): Promise<number> =>
  tx.run(sql`insert into ledger_transfer (${columns}) values ${join(chain.map(rowOf))} on conflict do nothing`);

const rowOf = (one: Transfer): Sql => sql`(${one.orgId}, ${one.transferId}, ${one.step}, ${one.kind}, ${one.debitId},
  ${one.creditOrgId}, ${one.creditId}, ${one.amount}, ${one.pendingId}, ${one.pendingAmount}, ${one.reversesOrgId}, ${one.reversesId},
  ${one.chainId}, ${one.timeoutMs}, ${one.reference}, ${one.createMs})`;

/** The lines that transfers are in statements: one for who pays, and, if anything moved, one for who is paid. */
export function insertEntries(tx: Tx, chain: readonly Transfer[]): Promise<number> {
  const lines = chain.flatMap(({ orgId, transferId, kind, debitId, creditOrgId, creditId, createMs, ...rest }) => {
    const line = (org: string, account: string) =>
      sql`(${org}, ${account}, ${createMs}, ${orgId}, ${transferId}, ${kind})`;
    return movedBy(rest) > 0n ? [line(orgId, debitId), line(creditOrgId, creditId)] : [line(orgId, debitId)];
  });
  return tx.run(
    sql`insert into ledger_entry (org_id, account_id, time_ms, transfer_org_id, transfer_id, kind) values ${join(lines)}`,
  );
}

type HoldRow = {
  readonly org_id: string;
  readonly transfer_id: string;
  readonly amount: Stored;
  readonly expire_ms: number | null;
};

/** What is set aside still of these transfers; to be read when the rows of their accounts are locked, and so nobody else ends it. */
export async function findHolds(db: Queryable, refs: readonly TransferRef[]): Promise<Map<string, Hold>> {
  const rows = await db.all<HoldRow>(
    sql`select org_id, transfer_id, amount, expire_ms from ledger_hold where ${anyOf(refs.map(transferIs))}`,
  );
  return new Map(
    rows.map((row) => [holdKey(row.org_id, row.transfer_id), { amount: BigInt(row.amount), expireMs: row.expire_ms }]),
  );
}

export const insertHold = (
  tx: Tx,
  { orgId, transferId, debitId, amount, timeoutMs, createMs }: Transfer,
): Promise<number> =>
  tx.run(sql`
    insert into ledger_hold (org_id, transfer_id, account_id, amount, expire_ms)
    values (${orgId}, ${transferId}, ${debitId}, ${amount}, ${timeoutMs === null ? null : createMs + timeoutMs})`);

export const deleteHolds = (tx: Tx, refs: readonly TransferRef[]): Promise<number> =>
  tx.run(sql`delete from ledger_hold where ${anyOf(refs.map(transferIs))}`);

type RefRow = { readonly org_id: string; readonly transfer_id: string };
const toRef = ({ org_id, transfer_id }: RefRow): TransferRef => ({ orgId: org_id, transferId: transfer_id });

/** What is set aside in an account and whose time is over, the oldest first. */
export const lapsedHolds = async (
  db: Queryable,
  { orgId, accountId }: Account,
  now: number,
  limit: number,
): Promise<TransferRef[]> =>
  (
    await db.all<RefRow>(sql`
      select org_id, transfer_id from ledger_hold where org_id = ${orgId} and account_id = ${accountId} and expire_ms <= ${now} order by expire_ms limit ${limit}`)
  ).map(toRef);

/** What is set aside and due to be released, with its place among what is. */
export type DueHold = TransferRef & { readonly expireMs: number };

/** The same of all organisations, after a place. */
export const dueHolds = async (
  db: Queryable,
  now: number,
  { expireMs, orgId, transferId }: DueHold,
  limit: number,
): Promise<DueHold[]> =>
  (
    await db.all<RefRow & { readonly expire_ms: number }>(sql`
      select org_id, transfer_id, expire_ms from ledger_hold
      where expire_ms <= ${now} and expire_ms >= ${expireMs} and (expire_ms, org_id, transfer_id) > (${expireMs}, ${orgId}, ${transferId})
      order by expire_ms, org_id, transfer_id limit ${limit}`)
  ).map((row) => ({ ...toRef(row), expireMs: row.expire_ms }));

export const toTransfer = (row: TransferRow): Transfer => ({
  orgId: row.org_id,
  transferId: row.transfer_id,
  step: row.step,
  kind: row.kind,
  debitId: row.debit_id,
  creditOrgId: row.credit_org_id,
  creditId: row.credit_id,
  amount: BigInt(row.amount),
  pendingId: row.pending_id,
  pendingAmount: BigInt(row.pending_amount),
  reversesOrgId: row.reverses_org_id,
  reversesId: row.reverses_id,
  chainId: row.chain_id,
  timeoutMs: row.timeout_ms,
  reference: row.reference,
  createMs: row.create_ms,
});
