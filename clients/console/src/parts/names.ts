import { useQuery } from "@connectrpc/connect-query";
import { AgentService } from "../../../../gen/moltwire/bus/v1/agent_service_pb.ts";
import { useOrg } from "../session.ts";
import { shortId } from "./text.ts";

/** Names agents by their ids: those of the first 250, and others by the end of the id. */
export function useAgentNames(): (agentId: string) => string {
  const orgId = useOrg();
  const { data } = useQuery(AgentService.method.listAgents, { orgId, pageSize: 250 }, { staleTime: 60_000 });
  const names = new Map(data?.agents.map(({ agentId, name }) => [agentId, name]));
  return (agentId) => (agentId === "" ? "administrator" : (names.get(agentId) ?? shortId(agentId)));
}
