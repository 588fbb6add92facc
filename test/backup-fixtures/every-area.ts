/** Something of every area, made through the public protocol. */
import { Outcome } from "../../gen/moltwire/directory/v1/collaboration_pb.ts";
import { Pattern } from "../../gen/moltwire/lab/v1/scenario_pb.ts";
import { contract, echoEndpoint, submit, whenEnded } from "../bus-fixtures/bus.ts";
import { credits } from "../exchange-fixtures/ledger.ts";
import { market } from "../exchange-fixtures/listing.ts";
import { post } from "../exchange-fixtures/market.ts";
import { across } from "../federation-fixtures/across.ts";
import { eventually, type Org, type OrgAgent, type World } from "../harness.ts";
import { play } from "../lab-fixtures/lab.ts";
import { data, set } from "../memory-fixtures/memory.ts";
import { claim, leaseOf, submit as submitJob } from "../queue-fixtures/jobs.ts";
import { tell, toAgent, toChannel } from "../relay-fixtures/relay.ts";
import { hook } from "../webhook-fixtures/hooks.ts";

export type EveryArea = {
  readonly org: Org;
  readonly agent: OrgAgent;
  readonly taskId: string;
  readonly traceId: string;
  readonly listingId: string;
};

export async function everyArea(world: World): Promise<EveryArea> {
  const org = await world.org();
  const { admin } = org;
  const agent = await org.agent({ capabilities: ["say"], endpoint: echoEndpoint, description: "ü, 🦞 and a quote '" });
  const asker = await org.agent();
  await org.agent({ capabilities: ["break"], endpoint: nowhere });
  await admin.policies.putPolicy({
    policyId: "barred",
    cedarText: 'forbid (principal, action == Action::"invoke", resource == Contract::"barred");',
  });
  await admin.budgets.setBudget({ scope: 1, subjectId: asker.agentId, period: 1, limitTokens: 1_000n });
  await hook(admin, "http://127.0.0.1:9/");
  const [says, asks, breaks] = [
    await contract(org, { capability: "say" }),
    await contract(org, { capability: "say", approvalRequired: true }),
    await contract(org, { capability: "break" }),
  ];
  const done = await submit(asker.as, says, { input: { it: "🦞" }, labels: { of: "all" } });
  await submit(asker.as, breaks);
  const waiting = await submit(asker.as, asks);
  await admin.approvals.approve({ approvalId: waiting.approvalId, note: "fine" });
  await whenEnded(admin, waiting.taskId);
  await submit(asker.as, asks);
  await asker.as.directory.logCollaboration({
    ...{ partnerAgentId: agent.agentId, outcome: Outcome.SUCCESS, rating: 4 },
    evidence: { case: "taskId", value: done.taskId },
  });
  await admin.directory.createInvite({});
  await world.as(undefined).contacts.submitContact({ name: "N", email: "n@example.org", message: "hello" });

  await set(asker.as, "kept", { deep: [1, null, "ü"] });
  await asker.as.memory.setEntry({ write: { key: "bytes", value: data(new Uint8Array([0, 255, 10, 13])) } });
  await asker.as.sharedMemory.publishSharedEntry({
    write: { namespace: "n", key: "k", value: data(Buffer.from("v")) },
  });
  for (let nth = 0; nth < 40; nth++) await submitJob(asker.as, { queue: "work", tags: { nth: String(nth) } });
  const [leased] = await claim(agent.as, { queues: ["work"] });
  await agent.as.queues.completeJob(leaseOf(leased!));
  await asker.as.schedules.createSchedule({
    settings: { name: "yearly", timing: { cron: "0 0 1 1 *" }, job: { queue: "work" } },
  });
  await tell(asker.as, toAgent(agent.agentId), { hello: "you" });
  await asker.as.relay.createChannel({ name: "news" });
  await asker.as.relay.createConsumerGroup({ channel: "news", name: "readers" });
  await tell(asker.as, toChannel("news"), "told");

  await (await across(world)).go({ input: 1 });
  const shop = await market(world);
  await shop.buy();
  await shop.buyer.admin.reviews.createReview({ listingId: shop.listingId, rating: 5, text: "good" });
  await post(admin, { title: "write it", category: "writing", rewardMicros: credits(1) });
  await play(admin, { pattern: Pattern.CONSENSUS, agentCount: 3, seed: 1n });
  await world.server.app.activity.flush();
  await whenChained(world);
  return { org, agent, taskId: done.taskId, traceId: done.traceId, listingId: shop.listingId };
}

const nowhere = { kind: { case: "http", value: { url: "http://127.0.0.1:9/" } } } as const;

const whenChained = (world: World) =>
  eventually(async () => {
    const { head, unsealed } = await world.operator.admin.getAuditHead({});
    return head!.number > 0n && unsealed === 0;
  });
