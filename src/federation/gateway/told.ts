/** What an organisation is told of a fault on the other's side: the reason, in general words, and nothing that names an agent, an endpoint, a policy or a figure of the other's. */
import { Fault, type ReasonName } from "../../errors.ts";

/** A fault of a call, or one that a task ended with. */
type Told = Pick<Fault, "reason" | "message" | "metadata"> & { readonly details?: Fault["details"] };

/** Of the request or of the grant, which both know. */
const shared: ReadonlySet<ReasonName> = new Set([
  "CONTRACT_DEPRECATED",
  "GRANT_NOT_ACTIVE",
  "GRANT_QUOTA_EXCEEDED",
  "GRANT_TERMS_EXCEEDED",
  "PAYLOAD_TOO_LARGE",
]);

const sentences: Readonly<Partial<Record<ReasonName, string>>> = {
  ADAPTER_ERROR: "its agent answered an error",
  AGENT_BAD_RESPONSE: "its agent gave an answer that is none",
  AGENT_TIMEOUT: "its agent did not answer in time",
  AGENT_UNREACHABLE: "its agent could not be reached",
  APPROVAL_DENIED: "it was not approved there",
  APPROVAL_REQUIRED: "it would need an approval there",
  BUDGET_EXCEEDED: "its budgets have no room for it",
  CIRCUIT_OPEN: "its agents that could do it are left alone for a while",
  CONTRACT_VIOLATION: "its agent's output breaks the contract",
  DEADLINE_EXCEEDED: "the task's deadline passed",
  ENDPOINT_REFUSED: "its agent could not be called",
  NO_CAPABLE_AGENT: "no agent of it can do it",
  OUTCOME_UNKNOWN: "nobody knows whether the work was done, and the contract is not repeatable",
  POLICY_DENIED: "its policies do not let it in",
  TASK_CANCELED: "it was canceled there",
};

/** The reason as the other organisation is told it: whether there is an agent of an id is nobody else's business. */
export const reasonAcross = (reason: ReasonName): ReasonName => (reason === "NOT_FOUND" ? "NO_CAPABLE_AGENT" : reason);

/** The fault as the organisation on the other side of `orgId`, where it arose, is told it. */
export function toldAcross({ reason, message, metadata, details }: Told, orgId: string): Fault {
  const isOfInput = reason === "CONTRACT_VIOLATION" && metadata.direction === "input";
  if (shared.has(reason) || isOfInput) return new Fault(reason, message, { ...metadata }, details);
  const as = reasonAcross(reason);
  const why = sentences[as] ?? "it failed there";
  const again = as === "CIRCUIT_OPEN" ? details?.retryAfterMs : undefined;
  return new Fault(
    as,
    `the organisation ${orgId} did not do it: ${why}`,
    { org_id: orgId },
    again === undefined ? {} : { retryAfterMs: again },
  );
}

const takenBackSentences: Readonly<Partial<Record<ReasonName, string>>> = {
  APPROVAL_REQUIRED: "it would need an approval there",
  BUDGET_EXCEEDED: "its budgets have no room for it",
  POLICY_DENIED: "its policies do not let it out",
};

/** Why work is not to go on that the organisation `orgId` had asked for, as the one is told that was to do it. */
export const toldOfTakenBack = ({ reason }: Told, orgId: string): Fault =>
  new Fault(
    reason,
    `the organisation ${orgId} takes it back: ${takenBackSentences[reason] ?? "it may not ask any more"}`,
    {
      org_id: orgId,
    },
  );
