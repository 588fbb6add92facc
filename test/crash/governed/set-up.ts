/** The organisation of the run: agents, contracts, rates, budgets, and two circuits that have seen failures. */

import type { MessageInitShape } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { Role } from "../../../gen/moltwire/api/v1/access_pb.ts";
import type { RegisterAgentRequestSchema } from "../../../gen/moltwire/bus/v1/agent_service_pb.ts";
import { BudgetPeriod, BudgetScope } from "../../../gen/moltwire/bus/v1/budget_pb.ts";
import { clientsAt } from "../../harness.ts";
import { estimatedTokens, model, terms } from "./asks.ts";

/** What is needed to speak to the organisation in every life, and the subjects of what is verified. */
export type Organization = {
  readonly adminKey: string;
  readonly otherKey: string;
  readonly callerKey: string;
  readonly frugalKey: string;
  readonly fetcherKey: string;
  readonly callerId: string;
  readonly frugalId: string;
  /** The agents whose circuits must stay as they are: one open, one closed with a failure. */
  readonly trippedId: string;
  readonly bruisedId: string;
};

/** Never reached: these budgets are there to be counted in. */
const plenty = 10n ** 12n;

export async function setUp(url: string, operatorKey: string, workersUrl: string): Promise<Organization> {
  const operator = clientsAt(url, operatorKey);
  const { organization } = await operator.organizations.createOrganization({ name: "governed" });
  const { orgId } = organization!;
  const orgKey = async () => (await operator.keys.createApiKey({ orgId, role: Role.ORG })).secret;
  const adminKey = await orgKey();
  const admin = clientsAt(url, adminKey);
  const register = async (init: MessageInitShape<typeof RegisterAgentRequestSchema>) =>
    (await admin.agents.registerAgent(init)).agent!.agentId;
  const keyOf = async (agentId: string) => (await admin.keys.createApiKey({ agentId })).secret;
  const http = { kind: { case: "http", value: { url: workersUrl } } } as const;
  // They fail as they are told, and lose leases, and are called all the same.
  const breaker = { disabled: true };
  await register({ name: "worker", capabilities: ["work"], endpoint: http, breaker });
  const pull = { kind: { case: "pull", value: {} } } as const;
  const fetcherId = await register({ name: "fetcher", capabilities: ["fetch"], endpoint: pull, breaker });
  const hour = durationFromMs(3_600_000);
  const fragile = (failureThreshold: number) => ({ failureThreshold, window: hour, openDuration: hour });
  const tripped = { name: "tripped", capabilities: ["trip"], endpoint: http, breaker: fragile(2) };
  const bruised = { name: "bruised", capabilities: ["bruise"], endpoint: http, breaker: fragile(5) };
  const trippedId = await register(tripped);
  const bruisedId = await register(bruised);
  const callerId = await register({ name: "caller" });
  const frugalId = await register({ name: "frugal" });
  for (const [contractId, { capability, repeatable, guarded, retries }] of Object.entries(terms))
    await admin.contracts.registerContract({
      contractId,
      version: "1.0.0",
      capability,
      repeatable,
      approvalRequired: guarded,
      estimatedTokens: BigInt(estimatedTokens),
      timeout: durationFromMs(60_000),
      retryPolicy: {
        maxRetries: retries,
        backoff: durationFromMs(contractId === "patient" ? 10_000 : 50),
        maxBackoff: durationFromMs(10_000),
      },
    });
  const rate = { inputPer1000TokensMicros: 1_000n, outputPer1000TokensMicros: 2_000n };
  await admin.costs.setRates({ rates: [rate] });
  const limits = { limitTokens: plenty, limitCreditsMicros: plenty };
  await admin.budgets.setBudget({ scope: BudgetScope.ORG, period: BudgetPeriod.DAY, ...limits });
  const ofAgent = { scope: BudgetScope.AGENT, period: BudgetPeriod.TOTAL };
  await admin.budgets.setBudget({ ...ofAgent, subjectId: callerId, ...limits });
  await admin.budgets.setBudget({ ...ofAgent, subjectId: frugalId, limitTokens: 0n });
  await admin.budgets.setBudget({ scope: BudgetScope.MODEL, subjectId: model, period: BudgetPeriod.TOTAL, ...limits });
  return {
    adminKey,
    otherKey: await orgKey(),
    callerKey: await keyOf(callerId),
    frugalKey: await keyOf(frugalId),
    fetcherKey: await keyOf(fetcherId),
    callerId,
    frugalId,
    trippedId,
    bruisedId,
  };
}
