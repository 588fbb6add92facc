/** Tasks go from those that wait to an instance, and back when they did not leave the server. */
import { TraceEventKind } from "../../../gen/moltwire/bus/v1/trace_pb.ts";
import type { App } from "../../app.ts";
import type { Sql, Tx } from "../../db/db.ts";
import { Fault, notFound } from "../../errors.ts";
import { tellBegun } from "../../federation/gateway/echo.ts";
import { AttemptFault } from "../adapter.ts";
import { type AgentRow, findAgent, pulls } from "../agent-store.ts";
import { openAttempt } from "../attempt-store.ts";
import { askAgain, ungranted } from "../begin.ts";
import { admission } from "../circuit/circuit.ts";
import { findCircuit } from "../circuit/circuit-store.ts";
import { CircuitOpen, enterCircuit } from "../circuit/conduct.ts";
import { spanOf } from "../conclude.ts";
import type { ContractRow } from "../contract-store.ts";
import { isFit } from "../route.ts";
import { attemptFailed } from "../settle.ts";
import { beginDelivery, findTask, InFlight, openJson, type TaskRow } from "../task-store.ts";
import { recordSteps } from "../trace-store.ts";
import { attemptOf, contractOf, lockPulledTask } from "./delivery.ts";
import {
  type DeliveryRow,
  heldBy,
  type Instance,
  lockWaiting,
  type PulledRow,
  putDelivery,
  putWaiting,
  reviewTask,
  triedOf,
} from "./pulled-store.ts";

/** What is handed out in one transaction: as much as one message after another can still be given back when the stream ends. */
export const maxClaimed = 16;

/** A task that an instance has from now on. */
export type Claimed = { readonly task: TaskRow; readonly row: DeliveryRow; readonly contract: ContractRow };

/**
 * Hands out the oldest tasks that wait, as many as the instance has room for and about {@link maxClaimed}; an attempt begins with each. Nothing is handed to an
 * agent that is disabled. NOT_FOUND when the agent is gone; `check` throws when the stream may not go on.
 */
export async function claimTasks(app: App, instance: Instance, check: Check): Promise<Claimed[]> {
  const claimed: Claimed[] = [];
  try {
    for (let ended = true; ended && claimed.length < maxClaimed; ) {
      const round = await claimNow(app, instance, check);
      claimed.push(...round.claimed);
      ({ ended } = round);
    }
  } catch (error) {
    // Another instance got the probe a moment ago; or what is claimed goes out first, and whoever claims again meets the error.
    if (!(error instanceof CircuitOpen) && claimed.length === 0) throw error;
  }
  return claimed;
}

/** What was handed out; `ended`: a task may not be worked on any more and has ended, with which the transaction is over, see `lock-order.ts`. */
type Round = { readonly claimed: Claimed[]; readonly ended: boolean };

/** Throws when the stream may not go on; what it reads, it reads with the lock. */
type Check = (tx: Tx, lock: Sql) => Promise<void>;

const claimNow = (app: App, instance: Instance, check: Check): Promise<Round> =>
  app.db.tx(async (tx) => {
    await check(tx, tx.dialect.forUpdate);
    const now = app.clock.now();
    const agent = await findAgent(tx, instance.orgId, instance.agentId);
    if (!agent) throw notFound("agent", instance.agentId);
    if (agent.disabled !== 0 || !pulls(agent)) return { claimed: [], ended: false };
    const free = instance.capacity - (await heldBy(tx, instance)).length;
    const claimed: Claimed[] = [];
    const most = Math.min(free, maxClaimed, await admitted(tx, agent, now));
    if (most <= 0) return { claimed, ended: false };
    for (const row of await lockWaiting(tx, instance, now, most)) {
      const one = await deliver(tx, app, instance, agent, row, now);
      if (one === "ended") return { claimed, ended: true };
      if (one) claimed.push(one);
    }
    return { claimed, ended: false };
  });

/** How many tasks the circuit of the agent lets through: all, one as its probe, or none. */
async function admitted(tx: Tx, agent: AgentRow, now: number): Promise<number> {
  const how = admission(await findCircuit(tx, agent.org_id, agent.agent_id), now);
  return { call: Number.POSITIVE_INFINITY, probe: 1, none: 0 }[how];
}

