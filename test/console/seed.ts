/** A server with something of everything, some of it hostile to browsers. */
import { fromJson, type JsonValue } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import { BudgetPeriod, BudgetScope } from "../../gen/moltwire/bus/v1/budget_pb.ts";
import { type Clients, clientsAt } from "../harness.ts";

export const hostile = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>";

const value = (json: JsonValue) => fromJson(ValueSchema, json);
const echo = { kind: { case: "echo", value: {} } } as const;

/** An input that the research contracts take. */
export const about = (topic: string) => value({ topic });

/** Fills the operator's own organisation; gives an agent's clients, who asks for work. */
export async function seed(url: string, operatorKey: string): Promise<Clients> {
  const operator = clientsAt(url, operatorKey);
  const { contracts, agents, policies, budgets, keys, organizations, grants, webhooks } = operator;
  for (const contractId of ["research/outline", "research/compose"])
    await contracts.registerContract({
      ...{ contractId, version: "1.0.0", description: hostile },
      inputSchema: { type: "object", required: ["topic"], properties: { topic: { type: "string" } } },
    });
  await contracts.registerContract({ contractId: "payments/transfer", version: "2.1.0", approvalRequired: true });
  await contracts.registerContract({ contractId: "web/fetch", version: "1.0.0", timeout: { seconds: 1n } });
  const capabilities = ["research/outline", "research/compose", "payments/transfer"];
  await agents.registerAgent({ name: "researcher", description: hostile, capabilities, endpoint: echo });
  // Nobody listens there.
  const gone = { kind: { case: "http", value: { url: "http://127.0.0.1:9/" } } } as const;
  await agents.registerAgent({ name: "fetcher", capabilities: ["web/fetch"], endpoint: gone });
  const { agent: planner } = await agents.registerAgent({ name: "planner", description: "asks for work" });
  const { secret } = await keys.createApiKey({ agentId: planner!.agentId, name: hostile });
  await policies.putPolicy({
    policyId: "no-echo-for-planner",
    cedarText: `forbid (principal == Agent::"${planner!.agentId}", action == Action::"invoke", resource == Contract::"echo");`,
    description: hostile,
  });
  await budgets.setBudget({ scope: BudgetScope.ORG, period: BudgetPeriod.DAY, limitTokens: 1_000_000n });
  const asPlanner = clientsAt(url, secret);
  for (const contractId of ["research/outline", "research/compose", "research/compose"])
    await asPlanner.bus.submitTask({ contractId, input: about(hostile) });
  await asPlanner.bus.submitTask({ contractId: "payments/transfer", input: value({ to: hostile, amount: 12 }) });
  await asPlanner.bus.submitTask({ contractId: "web/fetch", input: value(hostile) });
  await asPlanner.bus.submitTask({ contractId: "echo", input: value(hostile) }).catch(() => {});
  const payload = { kind: { case: "json", value: value({ to: hostile }) } } as const;
  for (let n = 0; n < 4; n++) await asPlanner.queues.submitJob({ job: { queue: "mail", payload } });
  const { jobs } = await asPlanner.queues.claimJobs({ queues: ["mail"], maxJobs: 2 });
  for (const { job, leaseToken } of jobs)
    await asPlanner.queues.failJob({
      ...{ jobId: job!.jobId, leaseToken, retryable: false },
      error: { code: "bounced", message: hostile },
    });
  await asPlanner.schedules.createSchedule({
    settings: { name: "moonrise", timing: { cron: "0 3 * * *" }, job: { queue: "reports", payload } },
  });
  await webhooks.createWebhook({ url: "http://127.0.0.1:9/", eventTypes: ["task.*"], description: hostile });
  const { organization } = await organizations.createOrganization({ name: "acme", displayName: hostile });
  await grants.createGrant({
    ...{ granteeOrgId: organization!.orgId, subject: { case: "capability", value: "research/outline" } },
    terms: { purpose: hostile },
  });
  await operator.contacts.submitContact({ name: "somebody", email: "a@example.org", message: hostile });
  return asPlanner;
}
