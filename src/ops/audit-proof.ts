/** Whether the audit logs that a database holds are the chains that their heads say; see AUDIT.md. */
import { type Queryable, sql } from "../db/db.ts";
import { findHead, readChain } from "./audit-chain-store.ts";
import { auditHash, auditText } from "./audit-text.ts";

const rowsAtOnce = 500;

/** What the chains hold, and for each that is broken what is wrong with it. */
export type AuditProof = { readonly chains: number; readonly rows: number; readonly faults: readonly string[] };

/** Follows every chain from its first row that is kept to its head. */
export async function proveAudit(db: Queryable): Promise<AuditProof> {
  const faults: string[] = [];
  let rows = 0;
  let chains = 0;
  for (let after = ""; ; ) {
    const heads = await db.all<{ org_id: string }>(
      sql`select org_id from audit_head where org_id > ${after} order by org_id limit ${rowsAtOnce}`,
    );
    for (const { org_id } of heads) {
      const found = await proveChain(db, org_id);
      if (typeof found === "string") faults.push(found);
      else rows += found;
      chains++;
    }
    if (heads.length < rowsAtOnce) return { chains, rows, faults };
    after = heads.at(-1)!.org_id;
  }
}

/** How many rows the chain of an organisation has, or what is wrong with it. */
async function proveChain(db: Queryable, orgId: string): Promise<number | string> {
  const head = await findHead(db, orgId);
  let hash = head.gone_hash;
  let number = head.gone_number;
  for (;;) {
    const rows = await readChain(db, orgId, number, head.number, rowsAtOnce);
    for (const row of rows) {
      if (row.number !== number + 1) return `${orgId}: row ${number + 1} of the audit log is missing`;
      number++;
      hash = auditHash(auditText(row, number, hash));
      if (hash !== row.hash) return `${orgId}: row ${number} of the audit log is changed`;
    }
    if (rows.length < rowsAtOnce) break;
  }
  if (number !== head.number || hash !== head.hash)
    return `${orgId}: the audit log ends with row ${number}, and its head says row ${head.number}`;
  return number - head.gone_number;
}
