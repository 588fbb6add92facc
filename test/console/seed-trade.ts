/** What agents keep, write to each other and sell: something of each page of the console that is about it, some of it hostile to browsers. */
import { fromJson, type JsonValue } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import { Outcome } from "../../gen/moltwire/directory/v1/collaboration_pb.ts";
import { BillingPeriod } from "../../gen/moltwire/exchange/v1/listing_pb.ts";
import { ReviewVerdict } from "../../gen/moltwire/exchange/v1/marketplace_pb.ts";
import { Pattern } from "../../gen/moltwire/lab/v1/scenario_pb.ts";
import { type Clients, clientsAt } from "../harness.ts";
import { hostile } from "./seed.ts";

const value = (json: JsonValue) => fromJson(ValueSchema, json);
const jsonValue = (json: JsonValue) => ({ kind: { case: "json", value: value(json) } }) as const;
const credits = (count: number) => BigInt(count) * 1_000_000n;

/** What tests ask about. */
export type Trade = {
  readonly sellerOrgId: string;
  readonly listingId: string;
  readonly ownListingId: string;
  /** The administrator of the organisation that sells. */
  readonly seller: Clients;
  /** A task of the marketplace that waits for its review. */
  readonly deliveredTaskId: string;
  readonly scenarioId: string;
};

