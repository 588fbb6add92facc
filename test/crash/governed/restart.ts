/** What must be as it was when a server comes back: circuits, decisions, what waits for one, limits. */
import { isDeepStrictEqual } from "node:util";
import { toJson } from "@bufbuild/protobuf";
import { CircuitSchema } from "../../../gen/moltwire/bus/v1/agent_pb.ts";
import { ApprovalState, ApprovalStateSchema } from "../../../gen/moltwire/bus/v1/approval_pb.ts";
import { BudgetPeriod, BudgetScope } from "../../../gen/moltwire/bus/v1/budget_pb.ts";
import { TaskState, TaskStateSchema } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import { answered } from "../ledger.ts";
import { nameOf } from "../verify.ts";
import { decide } from "./actions.ts";
import { type Ask, estimatedTokens, type Stage } from "./asks.ts";
import type { Organization } from "./set-up.ts";

const atMost = 5;

/** The circuits that must not change, in a form that can be compared. */
export async function circuitsOf({ admin }: Stage, { trippedId, bruisedId }: Organization): Promise<unknown[]> {
  const all: unknown[] = [];
  for (const agentId of [trippedId, bruisedId]) {
    const { agent } = await admin.agents.getAgent({ agentId });
    all.push(agent?.circuit ? toJson(CircuitSchema, agent.circuit) : null);
  }
  return all;
}

/** Looks at a server that has just come back. */
export async function lookAround(stage: Stage, org: Organization, circuits: unknown[]): Promise<void> {
  const { book, admin, choose } = stage;
  const expect = (holds: boolean, what: string) => {
    book.checks++;
    if (!holds) book.surprises.push(`after a restart ${what}`);
  };
  const now = await circuitsOf(stage, org);
  expect(isDeepStrictEqual(now, circuits), `circuits are ${JSON.stringify(now)} and were ${JSON.stringify(circuits)}`);
  const word = await refusalOf(stage.caller.bus.submitTask({ contractId: "tripping" }));
  expect(word.includes("CIRCUIT_OPEN"), `a task for an open circuit is answered with ${word}`);
  const some = (all: readonly Ask[]) =>
    all.length <= atMost ? all : [...all.slice(-2), choose.pick(all), choose.pick(all)];
  for (const { taskId, ended } of some(book.asks.filter(({ taskId }) => taskId))) {
    const { task } = await admin.bus.getTask({ taskId: taskId! });
    expect(
      !ended || task!.state >= TaskState.COMPLETED,
      `${taskId} has ended and is ${nameOf(TaskStateSchema, task!.state)}`,
    );
  }
  for (const { approvalId, taskId } of some(book.asks.filter(({ approvalId, verdict }) => approvalId && !verdict))) {
    const { approval } = await admin.approvals.getApproval({ approvalId: approvalId! });
    const { task } = await admin.bus.getTask({ taskId: taskId! });
    const isWaiting = approval?.state === ApprovalState.PENDING && task?.state === TaskState.AWAITING_APPROVAL;
    expect(isWaiting, `${approvalId} is ${nameOf(ApprovalStateSchema, approval?.state ?? 0)}, and nobody has decided`);
  }
  for (const ask of some(book.asks.filter(({ verdict }) => verdict?.acknowledged)).slice(0, 2)) {
    // The same word of the same approver is answered as it stands; another's comes too late.
    await decide(stage, ask, ask.verdict!.word);
    const again = await refusalOf(stage.other.approvals[ask.verdict!.word]({ approvalId: ask.approvalId! }));
    expect(again.includes("FAILED_PRECONDITION"), `a second decision on ${ask.approvalId} is answered with ${again}`);
  }
  await moreAllowance(stage, org, expect);
}

const refusalOf = (call: Promise<unknown>): Promise<string> =>
  call.then(
    () => "what it asks for",
    (error: unknown) => answered(error) ?? String(error),
  );

/** The frugal agent has what was acknowledged, and gets as much as two more tasks reserve. */
async function moreAllowance(
  { admin, book }: Stage,
  { frugalId: subjectId }: Organization,
  expect: (holds: boolean, what: string) => void,
): Promise<void> {
  const key = { scope: BudgetScope.AGENT, period: BudgetPeriod.TOTAL, subjectId };
  const { budget } = await admin.budgets.getBudget(key);
  const limit = Number(budget?.tokens?.limit);
  expect(limit === book.allowance, `the limit is ${limit} and was set to ${book.allowance}`);
  await admin.budgets.setBudget({ ...key, limitTokens: BigInt(book.allowance + 2 * estimatedTokens) });
  book.allowance += 2 * estimatedTokens;
}
