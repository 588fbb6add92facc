/** How many policies an organisation may have, and how many bytes of text they may be together. */
import { Fault } from "../../errors.ts";

export const maxPolicies = 1_000;
export const maxPolicyBytes = 1_048_576;

/** QUOTA_EXCEEDED when a policy set is too large to be decided by. */
export function checkQuota(policies: number, textBytes: number): void {
  if (policies <= maxPolicies && textBytes <= maxPolicyBytes) return;
  const what = policies > maxPolicies ? `${maxPolicies} policies` : `${maxPolicyBytes} bytes of policies`;
  const message = `an organisation has at most ${what}: delete some, or say with one what several say`;
  throw new Fault(
    "QUOTA_EXCEEDED",
    message,
    { limit: String(policies > maxPolicies ? maxPolicies : maxPolicyBytes) },
    {
      quota: { subject: "policies", description: message },
    },
  );
}
