import { create, fromJsonString, toJsonString } from "@bufbuild/protobuf";
import {
  HandleTaskRequestSchema,
  type HandleTaskResponse,
  HandleTaskResponseSchema,
} from "../../../gen/moltwire/agent/v1/agent_runtime_service_pb.ts";
import type { Egress, EgressResponse } from "../../egress/egress.ts";
import { EgressError } from "../../egress/error.ts";
import type { Adapter, Assignment, AttemptFault } from "../adapter.ts";
import { fromEgress, refusedBy, shorten, unusable } from "./faults.ts";
import { assignmentOf, maxAnswerBytes, toAnswer } from "./runtime.ts";

const handleTaskPath = "/moltwire.agent.v1.AgentRuntimeService/HandleTask";

/** Calls an agent's HTTP endpoint as a Connect unary call in JSON (https://connectrpc.com/docs/protocol#unary-request). */
export function httpAdapter(egress: Egress): Adapter {
  return async (endpoint, assignment, signal) => {
    if (endpoint.kind.case !== "http") throw new Error(`not an HTTP endpoint: ${endpoint.kind.case}`);
    const response = await post(egress, callUrl(endpoint.kind.value.url), assignment, signal);
    if (response.status !== 200) throw refusal(response);
    return toAnswer(parse(response));
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
      body: toJsonString(HandleTaskRequestSchema, create(HandleTaskRequestSchema, { task: assignmentOf(assignment) })),
      timeoutMs,
      signal,
      maxResponseBytes: maxAnswerBytes,
    });
  } catch (error) {
    if (error instanceof EgressError) throw fromEgress(error, timeoutMs);
    throw error;
  }
}

function parse(response: EgressResponse): HandleTaskResponse {
  const text = Buffer.from(response.body).toString();
  try {
    return fromJsonString(HandleTaskResponseSchema, text, { ignoreUnknownFields: true });
  } catch (error) {
    throw unusable(`its answer is no HandleTaskResponse as JSON: ${shorten(text) || "empty"}`, { cause: error });
  }
}

/** An answer that is no success: a Connect error, or whatever the server behind the URL says. */
function refusal({ status, body }: EgressResponse): AttemptFault {
  const text = Buffer.from(body).toString();
  const { code, message } = connectError(text);
  return refusedBy(status, code, message ?? text);
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
