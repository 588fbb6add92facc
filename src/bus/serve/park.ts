/** From the dispatcher to the table: a task whose agent pulls waits there and not in memory, however many they are and however long. */
import type { JsonValue } from "@bufbuild/protobuf";
import { TraceEventKind } from "../../../gen/moltwire/bus/v1/trace_pb.ts";
import type { App } from "../../app.ts";
import type { Fault } from "../../errors.ts";
import type { AgentRow } from "../agent-store.ts";
import { askAgain } from "../begin.ts";
import { type HeldTask, spanOf } from "../conclude.ts";
import type { ContractRow } from "../contract-store.ts";
import { persist } from "../persist.ts";
import type { Tried } from "../retry.ts";
import { recordSteps } from "../trace-store.ts";
import { insertWaiting, leaveToPull, workTopic } from "./pulled-store.ts";

/** How long a task waits for an agent that pulls. */
export const maxWaitMs = 24 * 3_600_000;

/**
 * Leaves the task to the agent, unless policies refuse it; a task that was approved is looked at when it is handed out. What has been tried
 * goes with it, for whoever goes on.
 */
export const parkTask = (
  app: App,
  held: HeldTask & { readonly input: JsonValue },
  agent: AgentRow,
  contract: ContractRow,
  tried: Tried,
  decided: boolean,
): Promise<{ readonly refused: Fault } | undefined> =>
  persist(app, async (tx) => {
    const { hold, task, input } = held;
    const again = decided || task.approval_id ? { steps: [] } : await askAgain(tx, app, held, input, agent, contract);
    if (!again || "rejected" in again) return undefined;
    if ("refused" in again) return again;
    const now = app.clock.now();
    const { orgId, taskId } = hold;
    const { agent_id: agentId, name } = agent;
    const waitUntilMs = Math.min(task.deadline_ms ?? Infinity, now + maxWaitMs);
    if ((await leaveToPull(tx, hold)) === 0) return undefined;
    await insertWaiting(tx, {
      org_id: orgId,
      task_id: taskId,
      agent_id: agentId,
      contract_id: contract.contract_id,
      contract_version: contract.version,
      create_ms: task.create_ms,
      tried: JSON.stringify(tried),
      wait_until_ms: waitUntilMs,
    });
    const step = {
      kind: TraceEventKind.DISPATCHED,
      timeMs: now,
      message: `waits for ${name} to pull it`,
      details: { adapter: "pull", wait_until_time: new Date(waitUntilMs).toISOString() },
      targetAgentId: agentId,
    };
    await recordSteps(tx, app, spanOf(task), [...again.steps, step]);
    tx.ring(workTopic({ orgId, agentId }));
    return undefined;
  });
