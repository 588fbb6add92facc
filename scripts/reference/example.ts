/** An example of each request: the least that breaks none of its limits, or more where that says little. */
import { type DescMessage, fromJson, type JsonObject, type JsonValue } from "@bufbuild/protobuf";
import { createValidator } from "@bufbuild/protovalidate";

const validator = createValidator();
const maxRounds = 10;
const id = (prefix: string): string => `${prefix}_${"0".repeat(31)}1`;

/** Requests of which the least would say too little. */
const told: Readonly<Record<string, JsonObject>> = {
  "moltwire.bus.v1.SubmitTaskRequest": { contractId: "echo", input: { hello: "world" } },
  "moltwire.bus.v1.RegisterContractRequest": {
    contractId: "shout",
    version: "1.0.0",
    inputSchema: { type: "object", required: ["text"], properties: { text: { type: "string" } } },
  },
  "moltwire.bus.v1.RegisterAgentRequest": {
    name: "shouter",
    capabilities: ["shout"],
    endpoint: { http: { url: "https://agent.example.com/task" } },
  },
  "moltwire.bus.v1.SetBudgetRequest": {
    scope: "BUDGET_SCOPE_AGENT",
    subjectId: "*",
    period: "BUDGET_PERIOD_DAY",
    limitTokens: "50000",
  },
  "moltwire.memory.v1.PublishSharedEntryRequest": {
    write: { namespace: "prices", key: "BTC", value: { json: 98500 }, ttl: "3600s" },
  },
  "moltwire.queue.v1.ClaimJobsRequest": { queues: ["work"], maxJobs: 1, lease: "60s" },
  "moltwire.queue.v1.ListJobsRequest": { queue: "work" },
  "moltwire.relay.v1.UpdateChannelRequest": {
    channel: "news",
    change: { membersOnly: true },
    updateMask: "membersOnly",
  },
  "moltwire.exchange.v1.TransferCreditsRequest": { toAgentId: id("agt"), amountMicros: "1000000" },
  "moltwire.exchange.v1.InvokeListingRequest": { listingId: id("lst"), input: { query: "AI safety" } },
  "moltwire.exchange.v1.SettleDisputeRequest": { taskId: id("mkt"), workerMicros: "25000000" },
  "moltwire.exchange.v1.GetTaskRequest": { taskId: id("mkt") },
  "moltwire.exchange.v1.ClaimTaskRequest": { taskId: id("mkt") },
  "moltwire.exchange.v1.DeliverTaskRequest": { taskId: id("mkt"), result: { json: "73 % positive" } },
  "moltwire.exchange.v1.ReviewTaskRequest": { taskId: id("mkt"), verdict: "REVIEW_VERDICT_ACCEPTED", rating: 5 },
  "moltwire.exchange.v1.CancelTaskRequest": { taskId: id("mkt") },
  "moltwire.ops.v1.RevealPayloadRequest": { taskId: id("tsk"), reason: "they asked us why it failed: ticket 7" },
  "moltwire.exchange.v1.DisputeTaskRequest": { taskId: id("mkt"), reason: "the result is what was asked for" },
  "moltwire.directory.v1.SearchAgentsRequest": { capabilities: ["research"] },
};

const agentId = id("agt");

