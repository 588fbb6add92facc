/** A budget runs out: tasks pass while there is room, then none does, until it is raised. */
import { BudgetPeriod, BudgetScope } from "../../../gen/moltwire/bus/v1/budget_pb.ts";
import { BudgetService } from "../../../gen/moltwire/bus/v1/budget_service_pb.ts";
import { BusService } from "../../../gen/moltwire/bus/v1/bus_service_pb.ts";
import type { Task } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import { connectClients } from "../../cli/connect.ts";
import { ask, callTimeoutMs, outputOf, watch, wish } from "../ask.ts";
import { addCaller } from "../setup.ts";
import { claim, refused, same } from "./claim.ts";
import { addFlaky } from "./flaky-agent.ts";
import type { Outcome, World } from "./scenario.ts";

const limit = 100;
const raised = 200;
const estimate = 40;
const input = { text: "count these nine words of mine, and their tokens" };

/** Spends the daily budget of an agent of its own. */
export async function budget(world: World): Promise<Outcome> {
  const { admin, url } = world;
  const { contractId, behave } = await addFlaky(world, "budget", { estimatedTokens: BigInt(estimate) });
  const { agentId, key } = await addCaller(admin, "spender", "Has a small budget.");
  const spender = connectClients({ url, key });
  const which = { scope: BudgetScope.AGENT, subjectId: agentId, period: BudgetPeriod.DAY };
  const set = (tokens: number) => admin(BudgetService).setBudget({ ...which, limitTokens: BigInt(tokens) });
  const read = async () => {
    const { limit, spent, reserved } = (await spender(BudgetService).getBudget(which)).budget!.tokens!;
    return [limit, spent, reserved].map(Number);
  };
  const begin = async () => {
    const request = { ...wish(contractId, input), returnImmediately: true };
    return (await spender(BusService).submitTask(request, { timeoutMs: callTimeoutMs })).task!.taskId;
  };
  await set(limit);
  const spent = tokensOf(await ask(spender, contractId, input));
  claim(spent > 0, "the task says of no tokens that it used them");

  await behave("held");
  const open: string[] = [];
  while (spent + (open.length + 1) * estimate <= limit) open.push(await begin());
  const underWay = open.length;
  const reserved = underWay * estimate;
  const { metadata, retryMs } = await refused("BUDGET_EXCEEDED", begin());
  const stand = { limit: String(limit), spent: String(spent), reserved: String(reserved) };
  same("the refusal", metadata, { ...metadata, ...stand, unit: "tokens", subject_id: agentId });
  const reset = metadata.reset_time ?? "";
  claim(/T00:00:00/.test(reset) && retryMs !== undefined && retryMs > 0, "the refusal says no time to come back");
  same("limit, spent and reserved by GetBudget", await read(), [limit, spent, reserved]);

  await set(raised);
  open.push(await begin());
  await behave("up");
  const ended = await Promise.all(open.map((taskId) => watch(spender, taskId)));
  const all = ended.reduce((sum, task) => sum + tokensOf(task), spent);
  same("limit, spent and reserved by GetBudget at the end", await read(), [raised, all, 0]);
  return {
    proof: `1 task done and ${underWay} under way, then BUDGET_EXCEEDED: limit ${limit}, spent ${spent}, reserved ${reserved}, resets ${reset.slice(0, 16)}Z; raised to ${raised} the next passed; GetBudget says the same, ${all} spent in the end`,
    traceId: metadata.trace_id!,
  };
}

/** What a task used that completed. */
function tokensOf(task: Task): number {
  outputOf(task);
  return Number((task.usage?.inputTokens ?? 0n) + (task.usage?.outputTokens ?? 0n));
}
