/** Why a call fails: one class, one table from reason to code. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  QuotaFailureSchema,
  RetryInfoSchema,
} from "../gen/google/rpc/error_details_pb.ts";
import type { ErrorReason } from "../gen/moltwire/api/v1/error_reason_pb.ts";

/** The name of a reason as clients read it, such as "NOT_FOUND". */
export type ReasonName = Exclude<keyof typeof ErrorReason, "UNSPECIFIED">;

export const errorDomain = "moltwire.dev";

/** The code each reason is answered with. Reasons that only end tasks have the code they would have as an answer. */
const codes: Record<ReasonName, Code> = {
  INVALID_REQUEST: Code.InvalidArgument,
  MALFORMED_REQUEST: Code.InvalidArgument,
  IDEMPOTENCY_KEY_REUSED: Code.InvalidArgument,
  INVALID_PAGE_TOKEN: Code.InvalidArgument,
  STILL_RUNNING: Code.Aborted,
  KEY_MISSING: Code.Unauthenticated,
  KEY_INVALID: Code.Unauthenticated,
  KEY_EXPIRED: Code.Unauthenticated,
  KEY_REVOKED: Code.Unauthenticated,
  ROLE_REQUIRED: Code.PermissionDenied,
  SCOPE_REQUIRED: Code.PermissionDenied,
  KEY_NETWORK_REFUSED: Code.PermissionDenied,
  RATE_LIMITED: Code.ResourceExhausted,
  SIGNATURE_INVALID: Code.Unauthenticated,
  NOT_FOUND: Code.NotFound,
  ALREADY_EXISTS: Code.AlreadyExists,
  FAILED_PRECONDITION: Code.FailedPrecondition,
  QUOTA_EXCEEDED: Code.ResourceExhausted,
  LEASE_LOST: Code.FailedPrecondition,
  CURSOR_EXPIRED: Code.OutOfRange,
  CONTRACT_NOT_FOUND: Code.NotFound,
  CONTRACT_VERSION_NOT_FOUND: Code.NotFound,
  CONTRACT_DEPRECATED: Code.FailedPrecondition,
  INVALID_SCHEMA: Code.InvalidArgument,
  CONTRACT_VIOLATION: Code.InvalidArgument,
  NO_CAPABLE_AGENT: Code.FailedPrecondition,
  PAYLOAD_TOO_LARGE: Code.InvalidArgument,
  ENDPOINT_REFUSED: Code.InvalidArgument,
  INVALID_POLICY: Code.InvalidArgument,
  POLICY_DENIED: Code.PermissionDenied,
  BUDGET_EXCEEDED: Code.ResourceExhausted,
  CIRCUIT_OPEN: Code.Unavailable,
  APPROVAL_REQUIRED: Code.FailedPrecondition,
  APPROVAL_DENIED: Code.FailedPrecondition,
  GRANT_QUOTA_EXCEEDED: Code.ResourceExhausted,
  GRANT_PARTY_REQUIRED: Code.PermissionDenied,
  INSUFFICIENT_CREDITS: Code.FailedPrecondition,
  GRANT_NOT_ACTIVE: Code.FailedPrecondition,
  MARKETPLACE_PARTY_REQUIRED: Code.PermissionDenied,
  GRANT_TERMS_EXCEEDED: Code.PermissionDenied,
  ADAPTER_ERROR: Code.Unavailable,
  AGENT_UNREACHABLE: Code.Unavailable,
  AGENT_TIMEOUT: Code.DeadlineExceeded,
  AGENT_BAD_RESPONSE: Code.Unavailable,
  OUTCOME_UNKNOWN: Code.Unavailable,
  DEADLINE_EXCEEDED: Code.DeadlineExceeded,
  TASK_CANCELED: Code.Canceled,
  PEER_SIGNATURE_INVALID: Code.Unauthenticated,
  PEER_UNKNOWN: Code.Unauthenticated,
  PEER_DIGEST_MISMATCH: Code.Unauthenticated,
  PEER_MESSAGE_STALE: Code.Unauthenticated,
  PEER_MESSAGE_EARLY: Code.Unauthenticated,
  PEER_ENVELOPE_INVALID: Code.InvalidArgument,
  PEER_AUDIENCE_WRONG: Code.Unauthenticated,
  PEER_HOPS_EXCEEDED: Code.FailedPrecondition,
  PEER_MESSAGE_REPLAYED: Code.Unauthenticated,
  KEY_DROPPED: Code.FailedPrecondition,
  DATA_NOT_AUTHENTIC: Code.DataLoss,
  UNIMPLEMENTED: Code.Unimplemented,
  SHUTTING_DOWN: Code.Unavailable,
  OVERLOADED: Code.Unavailable,
  STORAGE_UNAVAILABLE: Code.Unavailable,
  INTERNAL: Code.Internal,
};

