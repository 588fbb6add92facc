import type { JsonValue } from "@bufbuild/protobuf";
import type { Endpoint } from "../../gen/moltwire/bus/v1/agent_pb.ts";
import type { ReasonName } from "../errors.ts";

/** One attempt, as an adapter gets it. */
export type Assignment = {
  readonly taskId: string;
  readonly attempt: number;
  readonly contractId: string;
  readonly contractVersion: string;
  readonly capability: string;
  readonly input: JsonValue;
  /** How long the answer may take. */
  readonly timeoutMs: number;
  /** When that is over. */
  readonly deadlineMs: number;
  /** W3C trace context of the attempt. */
  readonly traceparent: string;
};

/** What an attempt consumed. */
export type Usage = { readonly inputTokens: number; readonly outputTokens: number; readonly model: string };

export type Answer = { readonly output: JsonValue; readonly usage: Usage };

/** Brings tasks to one kind of endpoint. Throws an {@link AttemptFault}. */
export type Adapter = (endpoint: Endpoint, assignment: Assignment, signal: AbortSignal) => Promise<Answer>;

/** The adapters by the kind of endpoint they serve. */
export type Adapters = Readonly<Partial<Record<Exclude<Endpoint["kind"]["case"], undefined>, Adapter>>>;

export const noUsage: Usage = { inputTokens: 0, outputTokens: 0, model: "" };

/** The reasons an attempt can fail for. */
export type AttemptReason = Extract<
  ReasonName,
  | "ADAPTER_ERROR"
  | "AGENT_UNREACHABLE"
  | "AGENT_TIMEOUT"
  | "AGENT_BAD_RESPONSE"
  | "CONTRACT_VIOLATION"
  | "ENDPOINT_REFUSED"
  | "OVERLOADED"
>;

/**
 * What is known of the work after a failed attempt, which decides whether it may be repeated:
 * - `not-begun`: the agent never had the task, or said that it did not begin it.
 * - `failed`: the agent had the task and says that it failed.
 * - `unusable`: the agent answered, but nothing that can be used; the work may be done.
 * - `lost`: no answer; the work may or may not be done.
 */
export type Aftermath = "not-begun" | "failed" | "unusable" | "lost";

/** An attempt gave no usable output. */
export class AttemptFault extends Error {
  override readonly name = "AttemptFault";
  readonly reason: AttemptReason;
  readonly aftermath: Aftermath;
  readonly metadata: Readonly<Record<string, string>>;
  /** What the agent says it consumed all the same. */
  readonly usage: Usage;

  constructor(
    reason: AttemptReason,
    aftermath: Aftermath,
    message: string,
    facts: { metadata?: Record<string, string>; usage?: Usage; cause?: unknown } = {},
  ) {
    super(message, { cause: facts.cause });
    this.reason = reason;
    this.aftermath = aftermath;
    this.metadata = facts.metadata ?? {};
    this.usage = facts.usage ?? noUsage;
  }
}
