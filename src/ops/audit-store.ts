import type { DescMethod, MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import { type AuditEventSchema, AuditKind } from "../../gen/moltwire/ops/v1/admin_service_pb.ts";
import type { App } from "../app.ts";
import { type Queryable, sql, type Tx } from "../db/db.ts";
import { committedBefore } from "../db/log.ts";
import { methodName } from "../rpc/access.ts";
import type { Caller } from "../rpc/caller.ts";
import type { Position } from "../rpc/cursor.ts";
import type { TraceContext } from "../rpc/trace-context.ts";

/** A row of the audit log as it is stored; `resource` is a JSON object of ids, `number` and `hash` are null until it is chained. */
export type AuditRow = {
  readonly xid: number;
  readonly seq: number;
  readonly audit_id: string;
  readonly org_id: string;
  readonly time_ms: number;
  /** The number of AuditKind. */
  readonly kind: number;
  readonly method: string;
  readonly role: number;
  readonly key_id: string;
  readonly agent_id: string;
  readonly resource: string;
  readonly request_sha256: string;
  readonly trace_id: string;
  readonly number: number | null;
  readonly hash: string | null;
};

export const auditColumns = sql`xid, seq, audit_id, org_id, time_ms, kind, method, role, key_id, agent_id, resource, request_sha256, trace_id, number, hash`;

/** What is written into the log of an organisation. */
export type AuditEntry = {
  /** Whose log. */
  readonly orgId: string;
  readonly kind: AuditKind;
  readonly timeMs: number;
  /** The full name of the method of the call. */
  readonly method: string;
  readonly role: number;
  /** Empty where it is none of this organisation's. */
  readonly keyId: string;
  readonly agentId: string;
  /** Ids and words such as `verdict`, by names in snake case; never a payload: the log is not encrypted, and its rows are for ever. */
  readonly resource: Readonly<Record<string, string>>;
  readonly requestSha256: string;
  readonly traceId: string;
};

export type Act = {
  readonly caller: Caller;
  readonly orgId: string;
  readonly now: number;
  readonly trace: TraceContext;
  readonly method: DescMethod;
  readonly digest: string;
  readonly request: object;
  readonly reply: unknown;
  /** What else is told of it, by names in snake case; never a payload. */
  readonly noted?: Readonly<Record<string, string>>;
};

/** Writes who did what, in the transaction of the act. */
export const writeAudit = (tx: Tx, app: Pick<App, "ids">, act: Act): Promise<number> =>
  insertAudit(tx, app, {
    orgId: act.orgId,
    kind: AuditKind.CHANGE,
    timeMs: act.now,
    method: methodName(act.method),
    role: act.caller.role,
    keyId: act.caller.keyId,
    agentId: act.caller.agentId,
    resource: { ...resourceOf(act), ...act.noted },
    requestSha256: act.digest,
    traceId: act.trace.traceId,
  });

/** Writes a row, in the transaction of what it tells of; the sealer chains it later (see audit-seal.ts). */
export const insertAudit = (tx: Tx, app: Pick<App, "ids">, entry: AuditEntry): Promise<number> =>
  tx.run(sql`
    insert into audit_event (org_id, xid, audit_id, time_ms, kind, method, role, key_id, agent_id, resource, request_sha256, trace_id)
    values (${entry.orgId}, ${tx.dialect.xid}, ${app.ids.next("aud")}, ${entry.timeMs}, ${entry.kind}, ${entry.method}, ${entry.role}, ${entry.keyId},
      ${entry.agentId}, ${JSON.stringify(entry.resource)}, ${entry.requestSha256}, ${entry.traceId})`);

/** Newest first. */
export function listAudit(
  db: Queryable,
  orgId: string,
  after: Position | undefined,
  limit: number,
): Promise<AuditRow[]> {
  const [xid, seq] = (after ?? []) as number[];
  const before = after ? sql`and ${committedBefore(db.dialect, { xid: xid!, seq: seq! })}` : sql``;
  return db.all<AuditRow>(sql`
    select ${auditColumns} from audit_event where org_id = ${orgId} ${before} order by xid desc, seq desc limit ${limit}`);
}

/** The row as clients read it. */
export const toAuditEvent = (row: AuditRow): MessageInitShape<typeof AuditEventSchema> => ({
  auditId: row.audit_id,
  orgId: row.org_id,
  time: timestampFromMs(row.time_ms),
  kind: row.kind as AuditKind,
  method: row.method,
  role: row.role as Role,
  keyId: row.key_id,
  agentId: row.agent_id,
  resource: JSON.parse(row.resource) as Record<string, string>,
  requestSha256: row.request_sha256,
  traceId: row.trace_id,
  number: BigInt(row.number ?? 0),
  hash: row.hash ?? "",
});

/** The ids named in the request and, one level down, made by the reply; the organisation where there are none, as of what holds for all of it. */
function resourceOf({ request, reply, orgId }: Act): Record<string, string> {
  const made = Object.values(reply ?? {}).filter(
    (value): value is object => typeof value === "object" && value !== null,
  );
  const ids = [request, ...made].flatMap((message) => Object.entries(message).map(chosen).filter(isId));
  if (ids.length === 0) return { org_id: orgId };
  return Object.fromEntries(
    ids.map(([name, id]) => [
      name.replace(/Id$/, "_id").replaceAll(/[A-Z]/g, (c) => `_${c.toLowerCase()}`),
      id as string,
    ]),
  );
}

/** Of a oneof, the member that is set. */
const chosen = ([name, value]: [string, unknown]): [string, unknown] => {
  const { case: member, value: set } = (value ?? {}) as { case?: string; value?: unknown };
  return member === undefined ? [name, value] : [member, set];
};

const isId = ([name, value]: [string, unknown]): boolean =>
  typeof value === "string" && value !== "" && (name.endsWith("Id") || name === "version" || name === "queue");
