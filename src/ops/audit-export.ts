/** An organisation's chained audit rows, to be checked elsewhere. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { AuditHeadSchema, ExportAuditEventsResponseSchema } from "../../gen/moltwire/ops/v1/admin_service_pb.ts";
import type { Queryable } from "../db/db.ts";
import { badField, Fault } from "../errors.ts";
import { type AuditHead, findHash, findHead, readChain } from "./audit-chain-store.ts";
import { toAuditEvent } from "./audit-store.ts";

const rowsAtOnce = 250;

/** The head as clients read it. */
export const toHead = ({
  org_id,
  number,
  hash,
  seal_ms,
  gone_number,
  gone_hash,
}: AuditHead): MessageInitShape<typeof AuditHeadSchema> => ({
  orgId: org_id,
  number: BigInt(number),
  hash,
  goneNumber: BigInt(gone_number),
  goneHash: gone_hash,
  ...(number > 0 && { sealTime: timestampFromMs(seal_ms) }),
});

/** Rows that are chained do not change: each page may be a snapshot of its own. */
export async function* exportAudit(
  db: Queryable,
  orgId: string,
  askedAfter: number,
  signal: AbortSignal,
): AsyncGenerator<MessageInitShape<typeof ExportAuditEventsResponseSchema>> {
  const head = await findHead(db, orgId);
  const afterNumber = askedAfter === 0 ? head.gone_number : askedAfter;
  if (afterNumber > head.number)
    throw badField("after_number", `the chain ends with row ${head.number}: nothing comes after row ${afterNumber}`);
  if (afterNumber < head.gone_number)
    throw new Fault("CURSOR_EXPIRED", `rows to ${head.gone_number} of the audit log are no longer kept`, {
      gone_number: String(head.gone_number),
    });
  const afterHash = await findHash(db, orgId, afterNumber);
  if (afterHash === undefined)
    throw new Fault("DATA_NOT_AUTHENTIC", `row ${afterNumber} of the audit log is not there any more`, {
      table: "audit_event",
      cause: "CHANGED",
    });
  yield { export: { head: toHead(head), afterNumber: BigInt(afterNumber), afterHash } };
  for (let after = afterNumber; after < head.number; ) {
    signal.throwIfAborted();
    const rows = await readChain(db, orgId, after, head.number, rowsAtOnce);
    const last = rows.at(-1);
    if (!last) return; // somebody removed the end: who checks the export finds that
    yield { auditEvents: rows.map(toAuditEvent) };
    after = last.number!;
  }
}
