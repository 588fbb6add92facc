/** One request to an endpoint, and what came of it. */
import type { JsonObject } from "@bufbuild/protobuf";
import type { App } from "../app.ts";
import { EgressError } from "../egress/error.ts";
import { version } from "../version.ts";
import type { DeliveryRow } from "./delivery-store.ts";
import { openPayload } from "./payload.ts";
import { keptResponseBytes } from "./response.ts";
import { retryAfterMs } from "./schedule.ts";
import { signedHeaders } from "./signature.ts";
import { secretsAt, type WebhookRow } from "./store.ts";

/** What came of an attempt. */
export type Sent = {
  /** `unsent`: the fault is this server's, which stops or has no place; it counts as no attempt. */
  readonly result: "delivered" | "failed" | "unsent";
  /** 0: there was no answer. */
  readonly status: number;
  /** In words for the owner; empty when delivered. */
  readonly error: string;
  /** How the answer's body begins. */
  readonly response: string;
  /** What the endpoint asked for; 0: nothing. */
  readonly retryAfterMs: number;
  readonly tookMs: number;
  /** For metrics: the class of the status, or why there was none. */
  readonly label: string;
};

/** The body of an event's requests: the same bytes in every attempt. */
export const bodyOf = (app: Pick<App, "vault">, row: DeliveryRow): string =>
  JSON.stringify({
    type: row.type,
    timestamp: new Date(row.event_ms).toISOString(),
    org_id: row.org_id,
    agent_id: row.agent_id,
    trace_id: row.trace_id,
    data: openPayload(app, row.org_id, row.event_id, row.payload),
  } satisfies JsonObject);

/** Posts an event, within `timeoutMs`; 2xx is delivered, whatever becomes of the answer's body. */
export async function send(
  app: Pick<App, "vault" | "clock" | "webhookEgress" | "ending">,
  webhook: WebhookRow,
  row: DeliveryRow,
  timeoutMs: number,
): Promise<Sent> {
  const atMs = row.attempt_ms ?? app.clock.now();
  const body = bodyOf(app, row);
  const signed = signedHeaders(secretsAt(app, webhook, atMs), { id: row.event_id, atMs, body });
  const startedMs = performance.now();
  const took = () => Math.round(performance.now() - startedMs);
  try {
    const {
      status,
      headers,
      body: answer,
    } = await app.webhookEgress.fetch({
      url: webhook.url,
      method: "POST",
      headers: { "content-type": "application/json", "user-agent": `moltwire/${version}`, ...signed },
      body,
      timeoutMs,
      signal: app.ending,
      maxResponseBytes: keptResponseBytes,
      onOverflow: "truncate",
    });
    const delivered = status < 300;
    return {
      result: delivered ? "delivered" : "failed",
      status,
      error: delivered ? "" : `the endpoint answered ${status}`,
      response: new TextDecoder().decode(answer),
      retryAfterMs: delivered ? 0 : retryAfterMs(headers["retry-after"], app.clock.now()),
      tookMs: took(),
      label: `${Math.floor(status / 100)}xx`,
    };
  } catch (error) {
    if (!(error instanceof EgressError)) throw error;
    return { ...unanswered(error), response: "", retryAfterMs: 0, tookMs: took() };
  }
}

function unanswered({ kind, message, status = 0 }: EgressError): Pick<Sent, "result" | "status" | "error" | "label"> {
  if (status >= 200 && status < 300) return { result: "delivered", status, error: "", label: "2xx" };
  const result = kind === "busy" || kind === "aborted" ? "unsent" : "failed";
  return { result, status, error: message, label: kind };
}
