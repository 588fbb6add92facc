/** What of another organisation is open to one: a contract, by a grant in force. */
import { GrantState } from "../../../gen/moltwire/federation/v1/grant_pb.ts";
import type { ContractRef, ContractRow, ContractSubject } from "../../bus/contract-store.ts";
import { resolveContract } from "../../bus/resolve.ts";
import { join, type Queryable, sql, type Tx } from "../../db/db.ts";
import { Fault, notFound } from "../../errors.ts";
import { asOf, findGrant, type GrantRow, grantColumns, lockGrantOf } from "../grant/store.ts";
import { findOrganization } from "../organization-store.ts";
import { covers, inOrder, subjectsOf } from "./choose.ts";
import { notInForce } from "./terms.ts";

/** What is asked for, of whom. An empty grant: any that fits. */
export type Sought = {
  readonly callerOrgId: string;
  readonly targetOrgId: string;
  readonly contract: ContractRef;
  readonly grantId: string;
  /** The listing that is invoked, which only grants on it cover; none: it is no listing's request. */
  readonly listingId?: string | undefined;
};

export type Opening = { readonly grant: GrantRow; readonly contract: ContractRow };

/**
 * Holds the grant, as it is now, until the transaction ends, so that what is let in under it is seen by whoever ends it; GRANT_NOT_ACTIVE, given and not thrown, when it has left
 * its force since it was found. Late in the transaction: all requests under the grant wait for one another from here on.
 */
export async function holdGrant(tx: Tx, { org_id, grant_id }: GrantRow, now: number): Promise<GrantRow | Fault> {
  const row = await lockGrantOf(tx, { org_id, grant_id });
  const state = row ? asOf(row, now).state : GrantState.REVOKED;
  return row && state === GrantState.ACTIVE ? row : notInForce(grant_id, state);
}

/** Of one kind, on one subject: organisations have as many as they like, and the first of these is taken. */
const maxLooked = 100;

/**
 * The contract and the grant that opens it. NOT_FOUND, the same whatever it is that is not there; CONTRACT_VERSION_NOT_FOUND for a contract that a grant in force names.
 */
export async function findOpening(db: Queryable, sought: Sought, now: number): Promise<Opening> {
  const { callerOrgId, targetOrgId, contract: ref, grantId, listingId } = sought;
  const contract = await contractOf(db, sought, now);
  const candidates = grantId
    ? [await findGrant(db, callerOrgId, grantId)].filter((row) => row !== undefined)
    : inOrder(await grantsOn(db, callerOrgId, targetOrgId, subjectsOf(contract)));
  for (const one of candidates) {
    if (one.grantee_org_id !== callerOrgId || one.org_id !== targetOrgId || !covers(one, contract, listingId)) continue;
    if (asOf(one, now).state !== GrantState.ACTIVE) continue;
    if ((await findOrganization(db, targetOrgId))?.disabled === 0) return { grant: one, contract };
  }
  throw notOpen(ref);
}

/** What is not open is answered like what is not there. */
const notOpen = ({ contractId }: ContractRef): Fault => notFound("contract", contractId);

async function contractOf(db: Queryable, sought: Sought, now: number): Promise<ContractRow> {
  const { callerOrgId, targetOrgId, contract: ref } = sought;
  try {
    return await resolveContract(db, targetOrgId, ref);
  } catch (error) {
    if (!(error instanceof Fault) || error.reason === "INVALID_REQUEST") throw error;
    const named = await grantsOn(db, callerOrgId, targetOrgId, { contractId: ref.contractId });
    const isThere = (await findOrganization(db, targetOrgId))?.disabled === 0;
    const isNamed = isThere && named.some((row) => asOf(row, now).state === GrantState.ACTIVE);
    throw error.reason === "CONTRACT_VERSION_NOT_FOUND" && isNamed ? error : notOpen(ref);
  }
}

/** Grants in force of one organisation to another, on any of these; one walk each, along the partial index on those that are stored as being in force. */
export function grantsOn(
  db: Queryable,
  granteeOrgId: string,
  grantorOrgId: string,
  subjects: Readonly<Partial<Record<ContractSubject["kind"], string>>>,
): Promise<GrantRow[]> {
  const walks = Object.entries(subjects)
    .filter(([, subject]) => subject !== "")
    .map(
      ([kind, subject]) => sql`
    select * from (select ${grantColumns} from federation_grant
      where grantee_org_id = ${granteeOrgId} and org_id = ${grantorOrgId} and subject_kind = ${kind} and subject = ${subject} and state = 2
      order by grant_id limit ${maxLooked}) walk`,
    );
  return db.all<GrantRow>(join(walks, " union all "));
}
