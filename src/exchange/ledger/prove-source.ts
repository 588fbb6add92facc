/** The proof of the books of a snapshot. */
import type { Cell } from "../../ops/backup-format.ts";
import type { Source } from "../../ops/backup-source.ts";
import { type Proof, prove } from "./proof.ts";
import { type TransferRow, toTransfer } from "./store.ts";

type Row = Readonly<Record<string, Cell>>;
const text = (row: Row, column: string): string => row[column] as string;
const amount = (row: Row, column: string): bigint => BigInt(row[column] as bigint);

/** Reads the books and adds them up; tells the number of rows now and then. */
export async function proveSource(source: Source, tell: (rows: number) => void = () => {}): Promise<Proof> {
  const proving = prove();
  const takers: Readonly<Record<string, (row: Row) => void>> = {
    ledger_account: (row) =>
      proving.account({
        ...{ orgId: text(row, "org_id"), accountId: text(row, "account_id"), shard: Number(row.shard) },
        ...{ balance: amount(row, "balance"), reserved: amount(row, "reserved") },
      }),
    ledger_hold: (row) =>
      proving.hold({
        ...{ orgId: text(row, "org_id"), transferId: text(row, "transfer_id"), accountId: text(row, "account_id") },
        amount: amount(row, "amount"),
      }),
    ledger_transfer: (row) =>
      proving.transfer(
        toTransfer({ ...row, step: Number(row.step), kind: Number(row.kind) } as unknown as TransferRow),
      ),
  };
  let rows = 0;
  for (const table of source.tables) {
    const take = takers[table.name];
    if (!take) continue;
    for await (const some of source.rows(table)) {
      for (const cells of some) {
        take(Object.fromEntries(table.columns.map((column, at) => [column, cells[at]!])));
        if (++rows % 256 === 0) tell(rows);
      }
    }
  }
  return proving.end();
}
