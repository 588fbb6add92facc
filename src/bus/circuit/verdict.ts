import type { AttemptFault, AttemptReason } from "../adapter.ts";
import type { Verdict } from "./circuit.ts";

/** The reasons that tell of the agent. Not: what egress or this server's own limits refuse. */
const ofTheAgent: ReadonlySet<AttemptReason> = new Set([
  "ADAPTER_ERROR",
  "AGENT_UNREACHABLE",
  "AGENT_TIMEOUT",
  "AGENT_BAD_RESPONSE",
  "CONTRACT_VIOLATION",
]);

/** The codes by which an agent that works blames what it was asked (https://connectrpc.com/docs/protocol#error-codes). */
const blamesTheCaller: ReadonlySet<string> = new Set([
  "invalid_argument",
  "failed_precondition",
  "out_of_range",
  "not_found",
  "already_exists",
]);

/**
 * What a failed attempt tells of its agent. One that the caller's deadline cut short of the contract's timeout and that came late tells nothing:
 * else whoever is in a hurry could open an agent's circuit for everybody.
 */
export function verdictOf(
  { reason, metadata }: Pick<AttemptFault, "reason" | "metadata">,
  timeoutMs: number,
  contractTimeoutMs: number,
): Verdict {
  const code = metadata.code ?? "";
  const late = reason === "AGENT_TIMEOUT" || code === "deadline_exceeded" || code === "canceled";
  if (late && timeoutMs < contractTimeoutMs) return "nothing";
  // Another server that has had enough of this one for now is well.
  if (metadata.peer_reason === "RATE_LIMITED") return "nothing";
  return ofTheAgent.has(reason) && !blamesTheCaller.has(code) ? "failure" : "nothing";
}
