/** Audit logs made up, chained as the server chains them. */
import { createHash } from "node:crypto";
import { once } from "node:events";
import { createWriteStream } from "node:fs";
import { finished } from "node:stream/promises";
import { beforeText, firstLine } from "../../clients/cli/audit-form.ts";
import type { AuditRow } from "../../src/ops/audit-store.ts";
import { auditHash, auditText, noHash } from "../../src/ops/audit-text.ts";

export const orgId = `org_${"7".repeat(32)}`;

export type Content = Omit<AuditRow, "xid" | "seq" | "number" | "hash" | "org_id">;

const methods = [
  "moltwire.bus.v1.AgentService/UpdateAgent",
  "moltwire.federation.v1.ApiKeyService/CreateApiKey",
  "moltwire.federation.v1.GrantService/RevokeGrant",
  "moltwire.bus.v1.ContractService/RegisterContract",
];
const idOf = (prefix: string, nth: number): string => `${prefix}_${nth.toString(16).padStart(32, "0")}`;

/** The nth row of a year in which something is changed every half minute. */
export const contentOf = (nth: number): Content => ({
  audit_id: idOf("aud", nth),
  time_ms: Date.parse("2026-01-01T00:00:00Z") + nth * 31_557,
  kind: nth % 5 === 0 ? 2 : 1,
  method: methods[nth % methods.length]!,
  role: 3,
  key_id: idOf("key", nth % 17),
  agent_id: "",
  resource: JSON.stringify({ agent_id: idOf("agt", nth % 1_009), org_id: orgId }),
  request_sha256: createHash("sha256").update(String(nth)).digest("hex"),
  trace_id: createHash("md5").update(String(nth)).digest("hex"),
});

/** The lines of rows, chained after one another, and the head. */
export function chain(contents: Iterable<Content>, after = { number: 0, hash: noHash }) {
  let { number, hash } = after;
  const lines: string[] = [];
  for (const content of contents) {
    number++;
    const text = auditText({ org_id: orgId, ...content }, number, hash);
    hash = auditHash(text);
    lines.push(`${beforeText(hash)}${text}}`);
  }
  return { lines, head: { number, hash } };
}

/** The lines of an export of such rows, the first line too. */
export function exportLines(contents: Iterable<Content>, after = { number: 0, hash: noHash }): string[] {
  const { lines, head } = chain(contents, after);
  const file = {
    orgId,
    afterNumber: after.number,
    afterHash: after.hash,
    headNumber: head.number,
    headHash: head.hash,
  };
  return [firstLine(file), ...lines];
}

const piece = 10_000;

/** Writes an export of so many rows, a piece at a time; gives its head. The first line comes first and is known last: so it is made twice. */
export async function writeExport(path: string, rows: number): Promise<{ number: number; hash: string }> {
  const pieces = function* () {
    let at = { number: 0, hash: noHash };
    for (let from = 0; from < rows; from += piece) {
      const contents = Array.from({ length: Math.min(piece, rows - from) }, (_, nth) => contentOf(from + nth + 1));
      const made = chain(contents, at);
      at = made.head;
      yield made;
    }
  };
  let head = { number: 0, hash: noHash };
  for (const made of pieces()) ({ head } = made);
  const out = createWriteStream(path, { flags: "wx" });
  const file = { orgId, afterNumber: 0, afterHash: noHash, headNumber: head.number, headHash: head.hash };
  out.write(`${firstLine(file)}\n`);
  for (const { lines } of pieces()) if (!out.write(`${lines.join("\n")}\n`)) await once(out, "drain");
  out.end();
  await finished(out);
  return head;
}
