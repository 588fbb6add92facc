/** A contract needs a tool: an agent that may not use it gets no such work, until its organisation gives it the tool. */
import { AgentService } from "../../../gen/moltwire/bus/v1/agent_service_pb.ts";
import { ContractService } from "../../../gen/moltwire/bus/v1/contract_service_pb.ts";
import { ask, outputOf } from "../ask.ts";
import { refused, same } from "./claim.ts";
import type { Outcome, World } from "./scenario.ts";

const contractId = "web/fetch";
const tool = "browser";
const wanted = { page: "https://example.com/" };

/** Asks for a page of an agent without a browser, then of the same one with a browser. */
export async function tools({ admin, planner }: World): Promise<Outcome> {
  await admin(ContractService).registerContract({ contractId, version: "1.0.0", requiredTools: [tool] });
  const endpoint = { kind: { case: "echo", value: {} } } as const;
  const { agent } = await admin(AgentService).registerAgent({ name: "courier", capabilities: [contractId], endpoint });
  const { agentId } = agent!;
  const { metadata } = await refused("POLICY_DENIED", ask(planner, contractId, wanted));
  same(
    "the tool, the agent and the action of the refusal",
    [metadata.tool, metadata.agent_id, metadata.action],
    [tool, agentId, "use_tool"],
  );

  const change = { allowedTools: [tool] };
  await admin(AgentService).updateAgent({ agentId, change, updateMask: { paths: ["allowed_tools"] } });
  const task = await ask(planner, contractId, wanted);
  same("what the agent fetched", outputOf(task), wanted);
  same("who did it", task.targetAgentId, agentId);
  return {
    proof: `POLICY_DENIED: ${agent!.name} may not use the tool ${metadata.tool}, which ${contractId} needs; given the tool, it did the task`,
    traceId: task.traceId,
  };
}
