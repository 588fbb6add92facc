/** The decision of the organisation that asks: may this go out? */
import { GatewayService } from "../../../gen/moltwire/federation/v1/gateway_service_pb.ts";
import type { App } from "../../app.ts";
import type { AgentRow } from "../../bus/agent-store.ts";
import type { Demand } from "../../bus/approval/gate.ts";
import type { ContractRow } from "../../bus/contract-store.ts";
import { reserveTokens } from "../../bus/cost/price-attempt.ts";
import { demandOf } from "../../bus/permit.ts";
import { type Decided, decideInvoke, type Origin, policyDenied } from "../../bus/policy/decide-task.ts";
import { recordDecisions } from "../../bus/policy/decision-store.ts";
import { asForeignContract } from "../../bus/policy/entity.ts";
import type { Queryable, Tx } from "../../db/db.ts";
import type { Fault } from "../../errors.ts";
import { auditCrossing } from "../crossing-audit.ts";
import type { GrantRow } from "../grant/store.ts";

/** Keeps the decision in the decision log and the audit log of its organisation; `taskId` is empty when nothing came of it. */
export async function keepOutward(
  tx: Tx,
  app: App,
  { decided, grant }: Outward,
  of: { readonly orgId: string; readonly targetOrgId: string; readonly traceId: string; readonly taskId: string } & {
    readonly contractId: string;
    readonly callerAgentId: string;
    readonly keyId: string;
    readonly now: number;
  },
): Promise<void> {
  const { orgId, traceId, taskId, now } = of;
  await recordDecisions(tx, app, { orgId, traceId, taskId, now }, [decided]);
  await auditCrossing(tx, app, {
    ...{ orgId, traceId, now, direction: "out", method: GatewayService.method.submitTask },
    ...{
      otherOrgId: of.targetOrgId,
      verdict: decided.answer.verdict,
      callerAgentId: of.callerAgentId,
      keyId: of.keyId,
    },
    about: {
      task_id: taskId,
      contract_id: of.contractId,
      grant_id: grant.grant_id,
      grant_revision: String(grant.revision),
    },
  });
}

/** Who asks for what of whom. */
export type GoingOut = {
  readonly orgId: string;
  /** Undefined: an administrator, for no agent. */
  readonly caller: AgentRow | undefined;
  readonly contract: ContractRow;
  readonly grant: GrantRow;
  readonly wantedAgentId: string;
  /** By which door it goes. */
  readonly origin: Origin;
  readonly now: number;
};

/** What was decided, for the log, and either the refusal or who asks for an approval first, if anybody does. */
export type Outward = {
  readonly decided: Decided;
  readonly grant: GrantRow;
  readonly refusal?: Fault;
  readonly demand?: Demand | undefined;
};

/** Of the foreign contract policies see what the organisation is shown of it. */
export async function decideOutward(app: App, db: Queryable, out: GoingOut): Promise<Outward> {
  const { orgId, caller, grant, wantedAgentId: targetAgentId, origin, now } = out;
  const contract = asForeignContract(out.contract);
  const decided = await decideInvoke(app, db, {
    ...{ orgId, caller, contract, targetAgentId, now },
    tokens: reserveTokens(contract),
    origin,
    grantId: grant.grant_id,
    direction: "out",
  });
  if (decided.answer.verdict === "DENY") return { decided, grant, refusal: policyDenied(decided) };
  return { decided, grant, demand: demandOf(contract, [decided]) };
}
