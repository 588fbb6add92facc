/** What tells whether two tables hold the same rows, in whatever order they are read. */
import { createHash } from "node:crypto";
import type { BackupTable, Cell } from "./backup-format.ts";
import { sizeOf } from "./backup-source.ts";

/** The rows of a table: how many, about how many bytes, and in hexadecimal the sum of their hashes. */
export type TableSum = { readonly rows: number; readonly bytes: number; readonly checksum: string };

/**
 * Adds rows up. A row's hash is the SHA-256 of its cells in the order of the columns' names, each with its kind and length before it; the checksum is the sum
 * of four 64-bit parts of them, each modulo 2^64: it finds what was lost, doubled or changed, by whatever accident. Who changes rows on purpose is found by
 * the audit chain and the proof of the ledger, where at all.
 */
export function tableSummer({ columns }: BackupTable) {
  const order = columns.map((name, at) => ({ name, at })).sort((a, b) => (a.name < b.name ? -1 : 1));
  const sums = new BigUint64Array(4);
  let rows = 0;
  let bytes = 0;
  return {
    add(cells: readonly Cell[]): void {
      const hash = createHash("sha256");
      for (const { at } of order) addCell(hash, cells[at]!);
      const digest = hash.digest();
      for (let part = 0; part < 4; part++) sums[part]! += digest.readBigUInt64LE(8 * part);
      rows++;
      bytes += sizeOf(cells);
    },
    sum: (): TableSum => ({
      rows,
      bytes,
      checksum: Array.from(sums, (part) => part.toString(16).padStart(16, "0")).join(""),
    }),
  };
}

function addCell(hash: ReturnType<typeof createHash>, cell: Cell): void {
  if (cell === null) hash.update("0:");
  else if (typeof cell === "bigint") hash.update(`i${cell}:`);
  else if (typeof cell === "number") hash.update(`r${cell}:`);
  else if (typeof cell === "string") hash.update(`t${Buffer.byteLength(cell)}:`).update(cell);
  else hash.update(`b${cell.length}:`).update(cell);
}
