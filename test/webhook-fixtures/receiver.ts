/** An endpoint of webhooks that does as it is told and remembers what it got. */

import { once } from "node:events";
import { createServer, type IncomingHttpHeaders, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { Webhook } from "standardwebhooks";
import { vi } from "vitest";

export type Received = {
  readonly path: string;
  readonly id: string;
  /** Seconds. */
  readonly timestamp: number;
  readonly signatures: readonly string[];
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
};

export type Answer = (response: ServerResponse, received: Received, nth: number) => void;

export type Receiver = AsyncDisposable & {
  readonly url: string;
  readonly port: number;
  readonly received: readonly Received[];
  /** How it answers from now on: a status, or whatever is done with the response. */
  answer(how: number | Answer): void;
  /** The n-th request, from 1, once it has come. */
  nth(n: number): Promise<Received>;
};

export async function receiver(how: number | Answer = 204, port = 0): Promise<Receiver> {
  const received: Received[] = [];
  let answer = how;
  const server = createServer(async (request, response) => {
    const chunks: Buffer[] = [];
    try {
      for await (const chunk of request) chunks.push(chunk as Buffer);
    } catch {
      return;
    }
    const one: Received = {
      path: request.url ?? "",
      id: String(request.headers["webhook-id"]),
      timestamp: Number(request.headers["webhook-timestamp"]),
      signatures: String(request.headers["webhook-signature"]).split(" "),
      headers: request.headers,
      body: Buffer.concat(chunks).toString(),
    };
    received.push(one);
    server.emit("received");
    if (typeof answer === "number") response.writeHead(answer).end();
    else answer(response, one, received.length);
  });
  server.listen(port, "127.0.0.1");
  await once(server, "listening");
  const { port: bound } = server.address() as AddressInfo;
  return {
    url: `http://127.0.0.1:${bound}/hook`,
    port: bound,
    received,
    answer(next) {
      answer = next;
    },
    async nth(n) {
      const late = AbortSignal.timeout(15_000);
      while (received.length < n) await once(server, "received", { signal: late });
      return received[n - 1]!;
    },
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
}

/** What a receiver does, with the independent verifier, at the second in which it was sent; gives the body. Throws what the verifier throws. */
export function verify(secret: string, { headers, body, timestamp }: Received): Record<string, unknown> {
  vi.useFakeTimers({ toFake: ["Date"], now: timestamp * 1_000 });
  try {
    return new Webhook(secret).verify(body, headers as Record<string, string>) as Record<string, unknown>;
  } finally {
    vi.useRealTimers();
  }
}
