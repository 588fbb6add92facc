/** Work that is measured: agents that report what they are told, contracts with an estimate, and how budgets stand. */
import { type Budget, BudgetPeriod, BudgetScope } from "../../gen/moltwire/bus/v1/budget_pb.ts";
import type { Task } from "../../gen/moltwire/bus/v1/task_pb.ts";
import { type Clients, type Org, type OrgAgent, refusal } from "../harness.ts";
import { contract, submit, worker } from "./bus.ts";
import type { Handle, HttpAgent } from "./http-agent.ts";

export type Used = { readonly inputTokens?: number; readonly outputTokens?: number; readonly model?: string };

/** Reports the usage that is in its input. */
export const asTold: Handle = ({ task }) => ({ output: null, usage: (task.input as { usage?: Used }).usage ?? {} });

/** A contract whose tasks reserve so many tokens, and the agent that does them. */
export async function metered(
  org: Org,
  at: HttpAgent,
  tokens: number,
  init: Parameters<typeof contract>[1] = {},
): Promise<{ readonly contractId: string; readonly does: OrgAgent }> {
  const contractId = await contract(org, { estimatedTokens: BigInt(tokens), timeoutMs: 60_000, ...init });
  return { contractId, does: await worker(org, contractId, at) };
}

/** Submits and waits for the end. */
export const use = (by: Clients, contractId: string, usage: Used = {}): Promise<Task> =>
  submit(by, contractId, { input: { usage } });

/** Submits and goes on. */
export const begin = (by: Clients, contractId: string, usage: Used = {}): Promise<Task> =>
  submit(by, contractId, { input: { usage }, returnImmediately: true });

export type BudgetOf = {
  readonly scope?: BudgetScope;
  readonly subjectId?: string;
  readonly period?: BudgetPeriod;
};

const total = { scope: BudgetScope.ORG, period: BudgetPeriod.TOTAL };

/** Sets a limit in tokens, by default of the whole organisation for ever; undefined removes it. */
export const limit = (by: Clients, limitTokens: number | undefined, of: BudgetOf = {}) =>
  by.budgets.setBudget({ ...total, ...of, ...(limitTokens !== undefined && { limitTokens: BigInt(limitTokens) }) });

/** [spent, reserved] in tokens. */
export async function tokensOf(by: Clients, of: BudgetOf = {}): Promise<number[]> {
  const { budget } = await by.budgets.getBudget({ ...total, ...of });
  return [Number(budget!.tokens!.spent), Number(budget!.tokens!.reserved)];
}

/** [spent, reserved] in micro-credits. */
export const microsOf = ({ credits }: Budget): number[] => [
  Number(credits!.spentMicros),
  Number(credits!.reservedMicros),
];

/** What a submit is refused with, or undefined when it is let in. */
export const refusedWith = async (task: Promise<Task>): Promise<string | undefined> =>
  task.then(
    () => undefined,
    async () => (await refusal(task)).reason,
  );
