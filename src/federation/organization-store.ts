import type { JsonObject, MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { OrganizationSchema } from "../../gen/moltwire/federation/v1/organization_pb.ts";
import { type Queryable, sql, type Tx } from "../db/db.ts";
import type { Position } from "../rpc/cursor.ts";

/** An organisation as it is stored. */
export type OrganizationRow = {
  readonly org_id: string;
  readonly name: string;
  readonly display_name: string;
  readonly metadata: string;
  readonly disabled: number;
  readonly create_ms: number;
  readonly update_ms: number;
  readonly revision: number;
  readonly auto_accept_grants: number;
};

const columns = sql`org_id, name, display_name, metadata, disabled, create_ms, update_ms, revision, auto_accept_grants`;

/** Adds an organisation; 0 when the name is taken. */
export const insertOrganization = (tx: Tx, row: OrganizationRow): Promise<number> =>
  tx.run(sql`
    insert into organization (${columns})
    values (${row.org_id}, ${row.name}, ${row.display_name}, ${row.metadata}, ${row.disabled}, ${row.create_ms}, ${row.update_ms}, ${row.revision}, ${row.auto_accept_grants})
    on conflict do nothing`);

export const findOrganization = (db: Queryable, orgId: string): Promise<OrganizationRow | undefined> =>
  db.one<OrganizationRow>(sql`select ${columns} from organization where org_id = ${orgId}`);

/** By its name, which is unique. */
export const findOrganizationNamed = (db: Queryable, name: string): Promise<OrganizationRow | undefined> =>
  db.one<OrganizationRow>(sql`select ${columns} from organization where name = ${name}`);

export const lockOrganization = (tx: Tx, orgId: string): Promise<OrganizationRow | undefined> =>
  tx.one<OrganizationRow>(sql`select ${columns} from organization where org_id = ${orgId} ${tx.dialect.forUpdate}`);

/** Replaces what is stored of an organisation; rejects when another has the name (see unlessTaken). */
export const updateOrganization = (tx: Tx, row: OrganizationRow): Promise<number> =>
  tx.run(sql`
    update organization set name = ${row.name}, display_name = ${row.display_name}, metadata = ${row.metadata}, disabled = ${row.disabled},
      update_ms = ${row.update_ms}, revision = ${row.revision}, auto_accept_grants = ${row.auto_accept_grants} where org_id = ${row.org_id}`);

/** Oldest first: ids sort by time. */
export const listOrganizations = (
  db: Queryable,
  onlyOrgId: string | undefined,
  after: Position | undefined,
  limit: number,
): Promise<OrganizationRow[]> => {
  const [afterId = ""] = (after ?? []) as string[];
  const only = onlyOrgId === undefined ? sql`` : sql`and org_id = ${onlyOrgId}`;
  return db.all<OrganizationRow>(
    sql`select ${columns} from organization where org_id > ${afterId} ${only} order by org_id limit ${limit}`,
  );
};

export const toOrganization = (row: OrganizationRow): MessageInitShape<typeof OrganizationSchema> => ({
  orgId: row.org_id,
  name: row.name,
  displayName: row.display_name,
  metadata: JSON.parse(row.metadata) as JsonObject,
  disabled: row.disabled !== 0,
  createTime: timestampFromMs(row.create_ms),
  updateTime: timestampFromMs(row.update_ms),
  revision: BigInt(row.revision),
  autoAcceptGrants: row.auto_accept_grants !== 0,
});
