/** What goes wrong with an agent, as the adapters tell it: one table for all of them. */
import type { EgressError } from "../../egress/error.ts";
import { type Aftermath, AttemptFault, type Usage } from "../adapter.ts";

const maxShownText = 300;

/** Codes by which an agent says that it did not begin (https://connectrpc.com/docs/protocol#error-codes), and their HTTP statuses. */
const notBegun: ReadonlySet<string> = new Set(["unavailable", "resource_exhausted"]);
const notBegunStatus: ReadonlySet<number> = new Set([429]);
/**
 * What says that the answer was given up and not that the work was: the agent's server on its time limit, or a gateway before it. A bare 503 is
 * what gateways answer also when the agent dies at work.
 */
const lostCode = "deadline_exceeded";
const lostStatus: ReadonlySet<number> = new Set([502, 503, 504]);

/** What is known of the work by the code that the agent answered, or by the bare HTTP status. */
export function aftermathOf(status: number, code: string | undefined): Aftermath {
  if (code ? notBegun.has(code) : notBegunStatus.has(status)) return "not-begun";
  return (code ? code === lostCode : lostStatus.has(status)) ? "lost" : "failed";
}

/** The agent answered an error. `said` is in its words. */
export const refusedBy = (status: number, code: string | undefined, said: string): AttemptFault =>
  new AttemptFault(
    "ADAPTER_ERROR",
    aftermathOf(status, code),
    `the agent answered ${code ?? status}: ${shorten(said) || "nothing"}`,
    { metadata: { status: String(status), ...(code && { code }) } },
  );

/** The call gave no whole answer. */
export function fromEgress(error: EgressError, timeoutMs: number): AttemptFault {
  const after = error.sent ? "lost" : "not-begun";
  const facts = { cause: error };
  switch (error.kind) {
    case "denied":
      return new AttemptFault(
        "ENDPOINT_REFUSED",
        "not-begun",
        `the endpoint may not be called: ${error.message}`,
        facts,
      );
    case "busy":
      return new AttemptFault("OVERLOADED", "not-begun", "too many calls to this agent are under way", facts);
    case "timeout":
      return timedOut(after, timeoutMs, error);
    case "unreachable":
    case "aborted":
      return new AttemptFault("AGENT_UNREACHABLE", after, `the agent could not be reached: ${error.message}`, facts);
    case "too-large":
    case "redirect":
    case "bad-response":
      return unusable(`its answer cannot be used: ${error.message}`, { cause: error });
  }
}

export const timedOut = (after: Aftermath, timeoutMs: number, cause?: unknown): AttemptFault =>
  new AttemptFault("AGENT_TIMEOUT", after, `the agent did not answer within ${timeoutMs} ms`, {
    cause,
    metadata: { timeout_ms: String(timeoutMs) },
  });

/** The agent answered something that is no answer. */
export const unusable = (detail: string, facts: { cause?: unknown; usage?: Usage } = {}): AttemptFault =>
  new AttemptFault("AGENT_BAD_RESPONSE", "unusable", `the agent answered, but ${detail}`, {
    ...facts,
    metadata: { detail: shorten(detail) },
  });

/** What others wrote, in bounds and on one line. */
export const shorten = (text: string): string => {
  const line = text.replaceAll(/\s+/g, " ").trim();
  return line.length > maxShownText ? `${line.slice(0, maxShownText)}…` : line;
};
