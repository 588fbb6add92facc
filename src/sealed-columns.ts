/**
 * Every sealed column, on one screen: turning encryption on walks through them. A new one is sealed and opened with `app.vault` at the place that stands here; see src/vault/VAULT.md.
 */
import { secretPlace } from "./bus/agent-secret-store.ts";
import { attemptPlace } from "./bus/attempt-store.ts";
import { decisionPlace } from "./bus/policy/decision-store.ts";
import { taskPlace } from "./bus/task-store.ts";
import { eventIdOf, eventPlace as traceEventPlace } from "./bus/trace-store.ts";
import { deliveryPlace as marketDeliveryPlace } from "./exchange/market/delivery-store.ts";
import { privateKeyPlace } from "./federation/peer/identity.ts";
import { placeOfChange, placeOfPart } from "./memory/message.ts";
import { contactPlace } from "./ops/contact-store.ts";
import { eventPlace } from "./ops/outbox.ts";
import { dataPlace, faultPlace, progressPlace } from "./queue/payload.ts";
import { errorPlace as scheduleErrorPlace, payloadPlace as schedulePayloadPlace } from "./queue/schedule/store.ts";
import { deadPlace } from "./relay/group-store.ts";
import { bodyPlace } from "./relay/message.ts";
import { replyPlace } from "./rpc/idempotency.ts";
import type { KeyValues, SealedTable } from "./vault/walk-store.ts";
import { deliveryPlace } from "./webhook/payload.ts";
import { responsePlace } from "./webhook/response.ts";
import { secretsPlace } from "./webhook/store.ts";

const text = (row: KeyValues, column: string): string => String(row[column]);
const number = (row: KeyValues, column: string): number => Number(row[column]);
const orgOf = (row: KeyValues): string => text(row, "org_id");
const memoryOf = (row: KeyValues) => ({ orgId: orgOf(row), memoryId: text(row, "memory_id") });
const entryOf = (row: KeyValues) => ({ namespace: text(row, "namespace"), key: text(row, "key") });
const jobOf = (row: KeyValues) => ({ orgId: orgOf(row), jobId: text(row, "job_id") });
const scheduleOf = (row: KeyValues) => ({ org_id: orgOf(row), schedule_id: text(row, "schedule_id") });
const logOf = (row: KeyValues) => ({ orgId: orgOf(row), logId: text(row, "log_id") });
const webhookOf = (row: KeyValues) => ({ orgId: orgOf(row), webhookId: text(row, "webhook_id") });
const ofTask = (payload: "input" | "output" | "error") => (row: KeyValues) =>
  taskPlace(orgOf(row), text(row, "task_id"), payload);
const marketDelivery = (what: "result" | "said") => (row: KeyValues) =>
  marketDeliveryPlace({ orgId: orgOf(row), taskId: text(row, "task_id"), number: number(row, "number") }, what);

