/** Who may use which queue: the policies decide, on the queue. */

import type { App } from "../app.ts";
import { findAgent } from "../bus/agent-store.ts";
import { type Decided, policyDenied } from "../bus/policy/decide-task.ts";
import { agentEntity, type Entity, entityRef, orgEntity, ownedEntity } from "../bus/policy/entity.ts";
import { asRefused, type Keeping, keepInTx } from "../bus/policy/keeping.ts";
import type { Queryable, Tx } from "../db/db.ts";
import { Fault, notFound } from "../errors.ts";
import type { Caller } from "../rpc/caller.ts";
import { seesWholeOrg } from "../rpc/scope.ts";

export type QueueAction = "enqueue_job" | "claim_job";

/** Who asks: the organisation, and the agent, empty for an administrator's own. */
export type Asking = { readonly orgId: string; readonly agentId: string; readonly now: number };

/** Whether a queue can have this name. */
export const isQueueName = (name: string): boolean => name.length <= 193 && /^[A-Za-z0-9][A-Za-z0-9._/-]*$/.test(name);

/** The agent whose private queue this is by its name, or empty. */
export const ownerOf = (queue: string): string => /^(agt_[^/]+)\//.exec(queue)?.[1] ?? "";

/** Throws POLICY_DENIED unless each of the queues may be used so; the decisions are kept. */
export async function authorize(
  tx: Tx,
  app: App,
  asking: Asking & { readonly traceId: string },
  action: QueueAction,
  queues: Iterable<string>,
): Promise<void> {
  const decide = await decider(tx, app, asking);
  const decisions: Decided[] = [];
  for (const queue of queues) {
    const decided = await decide(action, queue);
    decisions.push(decided);
    if (!isAllowed(decided)) break;
  }
  await keepInTx(tx, app, asking).keep(decisions);
  const last = decisions.at(-1);
  if (!last || isAllowed(last)) return;
  const { reason, message, metadata } = policyDenied(last);
  throw asRefused(new Fault(reason, message, { ...metadata, field: "queue", queue: last.question.resource.id }));
}

const isAllowed = ({ answer }: Decided): boolean => answer.verdict === "ALLOW";

/**
 * Tells of a queue whether the caller may know what is in it: an administrator always, an agent where it may put jobs in or take some out. What it may not know
 * of is to it as if it were not there.
 */
export type Sight = {
  /** To show it only what it may know. */
  readonly sees: (queue: string) => Promise<boolean>;
  /** To answer a call about this very queue, or a job in it: the decision is kept. */
  readonly admits: (queue: string) => Promise<boolean>;
};

export async function sightOf(keeping: Keeping, app: App, caller: Caller, orgId: string): Promise<Sight> {
  if (seesWholeOrg(caller)) return { sees: async () => true, admits: async () => true };
  const decide = await decider(keeping.db, app, { orgId, agentId: caller.agentId, now: app.clock.now() });
  const known = new Map<string, boolean>();
  const look = async (queue: string, keep: Keeping["keep"]): Promise<boolean> => {
    const claim = await decide("claim_job", queue);
    const decisions = isAllowed(claim) ? [claim] : [claim, await decide("enqueue_job", queue)];
    const seen = decisions.some(isAllowed);
    await keep(seen ? decisions.filter(isAllowed) : decisions);
    known.set(queue, seen);
    return seen;
  };
  return {
    sees: async (queue) => known.get(queue) ?? look(queue, keeping.note),
    admits: (queue) => look(queue, keeping.keep),
  };
}

/** The policies as they are now, as questions on queues. */
async function decider(
  db: Queryable,
  app: App,
  { orgId, agentId, now }: Asking,
): Promise<(action: QueueAction, queue: string) => Promise<Decided>> {
  const principal = await principalOf(db, orgId, agentId);
  const set = await app.policies.current(db, orgId);
  return async (action, queue) => {
    const { resource, related } = await queueEntity(db, orgId, queue);
    const context = { tokens: 0, origin: "bus", time: { ms: now } };
    const question = { principal, action, resource, context, related };
    return { question, answer: app.policies.answer(set, question) };
  };
}

async function principalOf(db: Queryable, orgId: string, agentId: string): Promise<Entity> {
  if (!agentId) return orgEntity(orgId);
  const agent = await findAgent(db, orgId, agentId);
  if (!agent) throw notFound("agent", agentId);
  return agentEntity(agent);
}

/** A queue as policies see it; of a private one its owner, if there is such an agent. */
export async function queueEntity(db: Queryable, orgId: string, queue: string) {
  const ownerId = ownerOf(queue);
  const owner = ownerId ? await findAgent(db, orgId, ownerId) : undefined;
  const resource = ownedEntity("Queue", queue, orgId, {
    private: ownerId !== "",
    ...(owner && { owner: entityRef("Agent", ownerId) }),
  });
  return { resource, related: owner ? [agentEntity(owner)] : [] };
}

/** The answer to every call with a token that is not the latest lease's, whatever there is of the job. */
export const leaseLost = (): Fault =>
  new Fault("LEASE_LOST", "this lease has ended or was superseded, and nothing was changed: stop working on the job");
