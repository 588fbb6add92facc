/** Who may claim a task. */
import { ReviewVerdict } from "../../../gen/moltwire/exchange/v1/marketplace_pb.ts";
import type { App } from "../../app.ts";
import { lockAgent } from "../../bus/agent-store.ts";
import { Fault, notFound } from "../../errors.ts";
import type { Command } from "../../rpc/command.ts";
import { countVerdicts } from "./delivery-store.ts";
import { permit } from "./permit.ts";
import { limits } from "./rule.ts";
import { countClaims, type TaskRow } from "./store.ts";

/** Throws unless the agent may claim the task, which is there to be claimed. The agent is held, so that its claims are counted one after another. */
export async function checkClaim(app: App, command: Command, task: TaskRow, agentId: string): Promise<void> {
  const { tx, orgId } = command;
  const by = { orgId, agentId };
  const agent = await lockAgent(tx, by.orgId, by.agentId);
  if (!agent) throw notFound("agent", by.agentId);
  const about = { task_id: task.task_id };
  if (agent.disabled !== 0) throw new Fault("FAILED_PRECONDITION", "the agent is disabled", about);
  const { category, reward: rewardMicros, task_id: taskId } = task;
  await permit(app, command, { action: "claim_task", agent, category, rewardMicros, taskId });
  if (task.org_id === by.orgId && task.creator_agent_id === by.agentId)
    throw new Fault("FAILED_PRECONDITION", "an agent does not claim its own task", about);
  const granted = new Set(JSON.parse(agent.capabilities) as string[]);
  const missing = (JSON.parse(task.requirements) as string[]).filter((one) => !granted.has(one));
  if (missing.length > 0) {
    const message = `the agent has not been granted what the task requires: ${missing.join(", ")}`;
    throw new Fault("FAILED_PRECONDITION", message, { ...about, missing: missing.join(",") });
  }
  const rejected = await countVerdicts(tx, task.org_id, task.task_id, by, ReviewVerdict.REJECTED);
  if (rejected >= limits.rejections) {
    const message = `the agent's results for the task were rejected ${limits.rejections} times`;
    throw new Fault("FAILED_PRECONDITION", message, { ...about, rejections: String(rejected) });
  }
  if (task.deliveries >= limits.deliveries) throw tooMany("deliveries", limits.deliveries, "a task takes at most");
  if ((await countClaims(tx, by.orgId, by.agentId)) >= limits.claims)
    throw tooMany("claims", limits.claims, "an agent has at once at most");
}

const tooMany = (resource: string, limit: number, who: string): Fault =>
  new Fault("QUOTA_EXCEEDED", `${who} ${limit} ${resource}`, { resource, limit: String(limit) });
