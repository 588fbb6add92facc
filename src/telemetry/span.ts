/** Spans as this server makes them, whoever takes them. Nothing here knows of OpenTelemetry's packages. */

/** A span that is over. It holds ids, names and numbers: never a payload, a key, or text that callers or agents wrote. */
export type FinishedSpan = {
  /** 32 hexadecimal digits. */
  readonly traceId: string;
  /** 16 hexadecimal digits. */
  readonly spanId: string;
  /** The span above; empty: it begins the trace. */
  readonly parentSpanId: string;
  /** Few different ones: see https://opentelemetry.io/docs/specs/otel/trace/api/#span */
  readonly name: string;
  readonly kind: "server" | "client" | "internal";
  /** Milliseconds since 1970, with fractions. */
  readonly startMs: number;
  readonly endMs: number;
  readonly attributes: Readonly<Record<string, string | number>>;
  readonly failed: boolean;
};

/** Takes spans to wherever they are wanted. */
export type Telemetry = {
  /** Returns at once, and never throws: a span that finds no room is counted and dropped. */
  ended(span: FinishedSpan): void;
  /** Sends what is left, at most so long; counts the rest as dropped. */
  close(graceMs: number): Promise<void>;
};
