/** The transactions before an agent has a task: it is asked once more whether it may, and the attempt is written down. */
import type { JsonValue } from "@bufbuild/protobuf";
import { TaskState } from "../../gen/moltwire/bus/v1/task_pb.ts";
import { TraceEventKind } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import type { App } from "../app.ts";
import type { Tx } from "../db/db.ts";
import type { Fault } from "../errors.ts";
import { tellBegun } from "../federation/gateway/echo.ts";
import { grantFault } from "../federation/gateway/still-granted.ts";
import type { AgentRow } from "./agent-store.ts";
import { openAttempt } from "./attempt-store.ts";
import { type Reconsidered, reconsider } from "./authority.ts";
import { enterCircuit } from "./circuit/conduct.ts";
import { concludeTask, type HeldTask, rejectedStep, spanOf } from "./conclude.ts";
import type { ContractRow } from "./contract-store.ts";
import { persist } from "./persist.ts";
import { recordDecisions } from "./policy/decision-store.ts";
import { pullOwner } from "./serve/pulled-store.ts";
import type { Attempt } from "./settle.ts";
import { beginAttempt, InFlight, type TaskFault } from "./task-store.ts";
import { recordSteps, type Step } from "./trace-store.ts";

/** What became of the beginning of an attempt: it has begun; or policies refuse this agent; or the task has been rejected. */
export type Begun = { readonly attempt: Attempt } | { readonly refused: Fault } | { readonly rejected: TaskFault };

/**
 * Writes down, before the agent is called, that it will be; undefined when the task is no longer held. Unless this very attempt was decided on
 * when the task was accepted, it is reconsidered first, in the same transaction. Throws {@link CircuitOpen}, and then nothing was written, when the circuit of the agent lets nobody
 * through.
 */
export const settleBegin = (
  app: App,
  held: HeldTask,
  input: JsonValue,
  { agent, contract, adapter, timeoutMs, decided }: Beginning,
): Promise<Begun | undefined> =>
  persist(app, async (tx) => {
    const { hold, task } = held;
    const startMs = app.clock.now();
    const again = decided
      ? ((await ungranted(tx, app, held, contract, agent)) ?? { steps: [] })
      : await askAgain(tx, app, held, input, agent, contract);
    if (!again || "lost" in again) return undefined;
    if ("refused" in again || "rejected" in again) return again;
    const inFlight = contract.repeatable !== 0 ? InFlight.repeatable : InFlight.once;
    const begun = await beginAttempt(tx, hold, agent.agent_id, inFlight);
    if (!begun) return undefined;
    const number = begun.attempts;
    const by = { taskId: hold.taskId, attempt: number };
    const changed = begun.circuit === null ? [] : await enterCircuit(tx, agent, by, timeoutMs, startMs);
    const key = { orgId: hold.orgId, taskId: hold.taskId, attempt: number };
    const of = {
      traceId: task.trace_id,
      agentId: agent.agent_id,
      contractId: contract.contract_id,
      contractVersion: contract.version,
    };
    await openAttempt(tx, key, { ...of, startMs });
    await tellBegun(tx, app, task, number, startMs);
    const details = {
      attempt: number,
      adapter,
      timeout_ms: timeoutMs,
      contract_id: contract.contract_id,
      contract_version: contract.version,
    };
    await recordSteps(tx, app, spanOf(task), [
      ...again.steps,
      ...changed,
      {
        kind: TraceEventKind.DISPATCHED,
        timeMs: startMs,
        message: `attempt ${number} goes to ${agent.name}`,
        details,
        targetAgentId: agent.agent_id,
      },
    ]);
    return { attempt: { number, agent, agentRow: agent, contract, startMs, timeoutMs } };
  });

/**
 * Reconsiders a task before an agent has it, and writes down what came of that: the steps to go on with; or policies refuse this agent; or the
 * task has been rejected; undefined when it is no longer held.
 */
export async function askAgain(
  tx: Tx,
  app: App,
  held: HeldTask,
  input: JsonValue,
  agent: AgentRow,
  contract: ContractRow,
): Promise<{ readonly steps: readonly Step[] } | Exclude<Begun, { attempt: Attempt }> | undefined> {
  const { task } = held;
  const refusedByGrant = await ungranted(tx, app, held, contract, agent);
  if (refusedByGrant) return "lost" in refusedByGrant ? undefined : refusedByGrant;
  const again = await reconsider(tx, app, task, input, agent, contract);
  const at = { orgId: task.org_id, traceId: task.trace_id, taskId: task.task_id, now: app.clock.now() };
  if (again.decisions.length > 0) await recordDecisions(tx, app, at, again.decisions);
  const { refused, rejected, rejectedAtHome, steps } = again;
  if (rejected) return (await reject(tx, app, held, rejected, { steps, rejectedAtHome })) ? { rejected } : undefined;
  if (refused) {
    await recordSteps(tx, app, spanOf(task), steps);
    return { refused };
  }
  return { steps };
}

/**
 * Rejects a task from another organisation whose grant does not let this attempt begin, or refuses this agent where another may be let; undefined when it does, as for every other
 * task.
 */
export async function ungranted(
  tx: Tx,
  app: App,
  held: HeldTask,
  contract: ContractRow,
  { agent_id: agentId }: AgentRow,
): Promise<Exclude<Begun, { attempt: Attempt }> | { readonly lost: true } | undefined> {
  const { task } = held;
  const found = await grantFault(tx, task, contract, agentId, app.clock.now());
  if (!found) return undefined;
  // An approval is for one agent, and a task that waits to be pulled is one's already.
  const isBound = task.approval_id !== "" || task.lease_owner === pullOwner;
  if (found.only === "agent" && !isBound) return { refused: found.fault };
  const { reason, message, metadata } = found.fault;
  const fault = { reason, message, metadata };
  return (await reject(tx, app, held, fault)) ? { rejected: fault } : { lost: true };
}

/** An attempt that is about to begin. */
export type Beginning = {
  readonly agent: AgentRow;
  readonly contract: ContractRow;
  readonly adapter: string;
  readonly timeoutMs: number;
  /** Policies were asked about this agent under this contract when the task was accepted, a moment ago. */
  readonly decided: boolean;
};

function reject(
  tx: Tx,
  app: App,
  held: HeldTask,
  fault: TaskFault,
  { steps = [], rejectedAtHome }: Partial<Pick<Reconsidered, "steps" | "rejectedAtHome">> = {},
): Promise<boolean> {
  const endMs = app.clock.now();
  const step = rejectedStep(held.task, fault, endMs);
  const end = { state: TaskState.REJECTED, endMs, fault, steps: [...steps, step] };
  return concludeTask(tx, app, held, { ...end, faultAtHome: rejectedAtHome });
}

/** Policies let none of the agents do the task that are left for it. */
export const settleRejected = (app: App, held: HeldTask, fault: TaskFault): Promise<boolean> =>
  persist(app, (tx) => reject(tx, app, held, fault));
