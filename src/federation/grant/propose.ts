/** A new grant. */
import { create } from "@bufbuild/protobuf";
import { Role } from "../../../gen/moltwire/api/v1/access_pb.ts";
import { GrantAct, GrantParty, GrantState, GrantTermsSchema } from "../../../gen/moltwire/federation/v1/grant_pb.ts";
import type { CreateGrantRequest } from "../../../gen/moltwire/federation/v1/grant_service_pb.ts";
import type { App } from "../../app.ts";
import { versionsOf } from "../../bus/contract-store.ts";
import { versionNotFound } from "../../bus/resolve.ts";
import type { Queryable, Tx } from "../../db/db.ts";
import { badField, notFound } from "../../errors.ts";
import type { Command } from "../../rpc/command.ts";
import { checkNamespace } from "../namespace-store.ts";
import { findOrganization, lockOrganization } from "../organization-store.ts";
import { quotaExceeded } from "../quota.ts";
import { changeGrant, recordRevision } from "./change.ts";
import { countLiveGrants, countProposals, type GrantRow, insertGrant } from "./store.ts";
import { checkExpiry, toStored } from "./terms.ts";

const maxGrantsPerOrg = 1_000;
const maxProposalsPerGrantee = 100;

/**
 * Proposes a grant, and accepts it at once in the name of a grantee that wants it so. Whether there is the grantee shows in no answer but the operator's: an
 * organisation's id is no more guessable by this than by any other method.
 */
export async function proposeGrant(app: App, req: CreateGrantRequest, command: Command): Promise<GrantRow> {
  const { tx, orgId, caller, now, trace } = command;
  const { granteeOrgId } = req;
  if (granteeOrgId === orgId)
    throw badField("grantee_org_id", "an organisation needs no grant of its own: name another");
  const terms = req.terms ?? create(GrantTermsSchema);
  checkExpiry(terms, now, "terms");
  await checkSubject(tx, orgId, req.subject);
  const grantee = await findOrganization(tx, granteeOrgId);
  if (!grantee && caller.role === Role.OPERATOR) throw notFound("organization", granteeOrgId);
  await checkQuotas(tx, orgId, granteeOrgId);
  const row: GrantRow = {
    org_id: orgId,
    grant_id: app.ids.next("grt"),
    grantee_org_id: granteeOrgId,
    state: GrantState.PROPOSED,
    subject_kind: req.subject.case!,
    subject: req.subject.value!,
    ...toStored(terms),
    revision: 1,
    create_ms: now,
    update_ms: now,
  };
  await insertGrant(tx, row);
  await recordRevision(tx, row, { act: GrantAct.PROPOSE, party: GrantParty.GRANTOR, keyId: caller.keyId });
  if (!grantee?.auto_accept_grants) return row;
  const accepting = { act: GrantAct.ACCEPT, party: GrantParty.GRANTEE, keyId: "" } as const;
  return changeGrant(tx, app, row, { ...accepting, now, traceId: trace.traceId });
}

/** NOT_FOUND or CONTRACT_NOT_FOUND unless what has to be there is. */
async function checkSubject(db: Queryable, orgId: string, subject: CreateGrantRequest["subject"]): Promise<void> {
  if (subject.case === "namespace") await checkNamespace(db, orgId, subject.value);
  if (subject.case !== "contractId") return;
  const versions = await versionsOf(db, orgId, subject.value);
  if (versions.length > 0) return;
  const fields = { contract: "contract_id", version: "contract_id" };
  throw versionNotFound({ contractId: subject.value, version: "" }, versions, fields);
}

/** Holds the organisation, so that its grants are counted one after another. */
async function checkQuotas(tx: Tx, orgId: string, granteeOrgId: string): Promise<void> {
  await lockOrganization(tx, orgId);
  if ((await countLiveGrants(tx, orgId, maxGrantsPerOrg)) >= maxGrantsPerOrg) {
    const message = `an organisation gives at most ${maxGrantsPerOrg} grants that have not ended: revoke some`;
    throw quotaExceeded("grants", maxGrantsPerOrg, message);
  }
  if ((await countProposals(tx, orgId, granteeOrgId)) < maxProposalsPerGrantee) return;
  const message = `at most ${maxProposalsPerGrantee} proposals to one organisation are open: revoke some, or let it answer`;
  throw quotaExceeded("grant_proposals", maxProposalsPerGrantee, message);
}
