import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { NamespaceSchema } from "../../gen/moltwire/federation/v1/namespace_pb.ts";
import { type Queryable, sql, type Tx } from "../db/db.ts";
import { notFound } from "../errors.ts";
import type { Position } from "../rpc/cursor.ts";

/** A namespace as it is stored. Nothing of it ever changes. */
export type NamespaceRow = {
  readonly org_id: string;
  readonly name: string;
  readonly description: string;
  readonly create_ms: number;
};

const columns = sql`org_id, name, description, create_ms`;

/** Adds a namespace; 0 when the organisation has one of the name. */
export const insertNamespace = (tx: Tx, row: NamespaceRow): Promise<number> =>
  tx.run(sql`
    insert into federation_namespace (${columns}) values (${row.org_id}, ${row.name}, ${row.description}, ${row.create_ms}) on conflict do nothing`);

/** NOT_FOUND unless the organisation has the namespace; an empty name is none, and is let pass. It stays true: namespaces are there for good. */
export async function checkNamespace(db: Queryable, orgId: string, name: string): Promise<void> {
  if (name === "") return;
  const found = await db.one(
    sql`select 1 as found from federation_namespace where org_id = ${orgId} and name = ${name}`,
  );
  if (!found) throw notFound("namespace", name);
}

/** How many namespaces an organisation has, counted up to a bound. */
export const countNamespaces = async (db: Queryable, orgId: string, bound: number): Promise<number> =>
  (await db.one<{ n: number }>(
    sql`select count(*) as n from (select 1 as one from federation_namespace where org_id = ${orgId} limit ${bound}) counted`,
  ))!.n;

/** By name, which is the key. */
export const listNamespaces = (
  db: Queryable,
  orgId: string,
  after: Position | undefined,
  limit: number,
): Promise<NamespaceRow[]> => {
  const [afterName = ""] = (after ?? []) as string[];
  return db.all<NamespaceRow>(
    sql`select ${columns} from federation_namespace where org_id = ${orgId} and name > ${afterName} order by name limit ${limit}`,
  );
};

export const toNamespace = (row: NamespaceRow): MessageInitShape<typeof NamespaceSchema> => ({
  orgId: row.org_id,
  name: row.name,
  description: row.description,
  createTime: timestampFromMs(row.create_ms),
});
