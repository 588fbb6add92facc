/** What tests of the marketplace do again and again. */
import type { JsonValue, MessageInitShape } from "@bufbuild/protobuf";
import { expect } from "vitest";
import type { MarketplaceTask } from "../../gen/moltwire/exchange/v1/marketplace_pb.ts";
import { MarketplaceTaskState, ReviewVerdict } from "../../gen/moltwire/exchange/v1/marketplace_pb.ts";
import type { PostTaskRequestSchema } from "../../gen/moltwire/exchange/v1/marketplace_service_pb.ts";
import type { Clock } from "../../src/clock.ts";
import { json, nameOf, value } from "../bus-fixtures/bus.ts";
import { type Clients, type Org, type OrgAgent, start, type World } from "../harness.ts";
import { credits, proofOf } from "./ledger.ts";

type TaskInit = Partial<Extract<MessageInitShape<typeof PostTaskRequestSchema>, { $typeName?: never }>>;

/** Two organisations, an agent of one that can pay, and one of the other that can work. */
export async function openMarket(dialect: "sqlite" | "postgres", clock: Clock) {
  const world = await start(dialect, { clock });
  const [home, away] = [await world.org(), await world.org()];
  return { world, home, away, creator: await agentWith(home, 500), worker: await away.agent() };
}

/** Whatever happened: the books balance. */
export async function closeBalanced(world: World): Promise<void> {
  const proof = await proofOf(world.operator);
  await world[Symbol.asyncDispose]();
  expect([proof.faults, proof.sumMicros]).toEqual([[], 0n]);
}

/** Offers a task for 5 credits, unless told otherwise. */
export const post = async (by: Clients, init: TaskInit = {}): Promise<MarketplaceTask> =>
  (await by.market.postTask({ title: "Sum it up", category: "writing", rewardMicros: credits(5), ...init })).task!;

export const get = async (by: Clients, taskId: string): Promise<MarketplaceTask> =>
  (await by.market.getTask({ taskId })).task!;

export const stateOf = (task: MarketplaceTask | undefined): string => nameOf(MarketplaceTaskState, task?.state);

/** JSON as a result. */
export const result = (of: JsonValue) => ({ kind: { case: "json", value: value(of) } }) as const;
export const resultOf = ({ delivery }: MarketplaceTask): JsonValue | undefined =>
  delivery?.result?.kind.case === "json" ? json(delivery.result.kind.value) : undefined;

export const accept = (by: Clients, taskId: string, rating = 0) =>
  by.market.reviewTask({ taskId, verdict: ReviewVerdict.ACCEPTED, rating });
export const reject = (by: Clients, taskId: string, reason = "too long") =>
  by.market.reviewTask({ taskId, verdict: ReviewVerdict.REJECTED, reason });

/** Claims and delivers. */
export async function work(by: Clients, taskId: string, what: JsonValue = "done"): Promise<MarketplaceTask> {
  await by.market.claimTask({ taskId });
  return (await by.market.deliverTask({ taskId, result: result(what) })).task!;
}

/** An agent with credits of its organisation's. */
export async function agentWith(org: Org, count: number, init?: Parameters<Org["agent"]>[0]): Promise<OrgAgent> {
  const agent = await org.agent(init);
  await org.admin.billing.transferCredits({ toAgentId: agent.agentId, amountMicros: credits(count) });
  return agent;
}

/** What a wallet can pay with: the key's own, or that of an account. */
export const available = async (by: Clients, accountId = ""): Promise<bigint> =>
  (await by.billing.getBalance({ accountId })).balance!.availableMicros;

/** The ids of the tasks that a list shows. */
export const listed = async (
  by: Clients,
  request: Parameters<Clients["market"]["listTasks"]>[0] = {},
): Promise<string[]> => (await by.market.listTasks(request)).tasks.map(({ taskId }) => taskId);

/** What an organisation or agent was told of a task: event and cause, oldest first. */
export async function eventsAbout(world: World, by: Clients, taskId: string) {
  await world.settled();
  const { events } = await by.events.listEvents({ pageSize: 250 });
  return events
    .filter(({ payload }) => payload?.task_id === taskId)
    .map(({ type, payload }) => [type.replace("marketplace.task_", ""), payload!.cause]);
}
