import { create, fromJsonString, type MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import {
  type GrantAct,
  GrantParty,
  type GrantRevisionSchema,
  GrantSchema,
  type GrantState,
  type GrantTerms,
  GrantTermsSchema,
} from "../../../gen/moltwire/federation/v1/grant_pb.ts";
import { type Queryable, sql, type Tx } from "../../db/db.ts";
import type { Position } from "../../rpc/cursor.ts";
import { stateAt } from "./rule.ts";

/** A grant as it is stored; `org_id` is the grantor's, `terms` JSON. It may be as it was before its time ran out: see {@link asOf}. */
export type GrantRow = {
  readonly org_id: string;
  readonly grant_id: string;
  readonly grantee_org_id: string;
  readonly state: GrantState;
  readonly subject_kind: "capability" | "contractId" | "namespace" | "listingId";
  readonly subject: string;
  readonly terms: string;
  readonly expire_ms: number | null;
  readonly revision: number;
  readonly create_ms: number;
  readonly update_ms: number;
};

/** What a change made of a grant, as it is stored. */
export type RevisionRow = Pick<GrantRow, "org_id" | "grant_id" | "revision" | "state" | "terms" | "create_ms"> & {
  readonly act: GrantAct;
  readonly party: GrantParty;
  /** The key that did it; empty: none did. */
  readonly key_id: string;
};

/** Unqualified, for every query of this table. */
export const grantColumns = sql`org_id, grant_id, grantee_org_id, state, subject_kind, subject, terms, expire_ms, revision, create_ms, update_ms`;
const revisionColumns = sql`org_id, grant_id, revision, act, party, key_id, state, terms, create_ms`;

export const insertGrant = (tx: Tx, row: GrantRow): Promise<number> =>
  tx.run(sql`
    insert into federation_grant (${grantColumns})
    values (${row.org_id}, ${row.grant_id}, ${row.grantee_org_id}, ${row.state}, ${row.subject_kind}, ${row.subject}, ${row.terms}, ${row.expire_ms},
      ${row.revision}, ${row.create_ms}, ${row.update_ms})`);

/** Of a row that is locked. */
export const updateGrant = (tx: Tx, row: GrantRow): Promise<number> =>
  tx.run(sql`
    update federation_grant set state = ${row.state}, terms = ${row.terms}, expire_ms = ${row.expire_ms}, revision = ${row.revision}, update_ms = ${row.update_ms}
    where org_id = ${row.org_id} and grant_id = ${row.grant_id}`);

/** A grant of which the organisation is a party: one look-up along each side's index. */
export const findGrant = (db: Queryable, orgId: string, grantId: string): Promise<GrantRow | undefined> =>
  db.one<GrantRow>(sql`
    select ${grantColumns} from federation_grant where org_id = ${orgId} and grant_id = ${grantId}
    union all
    select ${grantColumns} from federation_grant where grantee_org_id = ${orgId} and grant_id = ${grantId}`);

/** The same, locked for a change: by the grantor's key, from whichever side. */
export async function lockGrant(tx: Tx, orgId: string, grantId: string): Promise<GrantRow | undefined> {
  const seen = await findGrant(tx, orgId, grantId);
  return seen && lockGrantOf(tx, seen);
}

/** A grant as it is now that nobody else can change it. */
export const lockGrantOf = (
  tx: Tx,
  { org_id, grant_id }: Pick<GrantRow, "org_id" | "grant_id">,
): Promise<GrantRow | undefined> =>
  tx.one<GrantRow>(sql`
    select ${grantColumns} from federation_grant where org_id = ${org_id} and grant_id = ${grant_id} ${tx.dialect.forUpdate}`);

/** How many grants an organisation gives that have not ended, without those that its listings make, counted up to a bound; by the partial index on them. */
export const countLiveGrants = async (db: Queryable, orgId: string, bound: number): Promise<number> =>
  (await db.one<{ n: number }>(sql`
    select count(*) as n from (select 1 as one from federation_grant where org_id = ${orgId} and state < 4 and subject_kind <> 'listingId' limit ${bound}) counted`))!
    .n;

/** How many proposals to one organisation are open. Sifts the open proposals to all, which are bounded: the expression keeps it off the index on the grantee, which has all that ever were. */
export const countProposals = async (db: Queryable, orgId: string, granteeOrgId: string): Promise<number> =>
  (await db.one<{ n: number }>(sql`
    select count(*) as n from federation_grant where org_id = ${orgId} and state = 1 and grantee_org_id || '' = ${granteeOrgId}`))!
    .n;

/** Takes back a grant that the same transaction has made, so that nobody has ever seen it. */
export async function withdrawGrant(
  tx: Tx,
  { org_id, grant_id }: Pick<GrantRow, "org_id" | "grant_id">,
): Promise<void> {
  await tx.run(sql`delete from federation_grant_revision where org_id = ${org_id} and grant_id = ${grant_id}`);
  await tx.run(sql`delete from federation_grant_usage where org_id = ${org_id} and grant_id = ${grant_id}`);
  await tx.run(sql`delete from federation_grant where org_id = ${org_id} and grant_id = ${grant_id}`);
}

export const insertRevision = (tx: Tx, row: RevisionRow): Promise<number> =>
  tx.run(sql`
    insert into federation_grant_revision (${revisionColumns})
    values (${row.org_id}, ${row.grant_id}, ${row.revision}, ${row.act}, ${row.party}, ${row.key_id}, ${row.state}, ${row.terms}, ${row.create_ms})`);

/** Newest first, backwards along the key: those until the grant was as it was read, so that both belong together. */
export function listRevisions(
  db: Queryable,
  { org_id, grant_id, revision }: Pick<GrantRow, "org_id" | "grant_id" | "revision">,
  after: Position | undefined,
  limit: number,
): Promise<RevisionRow[]> {
  const until = after ? sql`and revision < ${after[0]!}` : sql`and revision <= ${revision}`;
  return db.all<RevisionRow>(sql`
    select ${revisionColumns} from federation_grant_revision where org_id = ${org_id} and grant_id = ${grant_id} ${until} order by revision desc limit ${limit}`);
}

/** A grant as it is at a time: once its own is over it has ended by that, whether it was written down already or not. */
export function asOf(row: GrantRow, now: number): GrantRow {
  const state = stateAt(row.state, row.expire_ms, now);
  return state === row.state ? row : { ...row, state, revision: row.revision + 1, update_ms: row.expire_ms! };
}

/** Which side of a grant an organisation is. */
export const partyOf = (row: Pick<GrantRow, "org_id">, orgId: string): GrantParty =>
  row.org_id === orgId ? GrantParty.GRANTOR : GrantParty.GRANTEE;

export const termsOf = (row: Pick<GrantRow, "terms">): GrantTerms => fromJsonString(GrantTermsSchema, row.terms);

/** As {@link asOf} gives it. */
export const toGrant = (row: GrantRow) =>
  create(GrantSchema, {
    grantId: row.grant_id,
    grantorOrgId: row.org_id,
    granteeOrgId: row.grantee_org_id,
    subject: { case: row.subject_kind, value: row.subject },
    state: row.state,
    terms: termsOf(row),
    revision: BigInt(row.revision),
    createTime: timestampFromMs(row.create_ms),
    updateTime: timestampFromMs(row.update_ms),
  });

/** A revision as one of the parties reads it: the other's keys are none of its business. */
export const toRevision = (row: RevisionRow, reader: GrantParty): MessageInitShape<typeof GrantRevisionSchema> => ({
  revision: BigInt(row.revision),
  act: row.act,
  party: row.party,
  keyId: row.party === reader ? row.key_id : "",
  state: row.state,
  terms: termsOf(row),
  createTime: timestampFromMs(row.create_ms),
});
