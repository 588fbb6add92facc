/** Servers of the chat completions API that answer whatever a test wants. */
import { once } from "node:events";
import { createServer, type IncomingHttpHeaders, type RequestListener, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

export type ChatCall = {
  readonly path: string;
  readonly headers: IncomingHttpHeaders;
  readonly body: Record<string, unknown>;
};

export type ChatAgent = AsyncDisposable & { readonly url: string; readonly calls: ChatCall[] };

export async function listening(handler: RequestListener): Promise<AsyncDisposable & { readonly url: string }> {
  const server = createServer(handler).listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
}

/** A server that keeps what it is asked and answers as told. */
export async function chatAgent(answer: (response: ServerResponse, call: ChatCall) => unknown): Promise<ChatAgent> {
  const calls: ChatCall[] = [];
  const server = await listening(async (request, response) => {
    const text = Buffer.concat(await request.toArray()).toString();
    const call = { path: request.url ?? "", headers: request.headers, body: JSON.parse(text) };
    calls.push(call);
    await answer(response, call);
  });
  return { ...server, calls };
}

/** Answers JSON. */
export const says =
  (body: unknown, status = 200) =>
  (response: ServerResponse) =>
    response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));

/** Answers a whole completion with this text. */
export const writes = (content: string, rest: object = {}) =>
  says({
    model: "scripted-1",
    choices: [{ index: 0, message: { role: "assistant", content }, finish_reason: "stop", ...rest }],
    usage: { prompt_tokens: 7, completion_tokens: 11 },
  });

/** Answers a stream of these bytes. */
export const streams =
  (...parts: (string | Uint8Array)[]) =>
  (response: ServerResponse) => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    for (const part of parts) response.write(part);
    response.end();
  };

export const event = (json: unknown): string => `data: ${JSON.stringify(json)}\n\n`;
export const delta = (content: string): string => event({ choices: [{ index: 0, delta: { content } }] });
export const finish = (reason = "stop"): string => event({ choices: [{ index: 0, delta: {}, finish_reason: reason }] });
export const usageEvent = event({
  model: "scripted-1",
  choices: [],
  usage: { prompt_tokens: 7, completion_tokens: 11 },
});
export const doneEvent = "data: [DONE]\n\n";