async function deliver(
  tx: Tx,
  app: App,
  { name, leaseMs, agentId }: Instance,
  agent: AgentRow,
  waiting: PulledRow,
  now: number,
): Promise<Claimed | "ended" | undefined> {
  const { org_id: orgId, task_id: taskId } = waiting;
  const contract = await contractOf(tx, waiting, taskId);
  // The agent may have been changed just as the task began to wait for it, or waited again: the sweep finds another.
  if (!isFit(agent, contract)) {
    await reviewTask(tx, orgId, taskId);
    return undefined;
  }
  const before = await findTask(tx, orgId, taskId);
  const held = before && { task: before, hold: { orgId, taskId, token: before.lease_token } };
  if (held?.task.approval_id) {
    const input = openJson(app, orgId, taskId, "input", held.task.input);
    const again = await askAgain(tx, app, held, input, agent, contract);
    if (!again || "refused" in again) return undefined;
    if ("rejected" in again) return "ended";
  } else if (held) {
    const barred = await ungranted(tx, app, held, contract, agent);
    if (barred) return "rejected" in barred ? "ended" : undefined;
  }
  const inFlight = contract.repeatable !== 0 ? InFlight.repeatable : InFlight.once;
  const task = await beginDelivery(tx, orgId, taskId, agentId, inFlight);
  if (!task) throw new Error(`task ${taskId} waits to be pulled and has ended`);
  const stopMs = Math.min(task.deadline_ms ?? Infinity, now + contract.timeout_ms);
  const leaseUntilMs = Math.min(now + leaseMs, stopMs);
  const by = { taskId, attempt: task.attempts };
  const changed = await enterCircuit(tx, agent, by, stopMs - now, now);
  const row: DeliveryRow = {
    org_id: orgId,
    task_id: taskId,
    instance: name,
    token: task.lease_token,
    attempt: task.attempts,
    start_ms: now,
    lease_ms: leaseMs,
    lease_until_ms: leaseUntilMs,
    stop_ms: stopMs,
    due_ms: leaseUntilMs,
  };
  await putDelivery(tx, row);
  const { contract_id, version: contract_version } = contract;
  await openAttempt(
    tx,
    { orgId, taskId, attempt: row.attempt },
    { traceId: task.trace_id, agentId, contractId: contract_id, contractVersion: contract_version, startMs: now },
  );
  const lease_expire_time = new Date(leaseUntilMs).toISOString();
  const step = {
    kind: TraceEventKind.DELIVERED,
    timeMs: now,
    message: `attempt ${row.attempt} goes to ${agent.name}, which pulled it`,
    details: {
      attempt: row.attempt,
      adapter: "pull",
      instance: name,
      lease_expire_time,
      timeout_ms: stopMs - now,
      contract_id,
      contract_version,
    },
    targetAgentId: agentId,
  };
  await recordSteps(tx, app, spanOf(task), [...changed, step]);
  await tellBegun(tx, app, task, row.attempt, now);
  return { task, row, contract };
}

/** Lets a task wait again that was claimed for a stream which ended before it could be sent; nothing if it is not so any more. */
export const giveBack = (app: App, { row: given }: Claimed): Promise<void> =>
  app.db.tx(async (tx) => {
    const pulled = await lockPulledTask(tx, given.org_id, given.task_id);
    if (!pulled || pulled.row.instance === "" || pulled.row.token !== given.token) return;
    const attempt = await attemptOf(tx, pulled);
    const cause = new AttemptFault("AGENT_UNREACHABLE", "not-begun", "the stream ended before the task was sent");
    await attemptFailed(tx, app, pulled, { attempt, cause, verdict: "nothing" }, "retry", 0);
    await putWaiting(tx, pulled.row, triedOf(pulled.row), pulled.row.wait_until_ms);
  });

/** The answer to a stream whose instance another stream speaks for now. */
export const supplanted = (): Fault =>
  new Fault("LEASE_LOST", "another stream was opened for this instance: its tasks are told there");
