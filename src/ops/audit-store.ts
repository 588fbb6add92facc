import type { DescMethod } from "@bufbuild/protobuf";
import type { App } from "../app.ts";
import { type Queryable, sql, type Tx } from "../db/db.ts";
import { committedBefore } from "../db/log.ts";
import { methodName } from "../rpc/access.ts";
import type { Caller } from "../rpc/caller.ts";
import type { Position } from "../rpc/cursor.ts";
import type { TraceContext } from "../rpc/trace-context.ts";

/** An administrative act as it is stored; `resource` is a JSON object of ids. */
export type AuditRow = {
  readonly xid: number;
  readonly seq: number;
  readonly audit_id: string;
  readonly org_id: string;
  readonly time_ms: number;
  readonly method: string;
  readonly role: number;
  readonly key_id: string;
  readonly agent_id: string;
  readonly resource: string;
  readonly request_sha256: string;
  readonly trace_id: string;
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
};

/** Writes who did what, in the transaction of the act. */
export const writeAudit = (tx: Tx, app: Pick<App, "ids">, act: Act): Promise<number> =>
  tx.run(sql`
    insert into audit_event (org_id, xid, audit_id, time_ms, method, role, key_id, agent_id, resource, request_sha256, trace_id)
    values (${act.orgId}, ${tx.dialect.xid}, ${app.ids.next("aud")}, ${act.now}, ${methodName(act.method)}, ${act.caller.role}, ${act.caller.keyId},
      ${act.caller.agentId}, ${JSON.stringify(resourceOf(act.request, act.reply))}, ${act.digest}, ${act.trace.traceId})`);

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
    select xid, seq, audit_id, org_id, time_ms, method, role, key_id, agent_id, resource, request_sha256, trace_id
    from audit_event where org_id = ${orgId} ${before} order by xid desc, seq desc limit ${limit}`);
}

/** The ids named in the request and, one level down, made by the reply. */
function resourceOf(request: object, reply: unknown): Record<string, string> {
  const made = Object.values(reply ?? {}).filter(
    (value): value is object => typeof value === "object" && value !== null,
  );
  const ids = [request, ...made].flatMap((message) => Object.entries(message).map(chosen).filter(isId));
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
