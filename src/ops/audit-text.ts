/** What is hashed of an audit row. AUDIT.md beside this file tells of the chain; `ExportAuditEvents` in its proto, of the form. */
import { hash } from "node:crypto";
import type { AuditRow } from "./audit-store.ts";

/** The name of the form; in every text, so that no text of another form has the same hash. */
export const auditFormat = "moltwire-audit/1";

/** Before the first row. */
export const noHash: string = "0".repeat(64);

/** Canonical JSON (RFC 8785) of a row that gets this number after the row with this hash: the names are sorted as they stand here. */
export function auditText(
  row: Omit<AuditRow, "xid" | "seq" | "number" | "hash">,
  number: number,
  previous: string,
): string {
  const { org_id, audit_id, time_ms, kind, method, role, key_id, agent_id, request_sha256, trace_id } = row;
  const resource = canonical(JSON.parse(row.resource) as Record<string, string>);
  const before = {
    agent_id,
    audit_id,
    format: auditFormat,
    key_id,
    kind,
    method,
    number,
    org_id,
    previous,
    request_sha256,
  };
  return `${JSON.stringify(before).slice(0, -1)},"resource":${resource},${JSON.stringify({ role, time_ms, trace_id }).slice(1)}`;
}

/** By hand: an object of JavaScript would put names such as "10" before others. */
const canonical = (strings: Readonly<Record<string, string>>): string => {
  const names = Object.keys(strings).sort();
  return `{${names.map((name) => `${JSON.stringify(name)}:${JSON.stringify(strings[name])}`).join(",")}}`;
};

/** The hash that chains a row. */
export const auditHash = (text: string): string => hash("sha256", text);
