/** Shared namespaces: memories with a name. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { SharedNamespaceSchema } from "../../gen/moltwire/memory/v1/shared_memory_service_pb.ts";
import { type Queryable, sql } from "../db/db.ts";
import type { Position } from "../rpc/cursor.ts";
import { entryColumns, type FoundRow, type HeadRow, headColumns } from "./store.ts";
import type { EntryPlace } from "./wish.ts";

/** A namespace with the head of its log; `agent_id` owns it. */
export type NamespaceRow = { readonly [Column in keyof HeadRow]: number } & {
  readonly org_id: string;
  readonly memory_id: string;
  readonly agent_id: string;
  readonly name: string;
  readonly contributors: number;
  readonly create_ms: number;
  readonly update_ms: number;
};

const columns = sql`m.org_id, m.memory_id, m.agent_id, m.namespace as name, ${headColumns}, m.contributors, m.create_ms, m.update_ms`;

export const findNamespace = (db: Queryable, orgId: string, namespace: string): Promise<NamespaceRow | undefined> =>
  db.one<NamespaceRow>(sql`select ${columns} from memory m where m.org_id = ${orgId} and m.namespace = ${namespace}`);

/** The namespace with one entry, in one statement; by the index on namespaces and the primary key. See findOwnerWith for the keys. */
export const findSharedEntry = (
  db: Queryable,
  orgId: string,
  { namespace, key }: EntryPlace,
  withValue: boolean,
): Promise<({ readonly owner_agent_id: string; readonly memory_id: string } & HeadRow & FoundRow) | undefined> =>
  db.one(sql`
    select m.agent_id as owner_agent_id, m.memory_id, ${headColumns}, ${entryColumns(withValue)}
    from (select ${orgId} as org_id, ${namespace} as namespace, ${key} as key) k join memory m on m.org_id = k.org_id and m.namespace = k.namespace
      left join memory_entry e on e.org_id = m.org_id and e.memory_id = m.memory_id and e.namespace = m.namespace and e.key = k.key`);

/** How many namespaces an agent owns, counted up to a bound. */
export async function countNamespaces(db: Queryable, orgId: string, agentId: string, bound: number): Promise<number> {
  const row = await db.one<{ n: number }>(sql`
    select count(*) as n from (
      select 1 as one from memory where org_id = ${orgId} and agent_id = ${agentId} and namespace is not null limit ${bound}) counted`);
  return row?.n ?? 0;
}

/** By name: of one owner along its index, else along the one on namespaces, or the one on those with something public. */
export function listNamespaces(
  db: Queryable,
  orgId: string,
  { ownerAgentId, publicOnly }: { readonly ownerAgentId: string; readonly publicOnly: boolean },
  after: Position | undefined,
  limit: number,
): Promise<NamespaceRow[]> {
  const [afterName = ""] = (after ?? []) as string[];
  const owned = ownerAgentId ? sql`and m.agent_id = ${ownerAgentId}` : sql``;
  const shown = publicOnly ? sql`and m.public_entries > 0` : sql``;
  return db.all<NamespaceRow>(sql`
    select ${columns} from memory m
    where m.org_id = ${orgId} and m.namespace is not null and m.namespace > ${afterName} ${owned} ${shown} order by m.namespace limit ${limit}`);
}

/** A namespace as clients read it; to another organisation only what is public counts. */
export const toNamespace = (row: NamespaceRow, foreign: boolean): MessageInitShape<typeof SharedNamespaceSchema> => ({
  orgId: row.org_id,
  namespace: row.name,
  ownerAgentId: row.agent_id,
  entries: BigInt(foreign ? row.public_entries : row.entries),
  contributors: BigInt(row.contributors),
  createTime: timestampFromMs(row.create_ms),
  // Either would tell of changes that are not public.
  ...(!foreign && { revision: BigInt(row.head), updateTime: timestampFromMs(row.update_ms) }),
});
