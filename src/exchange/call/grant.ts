/** The grant under which an organisation's requests for a listing run: on that and nothing else, made with the first of them. */
import { create } from "@bufbuild/protobuf";
import { GrantAct, GrantParty, GrantState, GrantTermsSchema } from "../../../gen/moltwire/federation/v1/grant_pb.ts";
import type { App } from "../../app.ts";
import { type Queryable, sql, type Tx } from "../../db/db.ts";
import type { Fault } from "../../errors.ts";
import { notInForce } from "../../federation/gateway/terms.ts";
import { recordRevision } from "../../federation/grant/change.ts";
import { asOf, type GrantRow, grantColumns, listRevisions } from "../../federation/grant/store.ts";
import { toStored } from "../../federation/grant/terms.ts";
import { auditUnasked } from "../../federation/grant/unasked-audit.ts";
import type { Command } from "../../rpc/command.ts";
import type { ListingRow } from "../listing/store.ts";

/** The latest grant of an organisation on a listing, whatever its state; by the index on those. */
export const latestGrant = (db: Queryable, granteeOrgId: string, listingId: string): Promise<GrantRow | undefined> =>
  db.one<GrantRow>(sql`
    select ${grantColumns} from federation_grant where grantee_org_id = ${granteeOrgId} and subject = ${listingId} and subject_kind = 'listingId'
    order by grant_id desc limit 1`);

/** A grant in force; `isNew`: this transaction has made it. */
export type Granted = { readonly grant: GrantRow; readonly isNew: boolean };

/** The grant in force, made if there is none; or GRANT_NOT_ACTIVE, given and not thrown, where the provider has held or ended the one there was. */
export async function listingGrant(
  tx: Tx,
  app: Pick<App, "ids">,
  listing: Pick<ListingRow, "org_id" | "listing_id">,
  granteeOrgId: string,
  now: number,
): Promise<Granted | Fault> {
  const found = await latestGrant(tx, granteeOrgId, listing.listing_id);
  if (found && !(await wasLeft(tx, found))) return inForce(found, now);
  const made = newGrant(app, listing, granteeOrgId, now);
  if ((await insertOnce(tx, made)) === 1) {
    await recordRevision(tx, made, { act: GrantAct.ACCEPT, party: GrantParty.GRANTEE, keyId: "" });
    return { grant: made, isNew: true };
  }
  // Another request of the organisation has made it meanwhile.
  const other = await latestGrant(tx, granteeOrgId, listing.listing_id);
  return inForce(other!, now);
}

/** Tells the audit logs of both of a grant that was made, once it is known to stay. */
export async function auditListingGrant(
  tx: Tx,
  app: Pick<App, "ids">,
  grant: GrantRow,
  { now, trace: { traceId } }: Pick<Command, "now" | "trace">,
): Promise<void> {
  await auditUnasked(tx, app, grant, { orgId: grant.org_id, act: "CreateGrant", now, traceId });
  await auditUnasked(tx, app, grant, { orgId: grant.grantee_org_id, act: "AcceptGrant", now, traceId });
}

function inForce(row: GrantRow, now: number): Granted | Fault {
  const { state } = asOf(row, now);
  return state === GrantState.ACTIVE ? { grant: row, isNew: false } : notInForce(row.grant_id, state);
}

/** Whether the organisation itself has given the grant up, which keeps nobody from asking again. */
async function wasLeft(db: Queryable, row: GrantRow): Promise<boolean> {
  if (row.state !== GrantState.REVOKED) return false;
  const [last] = await listRevisions(db, row, undefined, 1);
  return last?.party === GrantParty.GRANTEE;
}

const newGrant = (
  app: Pick<App, "ids">,
  { org_id, listing_id }: Pick<ListingRow, "org_id" | "listing_id">,
  granteeOrgId: string,
  now: number,
): GrantRow => ({
  org_id,
  grant_id: app.ids.next("grt"),
  grantee_org_id: granteeOrgId,
  state: GrantState.ACTIVE,
  subject_kind: "listingId",
  subject: listing_id,
  ...toStored(create(GrantTermsSchema, { purpose: `requests for the listing ${listing_id}` })),
  revision: 1,
  create_ms: now,
  update_ms: now,
});

/** 0: there is one that has not ended. */
const insertOnce = (tx: Tx, row: GrantRow): Promise<number> =>
  tx.run(sql`
    insert into federation_grant (${grantColumns})
    values (${row.org_id}, ${row.grant_id}, ${row.grantee_org_id}, ${row.state}, ${row.subject_kind}, ${row.subject}, ${row.terms}, ${row.expire_ms},
      ${row.revision}, ${row.create_ms}, ${row.update_ms})
    on conflict do nothing`);
