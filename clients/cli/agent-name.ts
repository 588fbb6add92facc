/** Agents by the names that people know. */
import { AgentService } from "../../gen/moltwire/bus/v1/agent_service_pb.ts";
import type { Clients } from "./connect.ts";

/**
 * The id of the agent that a text means: an id as it is, or a name. A name that no agent has is answered as it is, for the server to say
 * so. Nothing given, nothing answered.
 */
export async function agentIdOf(
  text: string | undefined,
  { clients, orgId }: { readonly clients: Clients; readonly orgId: string },
): Promise<string> {
  if (!text || text.startsWith("agt_")) return text ?? "";
  const { agents } = await clients(AgentService).listAgents({ orgId, name: text, pageSize: 1 });
  return agents[0]?.agentId ?? text;
}
