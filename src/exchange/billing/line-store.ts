/** The lines of statements. */
import { type Queryable, type Sql, sql } from "../../db/db.ts";
import type { Position } from "../../rpc/cursor.ts";
import { feesId, issuanceId } from "../ledger/account.ts";
import { type TransferRow, toTransfer } from "../ledger/store.ts";
import type { Transfer } from "../ledger/transfer.ts";

/** A line: what a transfer did to an account of the organisation that reads it. */
export type Line = { readonly orgId: string; readonly accountId: string; readonly transfer: Transfer };

/** Of what is set all must hold. */
export type LineFilter = {
  /** Empty: all of the organisation. */
  readonly accountId: string;
  /** Whether the platform's own accounts are among all. */
  readonly platform: boolean;
  /** 0: all. */
  readonly kind: number;
  /** From this time on; null: from the beginning. */
  readonly startMs: number | null;
  /** Before this time; null: until now. */
  readonly endMs: number | null;
};

type LineRow = TransferRow & { readonly line_account_id: string };

const columns = sql`t.org_id, t.transfer_id, t.step, t.kind, t.debit_id, t.credit_org_id, t.credit_id, t.amount, t.pending_id, t.pending_amount, t.reverses_org_id, t.reverses_id, t.chain_id, t.timeout_ms, t.reference, t.create_ms`;

/** Newest first. Along the index of the account, else of the kind, else of the organisation; the transfer of each line comes along by its key. */
export async function listLines(
  db: Queryable,
  orgId: string,
  filter: LineFilter,
  after: Position | undefined,
  limit: number,
): Promise<Line[]> {
  const conditions = [sql`e.org_id = ${orgId}`, ...walkOf(filter, after)];
  if (filter.accountId === "" && !filter.platform) conditions.push(sql`e.account_id not in (${feesId}, ${issuanceId})`);
  if (filter.startMs !== null) conditions.push(sql`e.time_ms >= ${filter.startMs}`);
  if (filter.endMs !== null) conditions.push(sql`e.time_ms < ${filter.endMs}`);
  const where = conditions.reduce((all, one) => sql`${all} and ${one}`);
  const rows = await db.all<LineRow>(sql`
    select e.account_id as line_account_id, ${columns}
    from ledger_entry e join ledger_transfer t on t.org_id = e.transfer_org_id and t.transfer_id = e.transfer_id
    where ${where} order by e.time_ms desc, e.transfer_id desc, e.account_id desc, e.transfer_org_id desc limit ${limit}`);
  return rows.map((row) => ({ orgId, accountId: row.line_account_id, transfer: toTransfer(row) }));
}

/** Which index it walks along, and from where. */
function walkOf({ accountId, kind }: LineFilter, after: Position | undefined): Sql[] {
  const [time, transfer, account, org] = after ?? [];
  if (accountId !== "") {
    const before = sql`(e.time_ms, e.transfer_id, e.transfer_org_id) < (${time ?? 0}, ${transfer ?? ""}, ${org ?? ""})`;
    // An expression, so that the engine does not walk along the kind.
    const ofKind = kind === 0 ? [] : [sql`e.kind + 0 = ${kind}`];
    return [sql`e.account_id = ${accountId}`, ...ofKind, ...(after ? [before] : [])];
  }
  const before = sql`(e.time_ms, e.transfer_id, e.account_id, e.transfer_org_id) < (${time ?? 0}, ${transfer ?? ""}, ${account ?? ""}, ${org ?? ""})`;
  return [...(kind === 0 ? [] : [sql`e.kind = ${kind}`]), ...(after ? [before] : [])];
}

/** Where to go on after a line. */
export const positionOf = ({ accountId, transfer }: Line): Position => [
  transfer.createMs,
  transfer.transferId,
  accountId,
  transfer.orgId,
];
