/** The thread that reads the books in one snapshot and adds them up, so that the server's own goes on serving. */
import { parentPort, workerData } from "node:worker_threads";
import type { Cell } from "../../ops/backup-format.ts";
import { openSource, type SourcePlace } from "../../ops/backup-source.ts";
import { type Proof, prove } from "./proof.ts";
import { type TransferRow, toTransfer } from "./store.ts";

/** What it tells: how far it is, then what it found. */
export type VerifyNews =
  | { readonly kind: "progress"; readonly rows: number }
  | { readonly kind: "done"; readonly proof: Proof };

const tellMs = 250;
const port = parentPort!;
const tell = (news: VerifyNews): void => port.postMessage(news);

type Row = Readonly<Record<string, Cell>>;
const text = (row: Row, column: string): string => row[column] as string;
const amount = (row: Row, column: string): bigint => BigInt(row[column] as bigint);

async function work(place: SourcePlace): Promise<void> {
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
  let toldMs = performance.now();
  const source = await openSource(place);
  try {
    for (const table of source.tables) {
      const take = takers[table.name];
      if (!take) continue;
      await source.each(table, (cells) => {
        take(Object.fromEntries(table.columns.map((column, at) => [column, cells[at]!])));
        if (++rows % 256 > 0 || performance.now() < toldMs + tellMs) return;
        toldMs = performance.now();
        tell({ kind: "progress", rows });
      });
    }
  } finally {
    await source.close();
  }
  tell({ kind: "done", proof: proving.end() });
}

await work(workerData as SourcePlace);