/** Goes on with what `seed` has made, by the agent whose clients it gave. */
export async function seedTrade(url: string, operatorKey: string, planner: Clients): Promise<Trade> {
  const operator = clientsAt(url, operatorKey);
  const { agents } = await operator.agents.listAgents({});
  const idOf = (name: string) => agents.find((one) => one.name === name)!.agentId;
  await keep(
    operator,
    planner,
    agents.map(({ agentId }) => agentId),
  );
  await write(
    operator,
    planner,
    agents.map(({ agentId }) => agentId),
  );
  await rate(operator, planner, idOf("researcher"));
  await operator.directory.createInvite({ maxUses: 3 });
  await operator.peers.addPeer({
    ...{ name: "far", baseUrl: "http://127.0.0.1:9", audience: `org_${"ab".repeat(16)}` },
    publicKeys: [Buffer.from("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "hex")],
  });
  const sold = await sell(url, operator);
  const deliveredTaskId = await post(operator, sold.seller);
  const { scenario } = await operator.scenarios.createScenario({
    ...{ pattern: Pattern.PUB_SUB_FANOUT, agentCount: 3, seed: 7n, name: "fanout for three" },
  });
  const { seller, sellerOrgId, listingId, ownListingId } = sold;
  return { seller, sellerOrgId, listingId, ownListingId, deliveredTaskId, scenarioId: scenario!.scenarioId };
}

/** What agents remember. */
async function keep(operator: Clients, planner: Clients, agentIds: readonly string[]): Promise<void> {
  for (const agentId of agentIds)
    for (const key of ["favourite/colour", "favourite/town", hostile.slice(0, 60)])
      await operator.memory.setEntry({
        agentId,
        write: {
          key,
          value: jsonValue({ says: hostile }),
          description: hostile,
          tags: ["likes", hostile.slice(0, 40)],
        },
      });
  for (const key of ["today", "tomorrow"])
    await planner.sharedMemory.publishSharedEntry({
      write: { namespace: "weather", key, value: jsonValue(hostile) },
      public: key === "today",
    });
}

/** What agents wrote to each other. */
async function write(operator: Clients, planner: Clients, agentIds: readonly string[]): Promise<void> {
  for (const toAgentId of agentIds)
    await planner.relay.send({
      ...{ to: { case: "toAgentId", value: toAgentId }, payload: jsonValue(hostile), threadId: "moon" },
      headers: { subject: hostile.slice(0, 40) },
    });
  await planner.relay.createChannel({ name: "news", description: hostile });
  const to = { case: "toChannel", value: "news" } as const;
  for (let n = 0; n < 3; n++) await planner.relay.send({ to, payload: jsonValue({ n, says: hostile }) });
  await planner.relay.createConsumerGroup({ channel: "news", name: "readers", maxDeliveries: 1 });
  await operator.relay.send({ to, payload: jsonValue("dead soon") });
  const { messages } = await planner.relay.pullMessages({ channel: "news", group: "readers", maxMessages: 1 });
  await planner.relay.nackMessages({
    ...{ channel: "news", group: "readers", ackIds: messages.map(({ ackId }) => ackId), cause: hostile.slice(0, 60) },
  });
}

/** What one said of another after a task. */
async function rate(operator: Clients, planner: Clients, partnerAgentId: string): Promise<void> {
  const { tasks } = await operator.bus.listTasks({ contractId: "research/outline" });
  await planner.directory.logCollaboration({
    ...{ partnerAgentId, evidence: { case: "taskId", value: tasks[0]!.taskId } },
    ...{ taskType: hostile.slice(0, 60), outcome: Outcome.SUCCESS, rating: 4 },
  });
}

/** Another organisation sells, the operator's own buys; and the other way round. */
async function sell(url: string, operator: Clients) {
  const { organization } = await operator.organizations.createOrganization({ name: "seller", displayName: hostile });
  const sellerOrgId = organization!.orgId;
  const key = await operator.keys.createApiKey({ orgId: sellerOrgId, role: Role.ORG });
  const seller = clientsAt(url, key.secret);
  const contract = { contractId: "translate/any", version: "1.0.0" };
  await seller.contracts.registerContract(contract);
  const echo = { kind: { case: "echo", value: {} } } as const;
  await seller.agents.registerAgent({ name: "translator", capabilities: ["translate/any"], endpoint: echo });
  const offer = (title: string, contractId: string) => ({
    ...{ title, contractId, description: hostile, category: "languages", tags: ["text"] },
    ...{ exampleInput: value({ text: hostile }), exampleOutput: value(hostile) },
    pricing: { requestMicros: credits(5), freeTier: { requests: 1, period: BillingPeriod.DAY } },
    plans: [
      {
        ...{ planId: "monthly", period: BillingPeriod.MONTH, priceMicros: credits(50) },
        ...{ includedRequests: 100n, overageMicros: credits(1) },
      },
    ],
    serviceLevel: { successRate: 0.99, p99: { seconds: 2n }, text: hostile },
  });
  const { listing } = await seller.catalog.publishListing({ offer: offer(`Translation ${hostile}`, "translate/any") });
  const own = await operator.catalog.publishListing({ offer: offer("Outlines", "research/outline") });
  const [listingId, ownListingId] = [listing!.listingId, own.listing!.listingId];
  await operator.billing.topUp({ amountMicros: credits(500), reference: "invoice 7" });
  for (let n = 0; n < 2; n++) await operator.catalog.invokeListing({ listingId, input: value({ n, text: hostile }) });
  for (let n = 0; n < 2; n++)
    await seller.catalog.invokeListing({ listingId: ownListingId, input: value({ topic: hostile }) });
  await operator.reviews.createReview({ listingId, rating: 4, text: hostile });
  await seller.reviews.createReview({ listingId: ownListingId, rating: 5, text: hostile });
  await operator.subscriptions.subscribe({ listingId, planId: "monthly" });
  return { seller, sellerOrgId, listingId, ownListingId };
}

/** Tasks of the marketplace: an open one, one that waits for its review, and one that is disputed. */
async function post(operator: Clients, seller: Clients): Promise<string> {
  const { agent } = await seller.agents.registerAgent({ name: "worker" });
  const { agentId } = agent!;
  const task = async (title: string) => {
    const init = { title, description: hostile, category: "writing", tags: ["short"], rewardMicros: credits(3) };
    return (await operator.market.postTask(init)).task!.taskId;
  };
  const deliver = async (taskId: string) => {
    await seller.market.claimTask({ agentId, taskId });
    await seller.market.deliverTask({ agentId, taskId, result: jsonValue({ says: hostile }) });
  };
  await task(`Sum it up ${hostile}`);
  const [delivered, disputed] = [await task("Wait for a review"), await task("Quarrel over this")];
  await deliver(delivered);
  await deliver(disputed);
  await operator.market.reviewTask({ taskId: disputed, verdict: ReviewVerdict.REJECTED, reason: hostile });
  await seller.market.disputeTask({ agentId, taskId: disputed, reason: hostile });
  return delivered;
}
