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

/** The probe that a task has reserved, if it had to: the steps of the trace, and how to give it back in the same transaction. */
export type Reserved = { readonly steps: readonly Step[]; readonly giveBack: () => Promise<void> };

/**
 * Makes a task the one that tries one of these agents, in the transaction that accepts it, or gives the refusal: else all that come in before
 * the first attempt has begun would be accepted only to fail. Before budgets, as the end of an attempt changes them in this order too. A task
 * that has reserved and does not come to its attempt keeps others from the agent for a while, and no longer.
 */
export async function reserveProbe(
  tx: Tx,
  agents: readonly AgentRow[],
  taskId: string,
  now: number,
): Promise<Reserved | Fault> {
  const blocked: Blocked[] = [];
  for (const agent of agents) {
    const circuit = await lockCircuit(tx, agent.org_id, agent.agent_id);
    const how = admission(circuit, now);
    if (how === "call") return nothingReserved;
    if (how === "probe") {
      const next = withProbe(circuit, { taskId, attempt: 0, untilMs: now + reservedMs });
      await putCircuit(tx, agent.org_id, agent.agent_id, next);
      return {
        steps: changedStep(agent.agent_id, agent.name, breakerOfRow(agent), circuit, next, now),
        giveBack: () => putCircuit(tx, agent.org_id, agent.agent_id, circuit),
      };
    }
    blocked.push({ agent, circuit });
  }
  return blocked.length > 0 ? circuitRefusal(blocked, now) : nothingReserved;
}

const nothingReserved: Reserved = { steps: [], giveBack: async () => {} };
