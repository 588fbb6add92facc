/** What policies say to work on the marketplace: each organisation decides whether its own may offer some, or take it on. */
import type { App } from "../../app.ts";
import { type AgentFacts, agentEntity, type Entity, orgEntity, ownedEntity } from "../../bus/policy/entity.ts";
import { keepingOf, settle } from "../../bus/policy/keeping.ts";
import type { Question } from "../../bus/policy/policies.ts";
import type { Command } from "../../rpc/command.ts";

/** Whether a category can have this name; as PostTask takes it. */
export const isCategory = (name: string): boolean => /^[a-z0-9][a-z0-9._/-]{0,63}$/.test(name);

/** A category, as an organisation's policies see it. */
export const categoryEntity = (name: string, orgId: string): Entity => ownedEntity("MarketCategory", name, orgId, {});

/** What is to be done, by whom. */
export type Wanted = {
  readonly action: "post_task" | "claim_task";
  /** Undefined: an administrator, for no agent. */
  readonly agent: AgentFacts | undefined;
  readonly category: string;
  readonly rewardMicros: bigint | number;
  /** Undefined: it is being offered. */
  readonly taskId?: string;
};

/** Throws POLICY_DENIED unless the policies of the caller's organisation permit it. What does not permit is in its decision log, and all that is decided on agents of the outer tiers. */
export async function permit(app: App, command: Command, wanted: Wanted): Promise<void> {
  const { tx, orgId, now } = command;
  const { action, agent, category, rewardMicros, taskId } = wanted;
  const question: Question = {
    principal: agent ? agentEntity(agent) : orgEntity(orgId),
    action,
    resource: categoryEntity(category, orgId),
    context: {
      ...{ tokens: 0, origin: "bus", time: { ms: now }, reward_micros: Number(rewardMicros) },
      ...(taskId && { task_id: taskId }),
    },
  };
  await settle(keepingOf(app, command), { question, answer: await app.policies.decide(tx, orgId, question) });
}
