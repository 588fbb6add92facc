/** What the terms of a grant say to a request. Pure. */

import { TrustTier } from "../../../gen/moltwire/bus/v1/agent_pb.ts";
import { GrantState } from "../../../gen/moltwire/federation/v1/grant_pb.ts";
import type { ContractRow } from "../../bus/contract-store.ts";
import { tierName } from "../../bus/route.ts";
import { nameIn } from "../../enum-name.ts";
import { Fault } from "../../errors.ts";
import { type GrantRow, termsOf } from "../grant/store.ts";

type Terms = Pick<GrantRow, "grant_id" | "terms">;

/** The tier by which an asker is held against the terms: an administrator that acts for no agent counts as the most trusted. */
export const tierOf = (agent: { readonly trust_tier: number } | undefined): number =>
  agent?.trust_tier ?? TrustTier.INTERNAL_TRUSTED;

/** GRANT_TERMS_EXCEEDED when the asker's tier or a tool that the work needs is not among the allowed ones; undefined when all are. */
export function beyondTerms(
  grant: Terms,
  tier: number,
  contract: Pick<ContractRow, "required_tools">,
): Fault | undefined {
  const { allowedTiers, allowedTools } = termsOf(grant);
  if (allowedTiers.length > 0 && !allowedTiers.some((one) => one === tier)) {
    const allowed = allowedTiers.map(tierName).join(", ");
    return exceeded(
      grant,
      "allowed_tiers",
      tierName(tier),
      `the grant lets agents ask of the tier ${allowed} and none else`,
    );
  }
  const tools = JSON.parse(contract.required_tools) as string[];
  const tool = allowedTools.length > 0 ? tools.find((one) => !allowedTools.includes(one)) : undefined;
  if (tool === undefined) return undefined;
  return exceeded(grant, "allowed_tools", tool, `the work needs the tool ${tool}, which the grant does not allow`);
}

/** GRANT_TERMS_EXCEEDED when what it costs at most passes the cap, or is not known. */
export function beyondCap(grant: Terms, mostMicros: number | undefined): Fault | undefined {
  const { priceCapMicros } = termsOf(grant);
  if (priceCapMicros === undefined) return undefined;
  return dearer(
    grant,
    "price_cap_micros",
    mostMicros,
    Number(priceCapMicros),
    "under the grant a request costs at most",
  );
}

/**
 * GRANT_TERMS_EXCEEDED when what it costs at most passes what whoever asks has left for it; undefined: it has set no bound. What nobody knows beforehand is let in, as a
 * budget of one's own lets it in, and whoever asks counts no more than was left.
 */
export function beyondBudgetLeft(
  grant: Terms,
  budgetLeftMicros: number | undefined,
  mostMicros: number | undefined,
): Fault | undefined {
  if (budgetLeftMicros === undefined || mostMicros === undefined) return undefined;
  return dearer(grant, "budget_left_micros", mostMicros, budgetLeftMicros, "what whoever asks has left for it is");
}

function dearer(
  grant: Terms,
  term: string,
  mostMicros: number | undefined,
  boundMicros: number,
  bound: string,
): Fault | undefined {
  if (mostMicros !== undefined && mostMicros <= boundMicros) return undefined;
  const cost =
    mostMicros === undefined
      ? "nobody knows what the work costs at most, since its contract declares neither max_tokens nor estimated_tokens"
      : `the work can cost ${mostMicros} micro-credits`;
  const actual = mostMicros === undefined ? "unknown" : String(mostMicros);
  return exceeded(grant, term, actual, `${cost}, and ${bound} ${boundMicros}`);
}

const exceeded = ({ grant_id }: Terms, term: string, actual: string, message: string): Fault =>
  new Fault("GRANT_TERMS_EXCEEDED", message, { grant_id, term, actual });

/** What a task ends with whose grant is in this state. */
export function notInForce(grantId: string, state: GrantState): Fault {
  const name = nameIn(GrantState, state);
  const message = `the grant ${grantId} is ${name}: nothing is done under it`;
  return new Fault("GRANT_NOT_ACTIVE", message, { grant_id: grantId, state: name });
}
