/** What helps, by the reason of an error. */
import type { ErrorReason } from "../../gen/moltwire/api/v1/error_reason_pb.ts";

type Reason = Exclude<keyof typeof ErrorReason, "UNSPECIFIED">;

/** A sentence for people, for each reason that this client knows; a newer server may have others. */
export const fixes: Readonly<Partial<Record<string, string>>> = {
  INVALID_REQUEST: "correct the field; --help tells what it takes",
  MALFORMED_REQUEST: "update this client or the server: they do not speak the same schema; see `moltwire doctor`",
  IDEMPOTENCY_KEY_REUSED: "use another --idempotency-key, or repeat exactly the request that it was first used with",
  INVALID_PAGE_TOKEN: "start again without the page token or cursor; one is only good for the same caller and filters",
  STILL_RUNNING: "wait a moment and repeat the command",
  KEY_MISSING: "set MOLTWIRE_API_KEY, or give --key-file",
  KEY_INVALID: "copy the key whole; it must be one that this server made",
  KEY_EXPIRED: "ask an administrator of your organisation for a new key",
  KEY_REVOKED: "ask an administrator of your organisation for a new key",
  ROLE_REQUIRED: "use a key of the required role",
  SCOPE_REQUIRED: "use a key with the required scope",
  RATE_LIMITED: "wait, then call less often",
  NOT_FOUND: "check the id or name with `list`; things of other organisations are not found either",
  ALREADY_EXISTS: "choose another name or version, or change the one that exists",
  FAILED_PRECONDITION: "look at it as it is now with `get`, then decide again",
  QUOTA_EXCEEDED: "delete what is no longer needed",
  LEASE_LOST: "drop the work: another has the task now",
  CURSOR_EXPIRED: "start again with --from-start: what lay after the cursor is no longer kept",
  CONTRACT_NOT_FOUND: "check the contract's id, and that the key is of the organisation that has it",
  CONTRACT_VERSION_NOT_FOUND: "ask for one of the available versions, or leave the version out for the latest",
  CONTRACT_DEPRECATED: "leave the version out for the latest that takes tasks",
  INVALID_SCHEMA: "correct the schema at that place: JSON Schema 2020-12, at most 64 KiB, no remote `$ref`",
  CONTRACT_VIOLATION: "change the input to fit the contract's input schema; --dry-run checks it and changes nothing",
  NO_CAPABLE_AGENT:
    "register an agent with this capability and an endpoint, or enable one; --dry-run shows who was considered and why not",
  PAYLOAD_TOO_LARGE: "send less: pass a reference instead of the content",
  INVALID_POLICY: "correct the policy's text at that place",
  POLICY_DENIED:
    "ask whoever keeps the policies, with the ids of those that decided; PolicyService/TestPolicy answers the same question without doing anything",
  BUDGET_EXCEEDED: "wait until the budget starts anew, or have it raised",
  CIRCUIT_OPEN: "wait: the agent failed several times in a row and is left alone for a while",
  APPROVAL_REQUIRED: "have somebody approve it",
  APPROVAL_DENIED: "ask whoever denied it",
  GRANT_QUOTA_EXCEEDED: "wait until the quota starts anew, or have it raised",
  GRANT_NOT_ACTIVE: "have the other organisation resume the grant or propose a new one",
  GRANT_TERMS_EXCEEDED: "ask for less, or have the grantor change the terms with `moltwire grant update`",
  GRANT_PARTY_REQUIRED: "ask the other organisation of the grant to do it",
  MARKETPLACE_PARTY_REQUIRED: "use a key of the agent that has posted the task, or works on it; `GetTask` tells who",
  INSUFFICIENT_CREDITS:
    "have the wallet filled: `moltwire billing transfer`, or the operator's `moltwire billing top-up`",
  ADAPTER_ERROR: "look at the agent's own log; `moltwire trace get` shows every attempt",
  AGENT_UNREACHABLE:
    "start the agent, or correct its endpoint; for a private address start the server with MOLTWIRE_EGRESS_ALLOW",
  AGENT_TIMEOUT: "make the agent faster, or register a contract version with a longer timeout",
  AGENT_BAD_RESPONSE: 'make the agent answer {"output": …} as JSON',
  ENDPOINT_REFUSED: "start the server with MOLTWIRE_EGRESS_ALLOW naming the address, if it is meant to be called",
  OUTCOME_UNKNOWN: "find out at the agent whether the work was done; contracts that are `repeatable` are tried again",
  DEADLINE_EXCEEDED: "allow more time with --timeout",
  TASK_CANCELED: "submit it again if it is still wanted",
  KEY_DROPPED: "nothing brings it back; new data of the organisation is kept under a new key",
  DATA_NOT_AUTHENTIC: "find out who changed the database, and restore it from a backup",
  UNIMPLEMENTED: "this server cannot do that yet: update it",
  SHUTTING_DOWN: "repeat the command when the server is up again",
  OVERLOADED: "wait a moment and repeat the command",
  INTERNAL: "look for the trace id in the server's log",
} satisfies Record<Reason, string>;
