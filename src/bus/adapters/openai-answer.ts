/** What a chat completions server answers, whole or in pieces (https://platform.openai.com/docs/api-reference/chat), taken with care: every server differs. */
import type { JsonObject, JsonValue } from "@bufbuild/protobuf";
import { type Answer, AttemptFault, type Usage } from "../adapter.ts";
import { jsonFault, maxPayloadBytes } from "../payload.ts";
import { shorten, unusable } from "./faults.ts";

const maxTokens = 1e12;
const maxModelChars = 128;

/** What has been said so far. */
export type Completion = {
  readonly text: string[];
  bytes: number;
  readonly refusal: string[];
  finish: string;
  usage: Usage;
};

export const emptyCompletion = (model: string): Completion => ({
  text: [],
  bytes: 0,
  refusal: [],
  finish: "",
  usage: { inputTokens: 0, outputTokens: 0, model },
});

/** Takes a `chat.completion` or `chat.completion.chunk` in; gives the text it adds. */
export function takeIn(completion: Completion, json: JsonValue | undefined): string {
  const body = objectOf(json);
  if (!body) throw unusable("it is no JSON object");
  if (body.error !== undefined && body.error !== null) {
    const said = errorMessage(body) ?? "an error";
    throw failed("the server failed in the middle of the answer", said, completion);
  }
  const usage = objectOf(body.usage);
  completion.usage = {
    inputTokens: usage ? tokens(usage.prompt_tokens) : completion.usage.inputTokens,
    outputTokens: usage ? tokens(usage.completion_tokens) : completion.usage.outputTokens,
    model: modelOf(body.model) ?? completion.usage.model,
  };
  const choice = objectOf(Array.isArray(body.choices) ? body.choices[0] : undefined);
  const message = objectOf(choice?.message) ?? objectOf(choice?.delta);
  if (typeof choice?.finish_reason === "string") completion.finish = choice.finish_reason;
  if (typeof message?.refusal === "string") completion.refusal.push(message.refusal);
  const text = typeof message?.content === "string" ? message.content : "";
  completion.bytes += Buffer.byteLength(text);
  if (completion.bytes > maxPayloadBytes)
    throw unusable(`its text has more than ${maxPayloadBytes} bytes`, { usage: completion.usage });
  if (text) completion.text.push(text);
  return text;
}

/** The answer, once nothing more comes. */
export function conclude(completion: Completion, jsonOutput: boolean): Answer {
  const { finish, usage } = completion;
  const refusal = completion.refusal.join("");
  if (refusal) throw failed("the model refused", refusal, completion);
  if (finish === "content_filter") throw failed("a content filter stopped the model", finish, completion);
  if (finish === "length")
    throw unusable("it is cut off at the limit of tokens (finish_reason length); raise max_output_tokens", { usage });
  if (finish === "tool_calls" || finish === "function_call")
    throw unusable("the model wants to call tools, which this endpoint has not got", { usage });
  if (finish === "") throw unusable("it ended before the model was done: it has no finish_reason", { usage });
  const text = completion.text.join("");
  if (!jsonOutput) return { output: { text }, usage };
  const output = objectOf(parseJson(text));
  if (!output) throw unusable(`the model wrote no JSON object: ${shorten(text) || "nothing"}`, { usage });
  const fault = jsonFault(output);
  if (fault) throw unusable(`its output is ${fault.message}`, { usage });
  return { output, usage };
}

/** What the server says of an error: `{"error": {"message": …}}`, or `{"error": "…"}`, or `{"message": …}`. */
export function errorMessage(json: JsonValue | undefined): string | undefined {
  const body = objectOf(json);
  const error = objectOf(body?.error);
  return [error?.message, body?.error, body?.message].find((said) => typeof said === "string");
}

/** The value, or undefined for what is no JSON. */
export function parseJson(text: string): JsonValue | undefined {
  try {
    return JSON.parse(text) as JsonValue;
  } catch {
    return undefined;
  }
}

const failed = (what: string, said: string, { usage }: Completion): AttemptFault =>
  new AttemptFault("ADAPTER_ERROR", "failed", `${what}: ${shorten(said)}`, { usage });

const objectOf = (value: JsonValue | undefined): JsonObject | undefined =>
  typeof value === "object" && value !== null && !Array.isArray(value) ? value : undefined;

const tokens = (value: JsonValue | undefined): number =>
  typeof value === "number" && Number.isInteger(value) && value >= 0 && value <= maxTokens ? value : 0;

const modelOf = (value: JsonValue | undefined): string | undefined =>
  typeof value === "string" && value !== "" && value.length <= maxModelChars && !value.includes("\0")
    ? value
    : undefined;
