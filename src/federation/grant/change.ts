/** One change of a grant: the look, the deed, its revision and its event, in the transaction that is given. */

import { GrantAct, GrantParty, GrantState } from "../../../gen/moltwire/federation/v1/grant_pb.ts";
import type { App } from "../../app.ts";
import type { Tx } from "../../db/db.ts";
import { nameIn } from "../../enum-name.ts";
import { Fault } from "../../errors.ts";
import { emit } from "../../ops/outbox.ts";
import { markUnsettled } from "../gateway/crossing-store.ts";
import { quotaExceeded } from "../quota.ts";
import { type Act, outcomeOf, wasAccepted } from "./rule.ts";
import { type GrantRow, insertRevision, updateGrant } from "./store.ts";
import type { StoredTerms } from "./terms.ts";
import { auditUnasked } from "./unasked-audit.ts";

/** Of a grant that goes back and forth. Holding and ending one stays possible: neither can be repeated without what is refused. */
const maxRevisions = 10_000;

/** Who does what, when. */
export type Deed = {
  readonly act: Act;
  readonly party: GrantParty;
  /** Empty: no key does it, and so no call's audit row tells of it. */
  readonly keyId: string;
  readonly now: number;
  readonly traceId: string;
  /** What an update brings. */
  readonly terms?: StoredTerms;
};

/**
 * Does it to a grant that is locked, as it is by now; gives the grant as it is then. Throws GRANT_PARTY_REQUIRED or FAILED_PRECONDITION, and QUOTA_EXCEEDED for one more revision
 * than are kept.
 */
export async function changeGrant(tx: Tx, app: App, before: GrantRow, deed: Deed): Promise<GrantRow> {
  const { act, party, now } = deed;
  const outcome = outcomeOf(act, party, before.state);
  if (outcome.kind === "same") return before;
  if (outcome.kind === "party") throw otherParty(before, party, outcome.required);
  if (outcome.kind === "state") throw wrongState(act, before.state);
  const isRepeatable = act === GrantAct.UPDATE || act === GrantAct.RESUME;
  if (isRepeatable && before.revision >= maxRevisions) {
    const message = `a grant has at most ${maxRevisions} revisions: revoke it and propose a new one`;
    throw quotaExceeded("grant_revisions", maxRevisions, message);
  }
  const row = { ...before, ...deed.terms, state: outcome.to, revision: before.revision + 1, update_ms: now };
  await updateGrant(tx, row);
  await recordRevision(tx, row, deed);
  if (deed.keyId === "") await auditDeed(tx, app, row, deed);
  if (before.state === GrantState.ACTIVE && row.state !== GrantState.ACTIVE) await markUnsettled(tx, row);
  if (wasAccepted(before.state) && !wasAccepted(row.state)) await tellBoth(tx, app, row, deed);
  return row;
}

/** What the time does concerns both; a grant that is accepted in the grantee's name stands as a proposal in the grantor's log. */
async function auditDeed(tx: Tx, app: App, row: GrantRow, { act, now, traceId }: Deed): Promise<void> {
  const isOver = act === GrantAct.EXPIRE;
  for (const orgId of isOver ? [row.org_id, row.grantee_org_id] : [row.grantee_org_id])
    await auditUnasked(tx, app, row, { orgId, act: isOver ? "ExpireGrant" : "AcceptGrant", now, traceId });
}

/** Keeps what a grant is now, and who made it so. */
export const recordRevision = (
  tx: Tx,
  row: GrantRow,
  { act, party, keyId }: { readonly act: GrantAct; readonly party: GrantParty; readonly keyId: string },
): Promise<number> => insertRevision(tx, { ...row, act, party, key_id: keyId, create_ms: row.update_ms });

/** Both organisations hear that a grant which was in force has ended. */
async function tellBoth(tx: Tx, app: App, row: GrantRow, { party, now, traceId }: Deed): Promise<void> {
  const payload = {
    grant_id: row.grant_id,
    grantor_org_id: row.org_id,
    grantee_org_id: row.grantee_org_id,
    state: nameIn(GrantState, row.state),
    party: party === GrantParty.UNSPECIFIED ? "" : nameIn(GrantParty, party),
    revision: String(row.revision),
  };
  for (const orgId of [row.org_id, row.grantee_org_id])
    await emit(tx, app, { orgId, type: "grant.revoked", agentId: "", timeMs: now, traceId, payload });
}

function otherParty({ grant_id }: GrantRow, party: GrantParty, required: GrantParty): Fault {
  const [is, should] = [nameIn(GrantParty, party), nameIn(GrantParty, required)];
  const message = `this is for the grant's ${should.toLowerCase()} to do, and your organisation is its ${is.toLowerCase()}`;
  return new Fault("GRANT_PARTY_REQUIRED", message, { grant_id, party: is, required_party: should });
}

function wrongState(act: Act, state: GrantState): Fault {
  const [done, is] = [nameIn(GrantAct, act).toLowerCase(), nameIn(GrantState, state)];
  return new Fault("FAILED_PRECONDITION", `the grant is ${is}, which is no state to ${done} it in`, { state: is });
}