/** The tables, those that secrets are in first. */
export const sealedTables: readonly SealedTable[] = [
  {
    table: "agent_secret",
    key: ["org_id", "agent_id"],
    columns: { secret: (row) => secretPlace(orgOf(row), text(row, "agent_id")) },
  },
  {
    table: "webhook",
    key: ["org_id", "webhook_id"],
    columns: { secrets: (row) => secretsPlace(webhookOf(row)) },
  },
  {
    table: "server_key",
    key: ["org_id", "generation"],
    columns: { private_key: (row) => privateKeyPlace(orgOf(row), number(row, "generation")) },
  },
  {
    table: "memory_entry",
    key: ["org_id", "memory_id", "namespace", "key"],
    columns: {
      about: (row) => placeOfPart(memoryOf(row), entryOf(row), "about"),
      value: (row) => placeOfPart(memoryOf(row), entryOf(row), "value"),
    },
  },
  {
    table: "memory_change",
    key: ["org_id", "memory_id", "revision"],
    columns: { body: (row) => placeOfChange(memoryOf(row), number(row, "revision")) },
  },
  {
    table: "queue_job_data",
    key: ["org_id", "job_id"],
    columns: { payload: (row) => dataPlace(jobOf(row), "payload"), result: (row) => dataPlace(jobOf(row), "result") },
  },
  {
    table: "queue_job",
    key: ["org_id", "job_id"],
    columns: { error: (row) => faultPlace(jobOf(row), "job"), progress: (row) => progressPlace(jobOf(row)) },
  },
  {
    table: "queue_attempt",
    key: ["org_id", "job_id", "attempt"],
    columns: { error: (row) => faultPlace(jobOf(row), { attempt: number(row, "attempt") }) },
  },
  {
    table: "queue_change",
    key: ["seq"],
    also: ["org_id", "job_id", "attempts"],
    columns: { error: (row) => faultPlace(jobOf(row), { changeOf: number(row, "attempts") }) },
  },
  {
    table: "queue_schedule_data",
    key: ["org_id", "schedule_id"],
    columns: { payload: (row) => schedulePayloadPlace(scheduleOf(row)) },
  },
  {
    table: "queue_schedule",
    key: ["org_id", "schedule_id"],
    columns: { last_error: (row) => scheduleErrorPlace(scheduleOf(row)) },
  },
  {
    table: "relay_body",
    key: ["org_id", "log_id", "sequence"],
    columns: { body: (row) => bodyPlace(logOf(row), number(row, "sequence")) },
  },
  {
    table: "relay_dead",
    key: ["org_id", "log_id", "group_name", "sequence"],
    columns: { body: (row) => deadPlace(logOf(row), text(row, "group_name"), number(row, "sequence")) },
  },
  {
    table: "webhook_delivery",
    key: ["org_id", "webhook_id", "event_id"],
    columns: { payload: (row) => deliveryPlace(orgOf(row), text(row, "event_id")) },
  },
  {
    table: "webhook_attempt",
    key: ["org_id", "webhook_id", "event_id", "attempt"],
    columns: {
      response: (row) => responsePlace({ ...webhookOf(row), eventId: text(row, "event_id") }, number(row, "attempt")),
    },
  },
  {
    table: "task",
    key: ["org_id", "task_id"],
    columns: { input: ofTask("input"), output: ofTask("output"), error: ofTask("error") },
  },
  {
    table: "task_attempt",
    key: ["org_id", "task_id", "attempt"],
    columns: {
      error: (row) =>
        attemptPlace({ orgId: orgOf(row), taskId: text(row, "task_id"), attempt: number(row, "attempt") }),
    },
  },
  {
    table: "trace_event",
    key: ["org_id", "xid", "seq"],
    sqliteKey: ["seq"],
    also: ["trace_id", "kind", "event_id"],
    columns: {
      body: (row) =>
        traceEventPlace(
          orgOf(row),
          text(row, "trace_id"),
          number(row, "kind"),
          eventIdOf(text(row, "event_id"), number(row, "seq")),
        ),
    },
  },
  {
    table: "policy_decision",
    key: ["org_id", "time_ms", "decision_id", "nth"],
    columns: { body: (row) => decisionPlace(orgOf(row), text(row, "decision_id")) },
  },
  {
    table: "outbox",
    key: ["org_id", "xid", "seq"],
    sqliteKey: ["seq"],
    also: ["event_id"],
    columns: { payload: (row) => eventPlace(orgOf(row), text(row, "event_id")) },
  },
  {
    table: "marketplace_delivery",
    key: ["org_id", "task_id", "number"],
    columns: { result: marketDelivery("result"), said: marketDelivery("said") },
  },
  {
    table: "contact",
    key: ["org_id", "contact_id"],
    columns: { body: (row) => contactPlace(orgOf(row), text(row, "contact_id")) },
  },
  {
    table: "idempotency",
    key: ["org_id", "caller", "method", "key"],
    columns: {
      reply: (row) =>
        replyPlace({
          orgId: orgOf(row),
          caller: text(row, "caller"),
          method: text(row, "method"),
          key: text(row, "key"),
        }),
    },
  },
];
