import type { JsonObject, JsonValue } from "@bufbuild/protobuf";
import type { OpenAiEndpoint } from "../../../gen/moltwire/bus/v1/agent_pb.ts";
import type { Egress, EgressStream } from "../../egress/egress.ts";
import { EgressError } from "../../egress/error.ts";
import { type Adapter, type Answer, type Assignment, AttemptFault } from "../adapter.ts";
import type { KeyOf } from "../endpoint-key.ts";
import { aftermathOf, fromEgress, shorten, unusable } from "./faults.ts";
import { conclude, emptyCompletion, errorMessage, parseJson, takeIn } from "./openai-answer.ts";
import { maxAnswerBytes } from "./runtime.ts";
import { eventData } from "./sse.ts";

/** A server wraps each few letters in some hundred bytes. */
const maxStreamBytes = 64 * maxAnswerBytes;
const maxEventChars = 1_048_576;

/** Calls a server of the OpenAI chat completions API. What it writes of an error is told without the key, should it repeat that. */
export const openAiAdapter =
  (egress: Egress, keyOf: KeyOf): Adapter =>
  async (endpoint, assignment, signal) => {
    if (endpoint.kind.case !== "openai") throw new Error(`not an OpenAI endpoint: ${endpoint.kind.case}`);
    const { value } = endpoint.kind;
    const { timeoutMs } = assignment;
    const key = await keyOf(assignment, value);
    try {
      return await egress.stream(
        {
          protocol: "http/1.1",
          url: callUrl(value.baseUrl),
          method: "POST",
          headers: {
            "content-type": "application/json",
            accept: value.stream ? "text/event-stream" : "application/json",
            "idempotency-key": assignment.taskId,
            traceparent: assignment.traceparent,
            "user-agent": "moltwire",
            ...(key && { authorization: `Bearer ${key}` }),
          },
          body: JSON.stringify(requestOf(value, assignment)),
          timeoutMs,
          signal,
          maxResponseBytes: value.stream ? maxStreamBytes : maxAnswerBytes,
        },
        (answer) => read(answer, value, assignment, without(key)),
      );
    } catch (error) {
      if (error instanceof EgressError) throw fromEgress(error, timeoutMs);
      throw error;
    }
  };

/** A shorter one is no secret, and could be part of any word. */
const minKeyChars = 8;

/** Takes the key out of what a server repeats of its request, as it stands or as it stands in JSON, where a slash may be escaped. */
function without(key: string | undefined): (text: string) => string {
  if (key === undefined || key.length < minKeyChars) return (text) => text;
  const literal = key.replaceAll(/[^A-Za-z0-9]/g, (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, "0")}`);
  const pattern = new RegExp(literal.replaceAll("\\x2f", "\\\\*\\x2f"), "g");
  return (text) => text.replaceAll(pattern, "[key]");
}

/** `{base_url}/chat/completions`; a query stays behind it. */
export function callUrl(baseUrl: string): string {
  const url = new URL(baseUrl);
  url.pathname = `${url.pathname.replace(/\/+$/, "")}/chat/completions`;
  url.hash = "";
  return url.href;
}

function requestOf(endpoint: OpenAiEndpoint, assignment: Assignment): JsonObject {
  const { model, systemPrompt, temperature, maxOutputTokens, jsonOutput, stream } = endpoint;
  const bounds = [maxOutputTokens, assignment.maxTokens].filter((bound) => bound > 0);
  const messages = messagesOf(assignment.input);
  return {
    model,
    messages: systemPrompt ? [{ role: "system", content: systemPrompt }, ...messages] : messages,
    ...(temperature !== undefined && { temperature }),
    ...(bounds.length > 0 && { [maxTokensName(endpoint)]: Math.min(...bounds) }),
    ...(jsonOutput && { response_format: responseFormat(assignment) }),
    ...(stream && { stream: true, stream_options: { include_usage: true } }),
  };
}

/** OpenAI's own newer models refuse the name that the other servers know. */
const maxTokensName = ({ baseUrl }: OpenAiEndpoint): string =>
  new URL(baseUrl).hostname === "api.openai.com" ? "max_completion_tokens" : "max_tokens";

function messagesOf(input: JsonValue): JsonValue[] {
  if (typeof input === "string") return [{ role: "user", content: input }];
  if (typeof input === "object" && input !== null && !Array.isArray(input) && Array.isArray(input.messages))
    return input.messages;
  return [{ role: "user", content: JSON.stringify(input) }];
}

/** Servers take only schemas of objects. */
function responseFormat({ outputSchema, contractId }: Assignment): JsonObject {
  const isObject = typeof outputSchema === "object" && outputSchema !== null && !Array.isArray(outputSchema);
  if (!isObject || outputSchema.type !== "object") return { type: "json_object" };
  const name = contractId.replaceAll(/[^A-Za-z0-9_-]/g, "_").slice(0, 64);
  return { type: "json_schema", json_schema: { name, schema: outputSchema } };
}

async function read(
  answer: EgressStream,
  { model, stream, jsonOutput }: OpenAiEndpoint,
  assignment: Assignment,
  clean: (text: string) => string,
): Promise<Answer> {
  if (answer.status !== 200) throw refusal(answer.status, clean(await textOf(answer.body)));
  const completion = emptyCompletion(model);
  // A server that cannot stream answers as if it had not been asked to.
  if (!stream || !/^text\/event-stream\b/i.test(answer.headers["content-type"] ?? "")) {
    takeIn(completion, parseJson(clean(await textOf(answer.body))));
    return conclude(completion, jsonOutput);
  }
  for await (const data of eventData(answer.body, maxEventChars)) {
    if (data === "[DONE]") break;
    const json = parseJson(clean(data));
    if (json === undefined) throw unusable(`its stream holds what is no JSON: ${shorten(clean(data))}`);
    const text = takeIn(completion, json);
    if (text) await assignment.chunk(text);
  }
  return conclude(completion, jsonOutput);
}

/** An answer with another status than 200. 401 and 403: nothing was begun, the key is wrong. */
function refusal(status: number, text: string): AttemptFault {
  const said = errorMessage(parseJson(text)) ?? text;
  const noKey = status === 401 || status === 403;
  const what = noKey ? `the server refused the key (${status})` : `the server answered ${status}`;
  const message = `${what}: ${shorten(said) || "nothing"}`;
  const aftermath = noKey ? "not-begun" : aftermathOf(status, undefined);
  return new AttemptFault("ADAPTER_ERROR", aftermath, message, { metadata: { status: String(status) } });
}

/** The whole body as text; what is longer than an answer can be fails. */
async function textOf(body: AsyncIterable<Uint8Array>): Promise<string> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of body) {
    bytes += chunk.length;
    if (bytes > maxAnswerBytes) throw unusable(`it has more than ${maxAnswerBytes} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString();
}
