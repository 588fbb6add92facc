/** What becomes of rewards: from a wallet into escrow when a task is posted, and out of it once, when it has ended. */
import { TransactionKind } from "../../../gen/moltwire/exchange/v1/ledger_pb.ts";
import { lockAgent } from "../../bus/agent-store.ts";
import type { Tx } from "../../db/db.ts";
import { type Account, agentWallet, escrowOf, feesOf, walletOf } from "../ledger/account.ts";
import { postTransfers } from "../ledger/post.ts";
import type { Wish } from "../ledger/transfer.ts";
import { sharesOf } from "./rule.ts";
import type { TaskRow } from "./store.ts";

type Offered = Pick<TaskRow, "org_id" | "task_id" | "creator_agent_id" | "reward">;

/** Takes the reward of a new task from its creator. Throws INSUFFICIENT_CREDITS. The caller holds the agent, if it is one. */
export function takeReward(tx: Tx, task: Offered, now: number): Promise<unknown> {
  const { org_id: orgId, task_id: taskId, creator_agent_id: agentId } = task;
  const from = agentId === "" ? walletOf(orgId) : agentWallet(orgId, agentId);
  const move = { does: "move", transferId: `${taskId}/reward`, kind: TransactionKind.MARKETPLACE_REWARD } as const;
  const amount = BigInt(task.reward);
  return postTransfers(tx, [{ ...move, from, to: escrowOf(orgId, taskId), amount, reference: taskId }], now);
}

/** Empties the escrow: `forWorker` of the reward to the worker and the platform, the rest back to the creator. Gives what the worker was paid. The caller holds the task. */
export async function payOut(
  tx: Tx,
  homeOrgId: string,
  task: Offered & Pick<TaskRow, "fee_bps" | "worker_org_id" | "worker_agent_id">,
  forWorker: bigint,
  now: number,
): Promise<bigint> {
  const { org_id: orgId, task_id: taskId } = task;
  const shares = sharesOf(BigInt(task.reward), forWorker, task.fee_bps);
  const [creator, worker] = await walletsOf(tx, [
    { orgId, agentId: task.creator_agent_id, isPaid: shares.creator > 0n },
    { orgId: task.worker_org_id, agentId: task.worker_agent_id, isPaid: shares.worker > 0n },
  ]);
  const move = (name: string, kind: TransactionKind, to: Account | undefined, amount: bigint): Wish[] =>
    amount > 0n && to
      ? [
          {
            does: "move",
            transferId: `${taskId}/${name}`,
            kind,
            from: escrowOf(orgId, taskId),
            to,
            amount,
            reference: taskId,
          },
        ]
      : [];
  const chain = [
    ...move("paid", TransactionKind.MARKETPLACE_PAYMENT, worker, shares.worker),
    ...move("fee", TransactionKind.MARKETPLACE_FEE, feesOf(homeOrgId), shares.fee),
    ...move("refund", TransactionKind.MARKETPLACE_REFUND, creator, shares.creator),
  ];
  await postTransfers(tx, chain, now);
  return shares.worker;
}

type Payee = { readonly orgId: string; readonly agentId: string; readonly isPaid: boolean };

/** The wallets of those who are paid: of an agent that is gone that of its organisation. Agents are held against being deleted, in one order for all. */
async function walletsOf(tx: Tx, payees: readonly Payee[]): Promise<(Account | undefined)[]> {
  const there = new Set<string>();
  for (const { orgId, agentId, isPaid } of payees.toSorted((a, b) => (a.agentId < b.agentId ? -1 : 1)))
    if (isPaid && agentId !== "" && (await lockAgent(tx, orgId, agentId))) there.add(agentId);
  return payees.map(({ orgId, agentId, isPaid }) => {
    if (!isPaid) return undefined;
    return there.has(agentId) ? agentWallet(orgId, agentId) : walletOf(orgId);
  });
}
