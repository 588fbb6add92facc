import type { Ids } from "../ids.ts";

/** Where a call stands in a trace (W3C Trace Context, https://www.w3.org/TR/trace-context/). */
export type TraceContext = {
  /** 32 hexadecimal digits. */
  readonly traceId: string;
  /** The span of this call: 16 hexadecimal digits. */
  readonly spanId: string;
  /** The caller's span, or empty when the trace begins here. */
  readonly parentSpanId: string;
};

/** Version 00 ends here; later ones may go on after a dash, and ff is none. */
const form = /^(?!ff)(?!00.{54})[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(-|$)/;

/** The context of a call: the one its `traceparent` header names, or a new one when there is none or it is malformed (as the W3C asks). */
export function traceContext(traceparent: string | null, ids: Ids): TraceContext {
  const [, traceId, parentSpanId = ""] = form.exec(traceparent ?? "") ?? [];
  return { traceId: traceId ?? ids.trace(), spanId: ids.span(), parentSpanId };
}

/** The header for an outgoing call. */
export const traceparent = ({ traceId, spanId }: Pick<TraceContext, "traceId" | "spanId">): string =>
  `00-${traceId}-${spanId}-01`;
