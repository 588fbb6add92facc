/** A flaky agent of the demo (flaky.ts): registering it, telling it how to behave, and asking it how often it was called. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { BreakerSettingsSchema } from "../../../gen/moltwire/bus/v1/agent_pb.ts";
import { AgentService } from "../../../gen/moltwire/bus/v1/agent_service_pb.ts";
import { ContractService } from "../../../gen/moltwire/bus/v1/contract_service_pb.ts";
import { countingContract, type Terms } from "../contracts.ts";
import type { Mode } from "../flaky.ts";
import type { World } from "./scenario.ts";

/** An agent that counts words under a contract of its own. */
export type FlakyAgent = {
  readonly agentId: string;
  readonly contractId: string;
  readonly behave: (mode: Mode) => Promise<void>;
  /** How many tasks have come to it. */
  readonly calls: () => Promise<number>;
};

type Settings = { readonly breaker?: MessageInitShape<typeof BreakerSettingsSchema> };

const maxWaitMs = 5_000;

/** Registers the contract `NAME/count` with these terms, and the agent `NAME-counter` that does it. */
export async function addFlaky(
  { admin, flakyUrl }: Pick<World, "admin" | "flakyUrl">,
  name: string,
  terms: Terms,
  settings: Settings = {},
): Promise<FlakyAgent> {
  const url = `${flakyUrl}/${name}`;
  const contractId = `${name}/count`;
  await admin(ContractService).registerContract(countingContract(contractId, terms));
  const { agent } = await admin(AgentService).registerAgent({
    name: `${name}-counter`,
    description: "Counts words, and fails when it is told to.",
    capabilities: [contractId],
    endpoint: { kind: { case: "http", value: { url } } },
    ...settings,
  });
  const tell = async (init: RequestInit): Promise<unknown> => {
    const response = await fetch(url, { ...init, signal: AbortSignal.timeout(maxWaitMs) });
    if (!response.ok) throw new Error(`the flaky agent answered ${response.status}: ${await response.text()}`);
    return await response.json();
  };
  return {
    agentId: agent!.agentId,
    contractId,
    behave: async (mode) => void (await tell({ method: "PUT", body: JSON.stringify({ mode }) })),
    calls: async () => ((await tell({ method: "GET" })) as { tasks: number }).tasks,
  };
}
