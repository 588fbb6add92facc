/** Deliveries as clients see them. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { durationFromMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { type DeliverySchema, DeliveryState } from "../../gen/moltwire/webhook/v1/delivery_pb.ts";
import type { App } from "../app.ts";
import { join, type Queryable } from "../db/db.ts";
import { type AttemptRow, attemptsOf, type DeliveryRow } from "./delivery-store.ts";
import { openResponse } from "./response.ts";
import type { WebhookRow } from "./store.ts";

/** Deliveries of one webhook with their attempts. @param whole with all of what the endpoint answered that is kept. */
export async function toDeliveries(
  app: Pick<App, "vault">,
  db: Queryable,
  webhook: WebhookRow,
  rows: readonly DeliveryRow[],
  whole: boolean,
): Promise<MessageInitShape<typeof DeliverySchema>[]> {
  if (rows.length === 0) return [];
  const ref = { orgId: webhook.org_id, webhookId: webhook.webhook_id };
  const found = await attemptsOf(db, ref, join(rows.map(({ event_id }) => event_id)));
  const attempts = Map.groupBy(found, ({ event_id }) => event_id);
  return rows.map((row) => ({
    webhookId: row.webhook_id,
    eventId: row.event_id,
    eventType: row.type,
    agentId: row.agent_id,
    eventTime: timestampFromMs(row.event_ms),
    state: row.state as DeliveryState,
    attemptCount: row.attempts,
    nextAttemptTime:
      row.state === DeliveryState.PENDING && !webhook.disabled ? timestampFromMs(row.next_ms) : undefined,
    endTime: row.end_ms === null ? undefined : timestampFromMs(row.end_ms),
    attempts: endedOf(row, attempts.get(row.event_id)).map((attempt) => toAttempt(app, row, attempt, whole)),
  }));
}

/** Those that had ended when the row was read; on PostgreSQL another can have since. */
const endedOf = (row: DeliveryRow, attempts: readonly AttemptRow[] = []): readonly AttemptRow[] =>
  attempts.filter(({ attempt }) => attempt <= (row.lease_token === "" ? row.attempts : row.attempts - 1));

const toAttempt = (app: Pick<App, "vault">, row: DeliveryRow, attempt: AttemptRow, whole: boolean) => ({
  attempt: attempt.attempt,
  startTime: timestampFromMs(attempt.start_ms),
  duration: durationFromMs(attempt.took_ms),
  statusCode: attempt.status,
  error: attempt.error,
  responseBody: openResponse(
    app,
    { orgId: row.org_id, webhookId: row.webhook_id, eventId: row.event_id },
    attempt.attempt,
    attempt.response,
    whole,
  ),
});
