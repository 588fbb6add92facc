import type { App } from "../app.ts";
import { findAgent } from "../bus/agent-store.ts";
import { policyDenied } from "../bus/policy/decide-task.ts";
import { agentEntity, entityRef, orgEntity, ownedEntity } from "../bus/policy/entity.ts";
import type { Queryable } from "../db/db.ts";
import { notFound } from "../errors.ts";
import { seesWholeOrg } from "../rpc/scope.ts";
import type { Use } from "./owner.ts";

/**
 * POLICY_DENIED where the organisation's policies forbid this use of a shared namespace; `agentId` owns it. That every agent of the organisation reads, and the
 * owner writes, is the rule of the area and needs no permit; what is forbidden is forbidden all the same. Of an organisation without a policy on the action
 * nothing else is read.
 */
export async function refuseForbidden(
  app: App,
  db: Queryable,
  { orgId, caller, agentId, action, now }: Use,
  namespace: string,
): Promise<void> {
  const set = await app.policies.current(db, orgId);
  const { general, named } = set.slice(action);
  if (general.length === 0 && named.size === 0) return;
  const find = async (id: string) => {
    const row = await findAgent(db, orgId, id);
    if (!row) throw notFound("agent", id);
    return agentEntity(row);
  };
  const owner = await find(agentId);
  const asking = caller.agentId === agentId ? owner : undefined;
  const question = {
    principal: seesWholeOrg(caller) ? orgEntity(orgId) : (asking ?? (await find(caller.agentId))),
    action,
    resource: ownedEntity("Namespace", namespace, orgId, { owner: entityRef("Agent", agentId) }),
    context: { tokens: 0, origin: "bus", time: { ms: now } },
    related: [owner],
  };
  const answer = app.policies.answer(set, question);
  if (answer.verdict === "DENY" && answer.determining.some(({ effect }) => effect === "forbid"))
    throw policyDenied({ question, answer });
}