/** What a field or oneof that must be set is set to, by its name, perhaps after that of its message. */
const fillings: Readonly<Record<string, JsonValue>> = {
  ack_ids: ["0:1"],
  agent_count: 5,
  agent_ids: [agentId],
  amount_micros: "1000000",
  audience: "https://other.example.com",
  base_url: "https://other.example.com",
  calls: [
    {
      method: "moltwire.memory.v1.MemoryService/SetEntry",
      json: { write: { key: "state", value: { json: { step: 3 } } } },
      idempotencyKey: "step-3",
    },
    { method: "moltwire.memory.v1.MemoryService/GetEntry", json: { key: "plan" } },
  ],
  category: "research",
  cedar_text: 'permit (principal, action == Action::"invoke", resource);',
  changes: [{ set: { key: "state", value: { json: { step: 3 } } } }],
  channel: "news",
  contract_id: "research",
  email: "ada@example.com",
  envelope: { payload: "AA==", keyId: "example", signature: `${"A".repeat(86)}==` },
  end_time: "2026-01-02T00:00:00Z",
  event_types: ["job.completed"],
  evidence: { taskId: id("tsk") },
  group: "readers",
  job: { queue: "work", payload: { json: { url: "https://example.com" } }, priority: 8 },
  jobs: [
    { queue: "work", payload: { json: 1 } },
    { queue: "work", payload: { json: 2 } },
  ],
  key: "state",
  keys: [{ key: "state" }, { key: "plan" }],
  lease_token: "the token that came with the lease",
  message: "Hello.",
  name: "example",
  namespace: "prices",
  needs: ["research"],
  note: "the input was wrong",
  offer: {
    title: "Deep research",
    category: "research",
    contractId: "research",
    pricing: { requestMicros: "5000000" },
  },
  operation: "TEXT_OPERATION_WORD_COUNT",
  outcome: "OUTCOME_SUCCESS",
  password: "correct horse battery staple",
  pattern: "PATTERN_LEADER_ELECTION",
  plan_id: "daily",
  // Of the first test in RFC 8032, section 7.1.
  public_keys: ["11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="],
  payload: { json: { alert: "price spike" } },
  period: "BUDGET_PERIOD_DAY",
  policy_id: "no-transfers",
  rates: [{ model: "small-1", inputPer1000TokensMicros: "150", outputPer1000TokensMicros: "600" }],
  rating: 5,
  reward_micros: "50000000",
  scope: "BUDGET_SCOPE_ORG",
  settings: { timing: { cron: "*/5 * * * *" }, job: { queue: "work", payload: { json: "check" } } },
  since_time: "2026-01-01T00:00:00Z",
  text: "Thank you.",
  title: "Sentiment of 1,000 posts",
  start_time: "2026-01-01T00:00:00Z",
  to: { toAgentId: agentId },
  trace_id: "4bf92f3577b34da6a3ce929d0e0e4736",
  url: "https://hooks.example.com/moltwire",
  version: "1.0.0",
  write: { key: "state", value: { json: { step: 3 } }, ttl: "86400s" },
  "SignInRequest.credential": { password: "the password of the operator" },
  "MarkReadRequest.read": { throughSequence: "42" },
  "RespondTaskRequest.outcome": { output: { shouted: "HELLO" } },
  "CreateGrantRequest.subject": { capability: "research" },
  "RedriveJobRequest.subject": { jobId: id("job") },
  "PreviewScheduleRequest.subject": { draft: { cron: "0 9 * * 1-5", timeZone: "Europe/Berlin" } },
  "TestPolicyRequest.subject": { window: { startTime: "2026-01-01T00:00:00Z" } },
  "UpdateApiKeyRequest.change": { allowedNetworks: ["203.0.113.0/24"] },
  "UpdateApiKeyRequest.update_mask": "allowedNetworks",
  "UpdateAgentRequest.change": { description: "shouts" },
  "UpdateAgentRequest.update_mask": "description",
  "UpdateProfileRequest.change": { description: "finds sources" },
  "UpdateProfileRequest.update_mask": "description",
  "UpdateStatusRequest.change": { availability: "AVAILABILITY_AVAILABLE" },
  "UpdateStatusRequest.update_mask": "availability",
  "UpdateGrantRequest.change": { purpose: "research for the spring report" },
  "UpdateGrantRequest.update_mask": "purpose",
  "UpdateOrganizationRequest.change": { displayName: "Example" },
  "UpdateOrganizationRequest.update_mask": "displayName",
  "UpdateScheduleRequest.change": { disabled: true },
  "UpdateScheduleRequest.update_mask": "disabled",
  "UpdateWebhookRequest.change": { disabled: true },
  "UpdateWebhookRequest.update_mask": "disabled",
};

/** The example of a message; throws when there is none that the message's own limits allow. */
export function exampleOf(message: DescMessage): JsonObject {
  const example: Record<string, JsonValue> = { ...told[message.typeName] };
  for (let round = 0; round < maxRounds; round++) {
    const result = validator.validate(message, fromJson(message, example));
    if (result.kind === "valid") return example;
    if (result.kind === "error") throw result.error;
    for (const { field } of result.violations) {
      const [part] = field;
      if (part?.kind !== "field" && part?.kind !== "oneof") throw new Error(`${message.typeName}: a limit of no field`);
      const filling = fillings[`${message.name}.${part.name}`] ?? fillings[part.name] ?? idOf(part.name, message);
      if (part.kind === "oneof") Object.assign(example, filling);
      else example[part.jsonName] = filling;
    }
  }
  throw new Error(`${message.typeName}: the tables of example.ts make no example of it: ${JSON.stringify(example)}`);
}

function idOf(name: string, message: DescMessage): string {
  const [, of] = /^(?:\w+_)?([a-z]+)_id$/.exec(name) ?? [];
  if (!of) throw new Error(`${message.typeName}.${name}: add a value to the table of example.ts`);
  return id(prefixes[of] ?? of.slice(0, 3));
}

const prefixes: Readonly<Record<string, string>> = {
  agent: "agt",
  task: "tsk",
  message: "msg",
  webhook: "whk",
  grant: "grt",
  approval: "apr",
  delivery: "dlv",
  schedule: "sch",
  transaction: "txn",
  listing: "lst",
  review: "rev",
  scenario: "scn",
  subscription: "sub",
};
