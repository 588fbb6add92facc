/** Offering work. */
import { durationMs, type Timestamp, timestampMs } from "@bufbuild/protobuf/wkt";
import { MarketplaceTaskState } from "../../../gen/moltwire/exchange/v1/marketplace_pb.ts";
import type { PostTaskRequest } from "../../../gen/moltwire/exchange/v1/marketplace_service_pb.ts";
import type { App } from "../../app.ts";
import { lockAgent } from "../../bus/agent-store.ts";
import { actingAgent } from "../../bus/submit.ts";
import { badField, Fault, notFound } from "../../errors.ts";
import type { Command } from "../../rpc/command.ts";
import { searchText } from "./list-store.ts";
import { takeReward } from "./money.ts";
import { permit } from "./permit.ts";
import { type Life, limits } from "./rule.ts";
import { countLive, insertTask, type TaskRow, withLife } from "./store.ts";

const defaultPriority = 5;

/** Adds a task and takes its reward into escrow. */
export async function post(app: App, req: PostTaskRequest, command: Command): Promise<Pick<TaskRow, "task_id">> {
  const { tx, caller, orgId, now } = command;
  const agentId = await actingAgent(tx, caller, orgId, req.agentId);
  // Held against being deleted, as whose wallet it is.
  const agent = agentId === "" ? undefined : await lockAgent(tx, orgId, agentId);
  if (agentId !== "" && !agent) throw notFound("agent", agentId);
  const { title, description, category, tags, rewardMicros } = req;
  await permit(app, command, { action: "post_task", agent, category, rewardMicros });
  if ((await countLive(tx, orgId)) >= limits.liveTasks)
    throw new Fault("QUOTA_EXCEEDED", `an organisation has at most ${limits.liveTasks} tasks that have not ended`, {
      resource: "marketplace_tasks",
      limit: String(limits.liveTasks),
    });
  const life: Life = {
    ...{ state: MarketplaceTaskState.OPEN, sinceMs: now, heldUntilMs: null, worker: "" },
    deadlineMs: deadlineOf(req.deadlineTime, now),
    claimTimeoutMs: req.claimTimeout ? durationMs(req.claimTimeout) : null,
    disputeWindowMs: req.disputeWindow ? durationMs(req.disputeWindow) : limits.defaultDisputeMs,
  };
  const row = {
    ...{ org_id: orgId, task_id: app.ids.next("mkt"), creator_agent_id: agentId, title, description, category },
    ...{ requirements: JSON.stringify(req.requirements), tags: JSON.stringify(tags), reward: rewardMicros },
    ...{ fee_bps: app.config.marketplaceFeeBps, priority: req.priority || defaultPriority },
    effort_ms: req.estimatedEffort ? durationMs(req.estimatedEffort) : null,
    ...{ deadline_ms: life.deadlineMs, claim_timeout_ms: life.claimTimeoutMs, dispute_window_ms: life.disputeWindowMs },
    ...{ state: life.state, state_ms: now, due_ms: null, held_until_ms: null, worker_org_id: "", worker_agent_id: "" },
    ...{ deliveries: 0, rating: 0, paid: 0, create_ms: now, seq: 0 },
  };
  await insertTask(tx, withLife<TaskRow>(row, life), searchText({ title, description, category, tags }));
  await takeReward(tx, row, now);
  return row;
}

function deadlineOf(time: Timestamp | undefined, now: number): number | null {
  if (!time) return null;
  const deadlineMs = timestampMs(time);
  if (deadlineMs <= now) throw badField("deadline_time", "must be in the future");
  if (deadlineMs > now + limits.deadlineMs) throw badField("deadline_time", "at most a year ahead");
  return deadlineMs;
}
