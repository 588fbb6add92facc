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
  readonly orgId: string;
  /** The agent that the endpoint belongs to. */
  readonly agentId: string;
  /** The JSON Schema that the output will be checked against. */
  readonly outputSchema: JsonValue;
  /** The tokens that the work may use at most; 0: no bound. */
  readonly maxTokens: number;
  /**
   * Tells who watches the task how far the work is: a part from 0 to 1 and a message of at most 1,024 characters. Of what is told at once only
   * the last is kept. Wait for it before reading on.
   */
  readonly progress: (fraction: number, message: string) => Promise<void>;
  /** Tells who watches the task a piece of text output. Wait for it before reading on: it resolves when there is room for more. */
  readonly chunk: (text: string) => Promise<void>;
};

/** What an attempt consumed. */
export type Usage = {
  readonly inputTokens: number;
  readonly outputTokens: number;
  readonly model: string;
  /** What whoever did the work asks for it, in micro-credits, by its receipt; not set: it is priced by the organisation's rates. */
  readonly costMicros?: number;
};

export type Answer = { readonly output: JsonValue; readonly usage: Usage };

/**
 * Brings tasks to one kind of endpoint. Throws an {@link AttemptFault}. Should stop when the signal aborts: the task was canceled, its time is
 * over, or the server stops.
 */
export type Adapter = (endpoint: Endpoint, assignment: Assignment, signal: AbortSignal) => Promise<Answer>;

/** Adapters by name: the kind of endpoint they serve, or what a CustomEndpoint calls them. */
export type Adapters = Readonly<Record<string, Adapter>>;

/** The kinds of endpoints that have an adapter of their own. */
const builtInKinds = ["echo", "http", "grpc", "openai", "peer"] as const;

const isBuiltIn = (name: string): boolean => (builtInKinds as readonly string[]).includes(name);

/** The adapter for an endpoint, if this server has it. A custom endpoint cannot name one of a built-in kind. */
export function adapterFor(adapters: Adapters, { kind }: Endpoint): Adapter | undefined {
  const name = kind.case === "custom" ? kind.value.adapter : kind.case;
  if (name === undefined || isBuiltIn(name) === (kind.case === "custom")) return undefined;
  return Object.hasOwn(adapters, name) ? adapters[name] : undefined;
}

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
