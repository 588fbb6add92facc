/** A request that each method takes for well-formed, made from its descriptor. */
import { create, type DescMessage, type Message } from "@bufbuild/protobuf";
import { createValidator } from "@bufbuild/protovalidate";

const validator = createValidator();
const maxRounds = 10;

/** What to put where a request must not be empty, by the name of the field or oneof, before it perhaps that of its message. Ids are of nothing. */
const fillings: Readonly<Record<string, unknown>> = {
  name: "matrix",
  version: "9.9.9",
  contract_id: "no-such-contract",
  trace_id: "f".repeat(32),
  update_mask: { paths: ["display_name"] },
  change: {},
  outcome: { case: "output", value: { kind: { case: "boolValue", value: true } } },
  subject: { case: "window", value: { startTime: { seconds: 0n } } },
  cedar_text: "permit (principal, action, resource);",
  note: "because",
  rates: [{ model: "none" }],
  namespace: "none",
  key: "none",
  keys: [{ key: "none" }],
  write: { namespace: "none", key: "none", value: { kind: { case: "data", value: new Uint8Array(1) } } },
  changes: [{ change: { case: "delete", value: { key: "none" } } }],
  scope: 1,
  period: 1,
  job: {},
  plan_id: "none",
  "RespondToReviewRequest.text": "none",
  offer: { title: "none", category: "none", contractId: "no-such-contract", pricing: { requestMicros: 1n } },
  jobs: [{}],
  calls: [{ method: "none/None" }],
  settings: { timing: { cron: "@daily" } },
  start_time: { seconds: 0n },
  end_time: { seconds: 1n },
  "PreviewScheduleRequest.subject": { case: "scheduleId", value: "none" },
  channel: "none",
  group: "none",
  to: { case: "toAgentId", value: "none" },
  payload: { kind: { case: "data", value: new Uint8Array(1) } },
  read: { case: "throughSequence", value: 1n },
  ack_ids: ["none"],
  agent_ids: ["none"],
  frame: { case: "open", value: {} },
  // Nobody listens there.
  url: "http://127.0.0.1:9/",
  event_types: ["*"],
  since_time: { seconds: 0n },
  grantee_org_id: `org_${"0".repeat(32)}`,
  target_org_id: `org_${"0".repeat(32)}`,
  "CreateGrantRequest.subject": { case: "capability", value: "none" },
  "UpdateGrantRequest.update_mask": { paths: ["purpose"] },
  amount_micros: 1n,
  title: "work",
  category: "none",
  reward_micros: 1n,
  verdict: 1,
  reason: "because",
  result: { kind: { case: "data", value: new Uint8Array(1) } },
  email: "somebody@example.org",
  message: "hello",
  operation: 1,
  needs: ["none"],
  rating: 1,
  evidence: { case: "taskId", value: "none" },
  "LogCollaborationRequest.outcome": 1,
  "SignInRequest.credential": { case: "password", value: "x" },
  password: "correct horse battery",
  // Refused before anything is asked of it.
  base_url: "ftp://nowhere.example",
  audience: "none",
  public_keys: [new Uint8Array(32)],
  envelope: { payload: new Uint8Array(1), keyId: "none", signature: new Uint8Array(64) },
  pattern: 2,
  agent_count: 2,
  "RevealPayloadRequest.subject": { case: "taskId", value: "none" },
  "RedriveJobRequest.subject": { case: "jobId", value: "none" },
};

/** A message that breaks no rule of its schema: empty, and whatever the rules ask for filled in from the table. */
export function minimalRequest(schema: DescMessage, over: Readonly<Record<string, unknown>> = {}): Message {
  const init: Record<string, unknown> = { ...over };
  for (let round = 0; round < maxRounds; round++) {
    const message = create(schema, init as never);
    const result = validator.validate(schema, message);
    if (result.kind === "valid") return message;
    if (result.kind === "error") throw result.error;
    for (const { field } of result.violations) {
      const [part] = field;
      if (!part || !("localName" in part)) throw new Error(`${schema.typeName}: a rule of no field`);
      init[part.localName] = fillings[`${schema.name}.${part.name}`] ?? fillings[part.name] ?? idOf(part.name, schema);
    }
  }
  throw new Error(`${schema.typeName}: the table of this file has no value for what it needs`);
}

function idOf(name: string, schema: DescMessage): string {
  if (!/_(id|token|text)$/.test(name))
    throw new Error(`${schema.typeName}.${name}: add a value to the table of this file`);
  return `none_${"0".repeat(32)}`;
}
