/** The file of `moltwire audit export`: a line that says what it holds, then a line for each row. ExportAuditEvents in its proto says how rows are hashed. */
import { timestampMs } from "@bufbuild/protobuf/wkt";
import type { AuditEvent } from "../../gen/moltwire/ops/v1/admin_service_pb.ts";

/** The form of the texts that are hashed, and of the file. */
export const auditFormat = "moltwire-audit/1";

/** Before the first row. */
export const noHash: string = "0".repeat(64);

/** What a file holds: the rows of an organisation after one row, up to another. */
export type AuditFile = {
  readonly orgId: string;
  readonly afterNumber: number;
  readonly afterHash: string;
  readonly headNumber: number;
  readonly headHash: string;
};

/** The first line. */
export const firstLine = ({ orgId, afterNumber, afterHash, headNumber, headHash }: AuditFile): string =>
  JSON.stringify({
    after_hash: afterHash,
    after_number: afterNumber,
    format: auditFormat,
    head_hash: headHash,
    head_number: headNumber,
    org_id: orgId,
  });

/** Reads the first line; undefined if it is none. */
export function readFirstLine(line: string): AuditFile | undefined {
  try {
    const read = JSON.parse(line) as Record<string, unknown>;
    const file = {
      orgId: read.org_id,
      afterNumber: read.after_number,
      afterHash: read.after_hash,
      headNumber: read.head_number,
      headHash: read.head_hash,
    } as AuditFile;
    return firstLine(file) === line ? file : undefined;
  } catch {
    return undefined;
  }
}

/** What stands before the text of a row in its line; after it stands a closing brace. */
export const beforeText = (hash: string): string => `{"hash":"${hash}","row":`;

/** The line of a row. */
export const rowLine = (hash: string, text: string): string => `${beforeText(hash)}${text}}`;

/** Where the text of a row begins in its line. */
export const textAt: number = beforeText(noHash).length;

/** The text of a row that is hashed: canonical JSON (RFC 8785), its names sorted. */
export function rowText(event: AuditEvent, previous: string): string {
  const { agentId, auditId, keyId, kind, method, orgId, requestSha256, resource, role, time, traceId } = event;
  const names = Object.keys(resource).sort();
  const members = names.map((name) => `${JSON.stringify(name)}:${JSON.stringify(resource[name])}`);
  const before = {
    ...{ agent_id: agentId, audit_id: auditId, format: auditFormat, key_id: keyId, kind, method },
    ...{ number: Number(event.number), org_id: orgId, previous, request_sha256: requestSha256 },
  };
  const after = { role, time_ms: time ? timestampMs(time) : 0, trace_id: traceId };
  return `${JSON.stringify(before).slice(0, -1)},"resource":{${members.join(",")}},${JSON.stringify(after).slice(1)}`;
}
