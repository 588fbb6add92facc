/** What helps, by the reason of an error. */
import type { ErrorReason } from "../../gen/moltwire/api/v1/error_reason_pb.ts";

type Reason = Exclude<keyof typeof ErrorReason, "UNSPECIFIED">;

/** A sentence for people; not every reason has one that says more than its message. */
export const fixes: Readonly<Partial<Record<string, string>>> = {
  INVALID_REQUEST: "correct the field",
  IDEMPOTENCY_KEY_REUSED: "use another --idempotency-key, or repeat exactly the request that it was first used with",
  INVALID_PAGE_TOKEN: "start again without the cursor; one is only good for the same caller and filter",
  STILL_RUNNING: "wait a moment and repeat the command",
  KEY_MISSING: "set MOLTWIRE_API_KEY, or give --key-file",
  KEY_INVALID: "copy the key whole; it must be one that this server made",
  KEY_EXPIRED: "ask an administrator of your organisation for a new key",
  KEY_REVOKED: "ask an administrator of your organisation for a new key",
  ROLE_REQUIRED: "use a key of the required role",
  SCOPE_REQUIRED: "use a key with the required scope",
  RATE_LIMITED: "wait, then call less often",
  NOT_FOUND: "check the id; things of other organisations are not found either",
  CURSOR_EXPIRED: "start again with --from-start: what lay after the cursor is no longer kept",
  CONTRACT_NOT_FOUND: "check the contract's id, and that the key is of the organisation that has it",
  CONTRACT_VERSION_NOT_FOUND: "ask for one of the available versions, or leave --version out for the latest",
  CONTRACT_DEPRECATED: "leave --version out for the latest version that takes tasks",
  CONTRACT_VIOLATION: "change the input to fit the contract's input schema; --dry-run checks it and changes nothing",
  NO_CAPABLE_AGENT:
    "register an agent with this capability and an endpoint, or enable one; --dry-run shows who was considered and why not",
  PAYLOAD_TOO_LARGE: "send less: pass a reference instead of the content",
  ADAPTER_ERROR: "look at the agent's own log; `moltwire trace get` shows every attempt",
  AGENT_UNREACHABLE:
    "start the agent, or correct its endpoint; for a private address start the server with MOLTWIRE_EGRESS_ALLOW",
  AGENT_TIMEOUT: "make the agent faster, or register a contract version with a longer timeout",
  AGENT_BAD_RESPONSE: 'make the agent answer {"output": …} as JSON',
  ENDPOINT_REFUSED: "start the server with MOLTWIRE_EGRESS_ALLOW naming the address, if it is meant to be called",
  OUTCOME_UNKNOWN: "find out at the agent whether the work was done; contracts that are `repeatable` are tried again",
  DEADLINE_EXCEEDED: "allow more time with --timeout",
  UNIMPLEMENTED: "this server cannot do that yet: update it",
  SHUTTING_DOWN: "repeat the command when the server is up again",
  OVERLOADED: "wait a moment and repeat the command",
  INTERNAL: "look for the trace id in the server's log",
} satisfies Partial<Record<Reason, string>>;
