/** A delivery as those who answer it, extend it or end it find it. */
import type { App } from "../../app.ts";
import type { Tx } from "../../db/db.ts";
import { Fault } from "../../errors.ts";
import type { Caller } from "../../rpc/caller.ts";
import { seesWholeOrg } from "../../rpc/scope.ts";
import { findAgent } from "../agent-store.ts";
import { type ContractRow, findContract } from "../contract-store.ts";
import type { Attempt } from "../settle.ts";
import { type Hold, lockTask, type TaskRow } from "../task-store.ts";
import { readLeaseToken } from "./lease-token.ts";
import { lockPulled, type PulledRow, pullOwner } from "./pulled-store.ts";

/** A task that is left to an agent that pulls, locked. */
export type Pulled = { readonly task: TaskRow; readonly row: PulledRow; readonly hold: Hold };

/** The answer to whoever has a task no more, or never had it. */
export const leaseLost = (): Fault =>
  new Fault(
    "LEASE_LOST",
    "the lease is over: the task was answered, canceled or timed out, or another has it; nothing was changed",
  );

/** What a token lets its bearer change: LEASE_LOST for one that was not made for this task, or for another agent than the caller's. */
export function holdOf(
  app: App,
  caller: Caller,
  orgId: string,
  { taskId, leaseToken }: { readonly taskId: string; readonly leaseToken: string },
): Hold {
  const claim = readLeaseToken(app, orgId, taskId, leaseToken);
  if (!claim || !(seesWholeOrg(caller) || claim.agentId === caller.agentId)) throw leaseLost();
  return { orgId, taskId, token: claim.token };
}

/** Locks a task and its row, in this order, as everybody who waits for a lock does; undefined when it is not left to an agent that pulls. */
export async function lockPulledTask(tx: Tx, orgId: string, taskId: string): Promise<Pulled | undefined> {
  const task = await lockTask(tx, orgId, taskId);
  const row = task?.lease_owner === pullOwner ? await lockPulled(tx, orgId, taskId) : undefined;
  return task && row && { task, row, hold: { orgId, taskId, token: task.lease_token } };
}

/** The attempt that a delivery began. The agent may be gone by now. */
export async function attemptOf(tx: Tx, { row, task }: Pulled): Promise<Attempt> {
  const agent = await findAgent(tx, row.org_id, row.agent_id);
  return {
    number: row.attempt,
    agent: agent ?? { agent_id: row.agent_id, name: row.agent_id },
    agentRow: agent,
    contract: await contractOf(tx, row, task.task_id),
    startMs: row.start_ms,
    timeoutMs: row.stop_ms - row.start_ms,
  };
}

/** The contract under which a task waits or was delivered. */
export async function contractOf(tx: Tx, row: PulledRow, taskId: string): Promise<ContractRow> {
  const contract = await findContract(tx, row.org_id, row.contract_id, row.contract_version);
  if (!contract) throw new Error(`contract ${row.contract_id}@${row.contract_version} of task ${taskId} is gone`);
  return contract;
}
