/** The decision of the organisation that asks: may this go out? */
import type { App } from "../../app.ts";
import type { AgentRow } from "../../bus/agent-store.ts";
import type { Demand } from "../../bus/approval/gate.ts";
import type { ContractRow } from "../../bus/contract-store.ts";
import { reserveTokens } from "../../bus/cost/price-attempt.ts";
import { demandOf } from "../../bus/permit.ts";
import { type Decided, decideInvoke, policyDenied } from "../../bus/policy/decide-task.ts";
import type { Queryable } from "../../db/db.ts";
import type { Fault } from "../../errors.ts";
import type { GrantRow } from "../grant/store.ts";

/** Who asks for what of whom. */
export type GoingOut = {
  readonly orgId: string;
  /** Undefined: an administrator, for no agent. */
  readonly caller: AgentRow | undefined;
  readonly contract: ContractRow;
  readonly grant: GrantRow;
  readonly wantedAgentId: string;
  readonly now: number;
};

/** What was decided, for the log, and either the refusal or who asks for an approval first, if anybody does. */
export type Outward = {
  readonly decided: Decided;
  readonly refusal?: Fault;
  readonly demand?: Demand | undefined;
};

/** Of the foreign contract policies see what the organisation is shown of it, and not whom else it names. */
export async function decideOutward(app: App, db: Queryable, out: GoingOut): Promise<Outward> {
  const { orgId, caller, grant, wantedAgentId: targetAgentId, now } = out;
  const contract = { ...out.contract, partner_agent_ids: "[]", approval_required: 0 };
  const decided = await decideInvoke(app, db, {
    ...{ orgId, caller, contract, targetAgentId, now },
    tokens: reserveTokens(contract),
    origin: "gateway",
    grantId: grant.grant_id,
    direction: "out",
  });
  if (decided.answer.verdict === "DENY") return { decided, refusal: policyDenied(decided) };
  return { decided, demand: demandOf(contract, [decided]) };
}