/** One field that is wrong, as clients read it. */
export type FieldViolation = { readonly field: string; readonly description: string; readonly reason?: string };

/** What a fault may carry beside its reason. */
export type FaultDetails = {
  /** Every field that is wrong; answered as google.rpc.BadRequest. */
  readonly fields?: readonly FieldViolation[];
  /** When it is worth trying again, in milliseconds; answered as google.rpc.RetryInfo and `retry-after`. */
  readonly retryAfterMs?: number;
  /** What ran out; answered as google.rpc.QuotaFailure. */
  readonly quota?: { readonly subject: string; readonly description: string };
  readonly cause?: unknown;
};

/** A call fails, and what its transaction did so far is undone. */
export class Fault extends Error {
  override readonly name: string = "Fault";
  readonly reason: ReasonName;
  readonly metadata: Readonly<Record<string, string>>;
  readonly details: FaultDetails;

  constructor(reason: ReasonName, message: string, metadata: Record<string, string> = {}, details: FaultDetails = {}) {
    super(message, { cause: details.cause });
    this.reason = reason;
    this.metadata = metadata;
    this.details = details;
  }
}

/** A call is refused by a rule of the business: what its transaction wrote (decision, trace, events) is committed, then the refusal is answered. */
export class Refused extends Fault {
  override readonly name = "Refused";
}

/** The answer for a thing that does not exist and for one the caller may not know of: the same, byte for byte. */
export const notFound = (resource: string, id: string): Fault =>
  new Fault("NOT_FOUND", `${resource} not found`, { resource, id });

/** One field is wrong. */
export const badField = (field: string, description: string): Fault =>
  new Fault("INVALID_REQUEST", `${field}: ${description}`, { field }, { fields: [{ field, description }] });

/** The fault as every protocol carries it: code, message and google.rpc details. */
export function toConnectError(fault: Fault, traceId?: string): ConnectError {
  const { fields, retryAfterMs, quota } = fault.details;
  const details: {
    desc: typeof ErrorInfoSchema | typeof BadRequestSchema | typeof RetryInfoSchema | typeof QuotaFailureSchema;
    value: object;
  }[] = [
    {
      desc: ErrorInfoSchema,
      value: {
        reason: fault.reason,
        domain: errorDomain,
        metadata: { ...(traceId && { trace_id: traceId }), ...fault.metadata },
      } satisfies MessageInitShape<typeof ErrorInfoSchema>,
    },
  ];
  if (fields) {
    const fieldViolations = fields.map(({ field, description, reason = "" }) => ({ field, description, reason }));
    details.push({ desc: BadRequestSchema, value: { fieldViolations } });
  }
  const headers: Record<string, string> = {};
  if (retryAfterMs !== undefined) {
    details.push({
      desc: RetryInfoSchema,
      value: {
        retryDelay: { seconds: BigInt(Math.trunc(retryAfterMs / 1000)), nanos: (retryAfterMs % 1000) * 1_000_000 },
      },
    });
    headers["retry-after"] = String(Math.max(1, Math.ceil(retryAfterMs / 1000)));
  }
  if (quota) details.push({ desc: QuotaFailureSchema, value: { violations: [quota] } });
  // It may quote what a client sent, and gRPC cannot say half a surrogate pair.
  return new ConnectError(fault.message.toWellFormed(), codes[fault.reason], headers, details as never, fault);
}
