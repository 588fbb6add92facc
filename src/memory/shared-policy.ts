/** Who may use the memory that agents share: the rule of the area, and what policies say to it. */
import type { App } from "../app.ts";
import { findAgent } from "../bus/agent-store.ts";
import { type Decided, policyDenied } from "../bus/policy/decide-task.ts";
import { agentEntity, type Entity, entityRef, orgEntity, ownedEntity } from "../bus/policy/entity.ts";
import { asRefused, type Keeping, settle } from "../bus/policy/keeping.ts";
import { Fault, notFound } from "../errors.ts";
import { seesWholeOrg } from "../rpc/scope.ts";
import type { Use } from "./owner.ts";

/** A use of a shared namespace; `agentId` owns it, would own it with `founds`, or is empty where there is none of this name. */
export type SharedUse = Use & { readonly namespace: string; readonly founds?: boolean };

/**
 * Throws POLICY_DENIED where policies keep the caller from this use. That every agent of the two internal tiers reads, and the owner writes, is the rule of the
 * area and needs no permit; what is forbidden is forbidden all the same. An agent of the outer tiers needs a permit for what is not its own, and for a
 * namespace of its own to begin with; it is told the same whether there is one of the name or not. Of an organisation without a policy on the action
 * nothing but the caller is read.
 */
export async function checkShared(app: App, keeping: Keeping, use: SharedUse): Promise<void> {
  const decided = await decide(app, keeping, use);
  if (decided && !passes(decided)) await settle(keeping, decided);
  else if (decided) await keeping.keep([decided]);
}

/** Whether a namespace is shown to the caller in a list. */
export async function showsShared(app: App, keeping: Keeping, use: SharedUse): Promise<boolean> {
  const decided = await decide(app, keeping, use);
  if (!decided?.question.principal.outer) return true;
  await keeping.note([decided]);
  return passes(decided);
}

/** Throws POLICY_DENIED, since only a namespace's owner writes there, whatever policies permit. What they say to it is kept. */
export async function refuseOther(app: App, keeping: Keeping, use: SharedUse): Promise<never> {
  const { namespace, agentId } = use;
  const decided = (await decide(app, keeping, use, true))!;
  await keeping.keep([decided]);
  const denied = decided.answer.verdict === "ALLOW" ? undefined : policyDenied(decided);
  if (denied && decided.question.principal.outer) throw asRefused(denied);
  const message = `the namespace ${namespace} belongs to the agent ${agentId}, and only that one writes there`;
  const metadata = { action: use.action, ...denied?.metadata, owner_agent_id: agentId };
  throw asRefused(new Fault("POLICY_DENIED", denied ? `${message}. ${denied.message}` : message, metadata));
}

/** Of the internal tiers and of administrators only what is forbidden is refused. */
const passes = ({ question, answer }: Decided): boolean =>
  answer.verdict === "ALLOW" ||
  (!question.principal.outer && !answer.determining.some(({ effect }) => effect === "forbid"));

/** What policies say; undefined where they have no say. */
async function decide(
  app: App,
  { db }: Keeping,
  { orgId, caller, agentId, action, now, namespace, founds = false }: SharedUse,
  always = false,
): Promise<Decided | undefined> {
  const set = await app.policies.current(db, orgId);
  const { general, named } = set.slice(action);
  const asking = seesWholeOrg(caller) ? undefined : await entityOf(caller.agentId);
  const silent = general.length === 0 && named.size === 0;
  if (!always && !asking?.outer && (silent || agentId === "")) return undefined;
  const ownerId = founds && asking?.outer ? "" : agentId;
  const owner = ownerId === "" || ownerId === asking?.id ? asking : await entityOf(ownerId);
  const question = {
    principal: asking ?? orgEntity(orgId),
    action,
    resource: ownedEntity("Namespace", namespace, orgId, ownerId ? { owner: entityRef("Agent", ownerId) } : {}),
    context: { tokens: 0, origin: "bus", time: { ms: now } },
    related: owner ? [owner] : [],
  };
  return { question, answer: app.policies.answer(set, question) };

  async function entityOf(id: string): Promise<Entity> {
    const row = await findAgent(db, orgId, id);
    if (!row) throw notFound("agent", id);
    return agentEntity(row);
  }
}
