import { type Duration, durationMs } from "@bufbuild/protobuf/wkt";
import type { Claim } from "./claim.ts";
import { defaults } from "./rule.ts";

/** What a request wants to claim, with the defaults. */
export const claimOf = (
  request: { readonly queues: readonly string[]; readonly lease?: Duration | undefined; readonly maxJobs?: number },
  orgId: string,
  agentId: string,
  traceId: string,
): Claim => ({
  orgId,
  agentId,
  traceId,
  queues: request.queues.length > 0 ? request.queues : [defaults.queue],
  maxJobs: request.maxJobs || 1,
  leaseMs: request.lease ? durationMs(request.lease) : defaults.leaseMs,
  stream: "",
});
