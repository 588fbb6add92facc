/** The chat completions API of OpenAI, for a "model" that is a function from text to text (https://platform.openai.com/docs/api-reference/chat). */
import { randomUUID } from "node:crypto";
import type { IncomingMessage, RequestListener, ServerResponse } from "node:http";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";

/** Writes an answer to the last user message; `json` if it has to be JSON. Throws a {@link ChatError} for what it cannot do. */
export type Model = (message: string, json: boolean) => string;

/** An answer of the API that is an error. */
export class ChatError extends Error {
  override readonly name = "ChatError";
  readonly status: number;
  readonly type: string;

  constructor(status: number, type: string, message: string) {
    super(message);
    this.status = status;
    this.type = type;
  }
}

type Message = { readonly role?: string; readonly content?: unknown };
type Request = {
  readonly model?: string;
  readonly messages?: readonly Message[];
  readonly stream?: boolean;
  readonly stream_options?: { readonly include_usage?: boolean } | null;
  readonly max_tokens?: number | null;
  readonly max_completion_tokens?: number | null;
  readonly n?: number | null;
  readonly response_format?: { readonly type?: string };
};

const maxBodyBytes = 4 * 1_048_576;

/** A token here is a word or a mark, with the blanks before it. Joined they are the text. */
export const tokensOf = (text: string): string[] => text.match(/\s*(?:[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_])|\s+$/gu) ?? [];

/** Serves a model under its name. With a key, calls without it are refused. */
export function chatServer(name: string, model: Model, key: string | undefined): RequestListener {
  async function handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    if (key !== undefined && request.headers.authorization !== `Bearer ${key}`)
      throw new ChatError(401, "invalid_request_error", "this key is not known here");
    const path = request.url?.split("?")[0];
    if (request.method === "GET" && path === "/v1/models")
      return sendJson(response, 200, {
        object: "list",
        data: [{ id: name, object: "model", created: 0, owned_by: "demo" }],
      });
    if (request.method !== "POST" || path !== "/v1/chat/completions")
      throw new ChatError(404, "invalid_request_error", `there is no ${request.method} ${path} here`);
    const asked = await readRequest(request);
    if (asked.model !== name)
      throw new ChatError(404, "invalid_request_error", `there is no model ${asked.model}; there is ${name}`);
    const completion = complete(asked);
    if (asked.stream) await stream(response, completion, asked.stream_options?.include_usage === true);
    else sendJson(response, 200, whole(completion));
  }

  function complete({ messages = [], n, response_format, max_tokens, max_completion_tokens }: Request) {
    if (n !== undefined && n !== null && n !== 1) throw new ChatError(400, "invalid_request_error", "n must be 1");
    const last = messages.findLast(({ role }) => role === "user");
    if (!last) throw new ChatError(400, "invalid_request_error", "messages has no user message");
    const wanted = response_format?.type ?? "text";
    const all = tokensOf(model(textOf(last), wanted !== "text"));
    const limit = max_completion_tokens ?? max_tokens ?? all.length;
    const written = all.slice(0, limit);
    const read = messages.reduce((sum, message) => sum + tokensOf(textOf(message)).length, 0);
    return {
      id: `chatcmpl-${randomUUID()}`,
      created: Math.floor(Date.now() / 1_000),
      tokens: written,
      finish: written.length < all.length ? "length" : "stop",
      usage: { prompt_tokens: read, completion_tokens: written.length, total_tokens: read + written.length },
    };
  }

  type Completion = ReturnType<typeof complete>;

  const whole = ({ id, created, tokens, finish, usage }: Completion) => ({
    id,
    object: "chat.completion",
    created,
    model: name,
    choices: [
      {
        index: 0,
        message: { role: "assistant", content: tokens.join(""), refusal: null },
        logprobs: null,
        finish_reason: finish,
      },
    ],
    usage,
  });

  async function stream(
    response: ServerResponse,
    { id, created, tokens, finish, usage }: Completion,
    withUsage: boolean,
  ) {
    response.writeHead(200, { "content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache" });
    const chunk = (choices: readonly object[], used: object | null) => ({
      id,
      object: "chat.completion.chunk",
      created,
      model: name,
      choices,
      ...(withUsage && { usage: used }),
    });
    const delta = (value: object, finish_reason: string | null = null) =>
      chunk([{ index: 0, delta: value, logprobs: null, finish_reason }], null);
    const events = [
      delta({ role: "assistant", content: "" }),
      ...tokens.map((content) => delta({ content })),
      delta({}, finish),
      ...(withUsage ? [chunk([], usage)] : []),
    ];
    const lines = [...events.map((event) => JSON.stringify(event)), "[DONE]"].map((data) => `data: ${data}\n\n`);
    await pipeline(Readable.from(lines), response);
  }

  return (request, response) => {
    handle(request, response).catch((error: unknown) => {
      const { status, type, message } =
        error instanceof ChatError ? error : new ChatError(500, "server_error", (error as Error).message);
      if (response.headersSent) response.destroy();
      else sendJson(response, status, { error: { message, type, param: null, code: null } });
    });
  };
}

async function readRequest(request: IncomingMessage): Promise<Request> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > maxBodyBytes)
      throw new ChatError(413, "invalid_request_error", `at most ${maxBodyBytes} bytes are read`);
    chunks.push(chunk);
  }
  try {
    return JSON.parse(Buffer.concat(chunks).toString()) as Request;
  } catch {
    throw new ChatError(400, "invalid_request_error", "the body is no JSON");
  }
}

/** A message's text; of one in parts, all that are text. */
function textOf({ content }: Message): string {
  if (typeof content === "string") return content;
  const parts = Array.isArray(content) ? (content as { readonly text?: unknown }[]) : [];
  return parts.map(({ text }) => (typeof text === "string" ? text : "")).join("");
}

function sendJson(response: ServerResponse, status: number, body: object): void {
  response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
}
