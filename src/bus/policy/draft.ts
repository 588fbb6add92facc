/** Policy sets that are only tried out. */
import { setImmediate } from "node:timers/promises";
import type { DraftPolicySet } from "../../../gen/moltwire/bus/v1/policy_service_pb.ts";
import type { App } from "../../app.ts";
import type { Queryable } from "../../db/db.ts";
import { badField, notFound } from "../../errors.ts";
import { checkPolicy, invalidPolicy } from "./check.ts";
import { checkQuota } from "./limits.ts";
import { type PolicySet, policySet } from "./policy-set.ts";
import { findPolicy } from "./policy-store.ts";
import type { Statement } from "./statement.ts";

/** Texts that are checked between two turns of the event loop. */
const checkedAtOnce = 10;

/** The set with the changes of a draft. INVALID_POLICY naming the field, NOT_FOUND for a policy to leave out that is not there, QUOTA_EXCEEDED as PutPolicy. */
export async function draftSet(
  app: Pick<App, "policies">,
  db: Queryable,
  orgId: string,
  current: PolicySet,
  draft: DraftPolicySet,
): Promise<PolicySet> {
  const statements = new Map(draft.replaceAll ? [] : current.statements);
  for (const policyId of draft.deletePolicyIds) {
    // One that is disabled has no say, and is there all the same.
    if (!statements.delete(policyId) && !(await findPolicy(db, orgId, policyId))) throw notFound("policy", policyId);
  }
  const seen = new Set<string>();
  for (const [index, { policyId, cedarText }] of draft.puts.entries()) {
    if (seen.has(policyId)) throw badField(`draft.puts[${index}].policy_id`, `${policyId} is there twice`);
    seen.add(policyId);
    statements.set(policyId, draftStatement(app, policyId, cedarText, current, `draft.puts[${index}].cedar_text`));
    if (index % checkedAtOnce === checkedAtOnce - 1) await setImmediate();
  }
  const list = [...statements.values()].toSorted((a, b) => (a.policyId < b.policyId ? -1 : 1));
  checkQuota(
    list.length,
    list.reduce((sum, { text }) => sum + Buffer.byteLength(text), 0),
  );
  return policySet(current.revision, list);
}

/** A text that holds already was checked when it was put. */
function draftStatement(
  { policies }: Pick<App, "policies">,
  policyId: string,
  text: string,
  current: PolicySet,
  field: string,
): Statement {
  const known = current.statements.get(policyId);
  if (known?.text === text) return { ...known, revision: 0 };
  const checked = checkPolicy(policies.cedar, policies.vocabulary, text);
  if (checked.faults) throw invalidPolicy(field, checked.faults);
  return { policyId, revision: 0, text, description: "", facts: checked.facts };
}
