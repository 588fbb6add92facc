/** Which approvals a caller sees. */
import { TrustTier } from "../../../gen/moltwire/bus/v1/agent_pb.ts";
import type { App } from "../../app.ts";
import type { Query } from "../../rpc/query.ts";
import { seesWholeOrg } from "../../rpc/scope.ts";
import { type AgentRow, findAgent } from "../agent-store.ts";
import { decideApprover } from "../policy/decide-approval.ts";
import { readKeepingOf } from "../policy/keeping.ts";
import type { ApprovalRow } from "./store.ts";

/** `all`: any of the organisation's may be among them. Else only those of tasks that the caller asked for. */
export type Sight = { readonly all: boolean; readonly sees: (row: ApprovalRow) => Promise<boolean> };

const actions = ["approve", "deny"] as const;

/** Administrators see all; an agent those of tasks it asked for, and those that policies let it decide on. */
export async function sightOf(app: App, given: Query): Promise<Sight> {
  const { db, caller, orgId, now } = given;
  if (seesWholeOrg(caller)) return { all: true, sees: async () => true };
  const agent = await findAgent(db, orgId, caller.agentId);
  const isOwn = ({ caller_agent_id }: ApprovalRow) => caller_agent_id === caller.agentId;
  if (!agent || !(await mayDecideSome(app, given, agent))) return { all: false, sees: async (row) => isOwn(row) };
  return {
    all: true,
    async sees(row) {
      if (isOwn(row)) return true;
      const decisions = [];
      for (const action of actions) {
        decisions.push(
          await decideApprover(app, db, { approval: row, action, decider: agent, ownRequest: false, now }),
        );
        if (decisions.at(-1)!.answer.verdict === "ALLOW") break;
      }
      await readKeepingOf(app, given).note(decisions);
      return decisions.at(-1)!.answer.verdict === "ALLOW";
    },
  };
}

/** Whether there can be approvals that the agent decides on: by its tier, or by a policy of the organisation. Else none has to be looked at. */
async function mayDecideSome(app: App, { db, orgId }: Query, agent: AgentRow): Promise<boolean> {
  if (agent.trust_tier === TrustTier.INTERNAL_TRUSTED) return true;
  const set = await app.policies.current(db, orgId);
  return actions.some((action) => {
    const { general, named } = set.slice(action);
    return general.length > 0 || named.size > 0;
  });
}
