import { create, fromJson, fromJsonString, toJson, toJsonString } from "@bufbuild/protobuf";
import { timestampFromMs, ValueSchema } from "@bufbuild/protobuf/wkt";
import { createValidator } from "@bufbuild/protovalidate";
import {
  HandleTaskRequestSchema,
  type HandleTaskResponse,
  HandleTaskResponseSchema,
} from "../../../gen/moltwire/agent/v1/agent_runtime_service_pb.ts";
import type { Egress, EgressResponse } from "../../egress/egress.ts";
import { EgressError } from "../../egress/error.ts";
import { type Adapter, type Aftermath, type Answer, type Assignment, AttemptFault, noUsage } from "../adapter.ts";
import { jsonFault } from "../payload.ts";

const maxResponseBytes = 2 * 1_048_576;
const maxShownText = 300;
const handleTaskPath = "/moltwire.agent.v1.AgentRuntimeService/HandleTask";

/** Codes by which an agent says that it did not begin (https://connectrpc.com/docs/protocol#error-codes), and their HTTP statuses. */
const notBegun: ReadonlySet<string> = new Set(["unavailable", "resource_exhausted"]);
const notBegunStatus: ReadonlySet<number> = new Set([429]);
/**
 * What says that the answer was given up and not that the work was: the agent's server on its time limit, or a gateway before it. A bare 503 is
 * what gateways answer also when the agent dies at work.
 */
const lostCode = "deadline_exceeded";
const lostStatus: ReadonlySet<number> = new Set([502, 503, 504]);

/** Calls an agent's HTTP endpoint as a Connect unary call in JSON (https://connectrpc.com/docs/protocol#unary-request). */
export function httpAdapter(egress: Egress): Adapter {
  const validator = createValidator();
  return async (endpoint, assignment, signal) => {
    if (endpoint.kind.case !== "http") throw new Error(`not an HTTP endpoint: ${endpoint.kind.case}`);
    const response = await post(egress, callUrl(endpoint.kind.value.url), assignment, signal);
    if (response.status !== 200) throw refusal(response);
    const message = parse(response);
    const result = validator.validate(HandleTaskResponseSchema, message);
    if (result.kind !== "valid")
      throw unusable(`its answer breaks the protocol: ${result.error?.message ?? "invalid"}`);
    return toAnswer(message);
  };
}

/** The URL as it is, or with the path of the RPC when it has none. */
export function callUrl(text: string): string {
  const url = new URL(text);
  return url.pathname === "/" ? new URL(handleTaskPath, url).href : text;
}

async function post(egress: Egress, url: string, assignment: Assignment, signal: AbortSignal): Promise<EgressResponse> {
  const { timeoutMs } = assignment;
  try {
    return await egress.fetch({
      url,
      method: "POST",
      headers: {
        "content-type": "application/json",
        accept: "application/json",
        "connect-protocol-version": "1",
        "connect-timeout-ms": String(Math.max(1, Math.floor(timeoutMs))),
        "idempotency-key": assignment.taskId,
        traceparent: assignment.traceparent,
        "user-agent": "moltwire",
      },
      body: requestBody(assignment),
      timeoutMs,
      signal,
      maxResponseBytes,
    });
  } catch (error) {
    if (error instanceof EgressError) throw fromEgress(error, timeoutMs);
    throw error;
  }
}

const requestBody = (a: Assignment): string =>
  toJsonString(
    HandleTaskRequestSchema,
    create(HandleTaskRequestSchema, {
      task: {
        taskId: a.taskId,
        attempt: a.attempt,
        contractId: a.contractId,
        contractVersion: a.contractVersion,
        capability: a.capability,
        input: fromJson(ValueSchema, a.input),
        deadlineTime: timestampFromMs(a.deadlineMs),
        traceparent: a.traceparent,
      },
    }),
  );

function parse(response: EgressResponse): HandleTaskResponse {
  const text = Buffer.from(response.body).toString();
  try {
    return fromJsonString(HandleTaskResponseSchema, text, { ignoreUnknownFields: true });
  } catch (error) {
    throw unusable(`its answer is no HandleTaskResponse as JSON: ${shorten(text) || "empty"}`, error);
  }
}

function toAnswer({ output, usage }: HandleTaskResponse): Answer {
  if (!output) throw unusable('its answer has no "output"');
  const json = toJson(ValueSchema, output);
  const fault = jsonFault(json);
  if (fault) throw unusable(`its output is ${fault.message}`);
  if (usage?.model.includes("\0")) throw unusable("the name of its model holds a NUL character");
  return {
    output: json,
    usage: usage
      ? { inputTokens: Number(usage.inputTokens), outputTokens: Number(usage.outputTokens), model: usage.model }
      : noUsage,
  };
}

/** An answer that is no success: a Connect error, or whatever the server behind the URL says. */
function refusal({ status, body }: EgressResponse): AttemptFault {
  const text = Buffer.from(body).toString();
  const { code, message } = connectError(text);
  const said = message ?? (shorten(text) || "nothing");
  const metadata = { status: String(status), ...(code && { code }) };
  return new AttemptFault(
    "ADAPTER_ERROR",
    aftermathOf(status, code),
    `the agent answered ${code ?? status}: ${shorten(said)}`,
    {
      metadata,
    },
  );
}

function aftermathOf(status: number, code: string | undefined): Aftermath {
  if (code ? notBegun.has(code) : notBegunStatus.has(status)) return "not-begun";
  return (code ? code === lostCode : lostStatus.has(status)) ? "lost" : "failed";
}

function connectError(text: string): { readonly code?: string; readonly message?: string } {
  try {
    const { code, message } = JSON.parse(text) as Record<string, unknown>;
    return {
      ...(typeof code === "string" && { code: shorten(code) }),
      ...(typeof message === "string" && { message }),
    };
  } catch {
    return {};
  }
}

function fromEgress(error: EgressError, timeoutMs: number): AttemptFault {
  const after = error.sent ? "lost" : "not-begun";
  const facts = { cause: error };
  switch (error.kind) {
    case "denied":
      return new AttemptFault(
        "ENDPOINT_REFUSED",
        "not-begun",
        `the endpoint may not be called: ${error.message}`,
        facts,
      );
    case "busy":
      return new AttemptFault("OVERLOADED", "not-begun", "too many calls to this agent are under way", facts);
    case "timeout":
      return new AttemptFault("AGENT_TIMEOUT", after, `the agent did not answer within ${timeoutMs} ms`, {
        ...facts,
        metadata: { timeout_ms: String(timeoutMs) },
      });
    case "unreachable":
    case "aborted":
      return new AttemptFault("AGENT_UNREACHABLE", after, `the agent could not be reached: ${error.message}`, facts);
    case "too-large":
    case "redirect":
    case "bad-response":
      return unusable(`its answer cannot be used: ${error.message}`, error);
  }
}

const unusable = (detail: string, cause?: unknown): AttemptFault =>
  new AttemptFault("AGENT_BAD_RESPONSE", "unusable", `the agent answered, but ${detail}`, {
    metadata: { detail: shorten(detail) },
    cause,
  });

/** What others wrote, in bounds and on one line. */
const shorten = (text: string): string => {
  const line = text.replaceAll(/\s+/g, " ").trim();
  return line.length > maxShownText ? `${line.slice(0, maxShownText)}…` : line;
};
