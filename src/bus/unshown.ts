/** What is told of an agent whose profile is private to whom it does not show itself: that there is one, and neither who nor why not. */
import type { JsonObject, JsonValue } from "@bufbuild/protobuf";
import type { AgentRow } from "./agent-store.ts";

/** In place of its name. */
export const somebody = "an agent whose profile is private";

/** The name of an agent as the caller of its task may read it. */
export const shownName = (agent: Pick<AgentRow, "name" | "hidden">): string => (agent.hidden ? somebody : agent.name);

/**
 * The details of a step as an agent may read them: of the candidates that they list, those that are private keep only their score, but for the reader itself and who
 * was chosen, which the task names.
 */
export function detailsFor(agentId: string, details: JsonObject): JsonObject {
  const { candidates, fallback } = details;
  return {
    ...details,
    ...(Array.isArray(candidates) && { candidates: candidates.map((one) => candidateFor(agentId, one)) }),
    ...(isObject(fallback) && { fallback: detailsFor(agentId, fallback) }),
  };
}

function candidateFor(agentId: string, one: JsonValue): JsonValue {
  if (!isObject(one) || one.private !== true || one.chosen === true || one.agent_id === agentId) return one;
  return { private: true, chosen: false, score: one.score ?? 0, why: somebody };
}

const isObject = (value: JsonValue | undefined): value is JsonObject =>
  typeof value === "object" && value !== null && !Array.isArray(value);
