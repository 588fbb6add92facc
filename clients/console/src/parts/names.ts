import { useQuery } from "@connectrpc/connect-query";
import type { Agent } from "../../../../gen/moltwire/bus/v1/agent_pb.ts";
import { AgentService } from "../../../../gen/moltwire/bus/v1/agent_service_pb.ts";
import { useOrg } from "../session.ts";
import { shortId } from "./text.ts";

/** The first 250 agents of the organisation. */
export function useAgents(): readonly Agent[] {
  const orgId = useOrg();
  const { data } = useQuery(AgentService.method.listAgents, { orgId, pageSize: 250 }, { staleTime: 60_000 });
  return data?.agents ?? [];
}

/** Names agents by their ids: those of the first 250, and others by the end of the id. */
export function useAgentNames(): (agentId: string) => string {
  const names = new Map(useAgents().map(({ agentId, name }) => [agentId, name]));
  return (agentId) => (agentId === "" ? "administrator" : (names.get(agentId) ?? shortId(agentId)));
}
