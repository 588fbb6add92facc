/** What tests of the ledger do again and again. */
import type { LedgerProof } from "../../gen/moltwire/ops/v1/ledger_pb.ts";
import type { Db } from "../../src/db/db.ts";
import { postTransfers } from "../../src/exchange/ledger/post.ts";
import type { Transfer, Wish } from "../../src/exchange/ledger/transfer.ts";
import type { Clients } from "../harness.ts";

/** Micro-credits of a number of credits. */
export const credits = (count: number): bigint => BigInt(Math.round(count * 1_000_000));

/** The proof of the books, over the wire. */
export async function proofOf(operator: Clients): Promise<LedgerProof> {
  let proof: LedgerProof | undefined;
  // To its end: a stream that is left is open until it is aborted.
  for await (const { event } of operator.maintenance.verifyLedger({})) if (event.case === "proof") proof = event.value;
  if (!proof) throw new Error("there was no proof");
  return proof;
}

/** Posts a chain in a transaction of its own. */
export const post = (db: Db, wishes: readonly Wish[], now: number): Promise<readonly Transfer[]> =>
  db.tx((tx) => postTransfers(tx, wishes, now));
