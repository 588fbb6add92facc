import type { Tx } from "../../db/db.ts";
import type { Fault } from "../../errors.ts";
import type { AgentRow } from "../agent-store.ts";
import type { Step } from "../trace-store.ts";
import { admission, withProbe } from "./circuit.ts";
import { lockCircuit, putCircuit } from "./circuit-store.ts";
import { breakerOfRow, changedStep } from "./conduct.ts";
import { type Blocked, circuitRefusal } from "./refusal.ts";

/** Much longer than it takes from the acceptance of a task to its first attempt, unless it waits for its turn at a busy agent. */
const reservedMs = 30_000;

/**
 * Makes a task the one that tries one of these agents, in the transaction that accepts it, or gives the refusal: else all that come in before
 * the first attempt has begun would be accepted only to fail. Gives the steps of the trace. A task that has reserved and does not come to its
 * attempt keeps others from the agent for a while, and no longer.
 */
export async function reserveProbe(
  tx: Tx,
  agents: readonly AgentRow[],
  taskId: string,
  now: number,
): Promise<Step[] | Fault> {
  const blocked: Blocked[] = [];
  for (const agent of agents) {
    const circuit = await lockCircuit(tx, agent.org_id, agent.agent_id);
    const how = admission(circuit, now);
    if (how === "call") return [];
    if (how === "probe") {
      const next = withProbe(circuit, { taskId, attempt: 0, untilMs: now + reservedMs });
      await putCircuit(tx, agent.org_id, agent.agent_id, next);
      return changedStep(agent.agent_id, agent.name, breakerOfRow(agent), circuit, next, now);
    }
    blocked.push({ agent, circuit });
  }
  return blocked.length > 0 ? circuitRefusal(blocked, now) : [];
}
