/**
 * OTLP over HTTP (https://opentelemetry.io/docs/specs/otlp/#otlphttp), encoded by OpenTelemetry's own transformer and sent by our own egress.
 * Imported only when an endpoint is set: nothing of OpenTelemetry is loaded otherwise.
 */
import { ProtobufTraceSerializer } from "@opentelemetry/otlp-transformer";
import { type EgressResponse, openEgress } from "../egress/egress.ts";
import { EgressError } from "../egress/error.ts";
import { parseTarget } from "../egress/target.ts";
import type { Delivery, Send } from "./exporter.ts";
import type { FinishedSpan } from "./span.ts";

export type OtlpOptions = {
  /** As `parseEndpoint` gives it. */
  readonly endpoint: string;
  /** Never logged. */
  readonly headers: Readonly<Record<string, string>>;
  /** What describes this server: https://opentelemetry.io/docs/specs/semconv/resource/ */
  readonly resource: Readonly<Record<string, string>>;
  readonly version: string;
};

const timeoutMs = 10_000;
const maxResponseBytes = 65_536;
/** https://opentelemetry.io/docs/specs/otlp/#retryable-response-codes */
const retryable: ReadonlySet<number> = new Set([429, 502, 503, 504]);
/** What another attempt cannot mend. */
const final: ReadonlySet<string> = new Set(["denied", "redirect", "too-large"]);

/** A way out of its own: what the operator allows the collector, agents must not reach through it. */
export function openOtlp({ endpoint, headers, resource, version }: OtlpOptions): {
  readonly send: Send;
  readonly close: () => Promise<void>;
} {
  const { host, port } = parseTarget(endpoint);
  const egress = openEgress({ allow: [`${host.includes(":") ? `[${host}]` : host}:${port}`] });
  const encode = encoder(resource, version);
  return {
    close: egress.close,
    async send(batch, signal) {
      try {
        const response = await egress.fetch({
          url: endpoint,
          method: "POST",
          headers: { "user-agent": `moltwire/${version}`, ...headers, "content-type": "application/x-protobuf" },
          body: encode(batch),
          timeoutMs,
          signal,
          maxResponseBytes,
          onOverflow: "truncate",
        });
        return deliveryOf(response, batch.length);
      } catch (error) {
        if (!(error instanceof EgressError)) return { outcome: "refused", why: `not encoded: ${String(error)}` };
        return { outcome: final.has(error.kind) ? "refused" : "later", why: error.message };
      }
    },
  };
}

function deliveryOf({ status, headers, body }: EgressResponse, sent: number): Delivery {
  if (status < 300) return { outcome: "taken", rejected: Math.min(sent, rejectedBy(headers, body)) };
  const why = `the collector answered ${status}`;
  if (!retryable.has(status)) return { outcome: "refused", why };
  const seconds = Number(headers["retry-after"] || Number.NaN);
  return { outcome: "later", why, ...(seconds >= 0 && { afterMs: seconds * 1_000 }) };
}

/** How many spans the collector says it did not take; an answer that is no protobuf says nothing of it. */
function rejectedBy(headers: EgressResponse["headers"], body: Uint8Array): number {
  if (body.length === 0 || !headers["content-type"]?.startsWith("application/x-protobuf")) return 0;
  try {
    return Number(ProtobufTraceSerializer.deserializeResponse(body).partialSuccess?.rejectedSpans ?? 0);
  } catch {
    return 0;
  }
}

type Readable = Parameters<typeof ProtobufTraceSerializer.serializeRequest>[0][number];

/** SpanKind of OpenTelemetry's API. */
const kinds = { internal: 0, server: 1, client: 2 } as const;
/** SpanStatusCode and TraceFlags of the same. */
const unset = 0;
const error = 2;
const sampled = 1;

/** The serializer takes spans as the SDK holds them; of those it reads what is here. */
function encoder(
  attributes: Readonly<Record<string, string>>,
  version: string,
): (batch: readonly FinishedSpan[]) => Uint8Array {
  const resource = { attributes } as Readable["resource"];
  const instrumentationScope = { name: "moltwire", version };
  const nothing = {
    links: [],
    events: [],
    droppedAttributesCount: 0,
    droppedEventsCount: 0,
    droppedLinksCount: 0,
    ended: true,
    resource,
    instrumentationScope,
  } as const;
  const readable = (span: FinishedSpan): Readable => {
    const { traceId, spanId, parentSpanId } = span;
    return {
      ...nothing,
      links: [],
      events: [],
      name: span.name,
      kind: kinds[span.kind],
      spanContext: () => ({ traceId, spanId, traceFlags: sampled }),
      ...(parentSpanId && {
        parentSpanContext: { traceId, spanId: parentSpanId, traceFlags: sampled, isRemote: span.kind === "server" },
      }),
      startTime: hrTime(span.startMs),
      endTime: hrTime(span.endMs),
      duration: hrTime(span.endMs - span.startMs),
      status: { code: span.failed ? error : unset },
      attributes: span.attributes,
    };
  };
  return (batch) => ProtobufTraceSerializer.serializeRequest(batch.map(readable))!;
}

/** Seconds and nanoseconds. */
function hrTime(ms: number): [number, number] {
  const seconds = Math.floor(ms / 1_000);
  return [seconds, Math.min(999_999_999, Math.round((ms - seconds * 1_000) * 1e6))];
}
