import { once } from "node:events";
import { createServer, type ServerResponse } from "node:http";
import { createServer as createHttp2 } from "node:http2";
import type { AddressInfo, Server } from "node:net";
import { describe, expect, onTestFinished, test } from "vitest";
import { type Egress, openEgress } from "../src/egress/egress.ts";
import { EgressError } from "../src/egress/error.ts";
import { eventually } from "./harness.ts";

type Handle = (response: ServerResponse) => unknown;

/** A server on HTTP/1.1 or HTTP/2 in the clear; gives its URL and its connections so far. */
async function serve(protocol: "http/1.1" | "h2", handle: Handle): Promise<{ url: string; connections: () => number }> {
  let connections = 0;
  const listener = (request: { resume(): void }, response: unknown) => {
    request.resume();
    handle(response as ServerResponse);
  };
  const server: Server = protocol === "h2" ? createHttp2(listener) : createServer(listener);
  const sockets = new Set<{ destroy(): void }>();
  server.on("connection", (socket) => {
    connections++;
    sockets.add(socket);
    socket.on("error", () => {});
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  onTestFinished(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, connections: () => connections };
}

const dropConnection = (response: ServerResponse & { stream?: { session?: { destroy(): void } } }): void =>
  response.stream ? response.stream.session?.destroy() : void response.destroy();

const open = (allow = ["127.0.0.1"]): Egress => {
  const egress = openEgress({ allow });
  onTestFinished(() => egress.close());
  return egress;
};

describe.each(["http/1.1", "h2"] as const)("an answer that is read as it comes over %s", (protocol) => {
  const call = (url: string, rest: object = {}) => ({
    protocol,
    url,
    method: "POST" as const,
    headers: {},
    body: "hello",
    timeoutMs: 10_000,
    maxResponseBytes: 64 * 1_048_576,
    ...rest,
  });
  const failure = async (work: Promise<unknown>): Promise<EgressError> => {
    const error = await work.catch((reason: unknown) => reason);
    if (!(error instanceof EgressError)) throw new Error("expected an EgressError", { cause: error });
    return error;
  };
  const drain = async (body: AsyncIterable<Uint8Array>): Promise<number> => {
    let bytes = 0;
    for await (const chunk of body) bytes += chunk.length;
    return bytes;
  };

  test("comes piece by piece, with its head before its end, and its connection serves again", async () => {
    const go = Promise.withResolvers<void>();
    const { url, connections } = await serve(protocol, async (response) => {
      response.writeHead(200, { "x-a": "1" });
      response.write("one");
      await go.promise;
      response.end("two");
    });
    const egress = open();
    const got = await egress.stream(call(url), async ({ status, headers, body }) => {
      const texts = [`${status} ${headers["x-a"]}`];
      for await (const chunk of body) {
        texts.push(Buffer.from(chunk).toString());
        go.resolve();
      }
      return texts;
    });
    expect(got).toEqual(["200 1", "one", "two"]);
    expect(await egress.stream(call(url), ({ body }) => drain(body))).toBe(6);
    expect(connections()).toBe(1);
  });

  test("is sent no faster than it is read: a reader that waits holds the other side", async () => {
    let sent = 0;
    const chunk = Buffer.alloc(65_536);
    const total = 32 * 1_048_576;
    const { url } = await serve(protocol, async (response) => {
      response.writeHead(200);
      for (; sent < total && !response.destroyed; sent += chunk.length)
        if (!response.write(chunk)) await new Promise((resolve) => response.once("drain", resolve));
      response.end();
    });
    const read = await open().stream(call(url), async ({ body }) => {
      const chunks = body[Symbol.asyncIterator]();
      await chunks.next();
      // Until nothing more is sent: the buffers between are full.
      let before = -1;
      await eventually(async () => {
        const still = sent === before;
        before = sent;
        await new Promise((resolve) => setTimeout(resolve, 100));
        return still && sent === before;
      });
      expect(sent).toBeLessThan(16 * 1_048_576);
      return drain({ [Symbol.asyncIterator]: () => chunks });
    });
    expect(read).toBeGreaterThan(total - 70_000);
    expect(sent).toBe(total);
  });

  test("that is longer than allowed, late, or cut short fails in the middle", async () => {
    const { url } = await serve(protocol, (response) => {
      response.writeHead(200);
      response.write(Buffer.alloc(1_000));
    });
    const egress = open();
    const all = ({ body }: { body: AsyncIterable<Uint8Array> }) => drain(body);
    expect(await failure(egress.stream(call(url, { maxResponseBytes: 999 }), all))).toMatchObject({
      kind: "too-large",
      sent: true,
    });
    expect(await failure(egress.stream(call(url, { timeoutMs: 200 }), all))).toMatchObject({
      kind: "timeout",
      sent: true,
      status: 200,
    });
    const stop = new AbortController();
    const reading = egress.stream(call(url, { signal: stop.signal }), async ({ body }) => {
      stop.abort();
      return drain(body);
    });
    expect(await failure(reading)).toMatchObject({ kind: "aborted" });
    const cut = await serve(protocol, (response) => {
      response.writeHead(200);
      response.write("half");
      setTimeout(() => dropConnection(response), 50);
    });
    expect(await failure(egress.stream(call(cut.url), all))).toMatchObject({
      kind: "unreachable",
      sent: true,
      status: 200,
    });
  });

  test("that its reader leaves early, or fails on, takes its connection with it and frees its place", async () => {
    const { url, connections } = await serve(protocol, (response) => {
      response.writeHead(200);
      response.write("endless");
    });
    const egress = openEgress({ allow: ["127.0.0.1"], maxConnectionsPerOrigin: 1 });
    onTestFinished(() => egress.close());
    expect(await egress.stream(call(url), async () => "enough")).toBe("enough");
    await expect(egress.stream(call(url), () => Promise.reject(new Error("mine")))).rejects.toThrow("mine");
    expect(await egress.stream(call(url), async () => "again")).toBe("again");
    expect(connections()).toBe(3);
  });

  test("from where nothing may go is never asked for", async () => {
    const { url, connections } = await serve(protocol, (response) => response.end("secret"));
    expect(await failure(open([]).stream(call(url), async () => 1))).toMatchObject({ kind: "denied", sent: false });
    expect(connections()).toBe(0);
  });

  test("whose headers are larger than allowed fails", async () => {
    const { url } = await serve(protocol, (response) => {
      for (let n = 0; n < 20; n++) response.setHeader(`x-${n}`, "y".repeat(1_000));
      response.end("x");
    });
    expect(await failure(open().stream(call(url), async () => 1))).toMatchObject({ kind: "too-large", sent: true });
  });

  test("that is a redirect is not followed, and one that is compressed is refused", async () => {
    const { url } = await serve(protocol, (response) =>
      response.writeHead(302, { location: "http://127.0.0.1:1/" }).end(),
    );
    expect(await failure(open().stream(call(url), async () => 1))).toMatchObject({ kind: "redirect", status: 302 });
    const packed = await serve(protocol, (response) =>
      response.writeHead(200, { "content-encoding": "gzip" }).end("x"),
    );
    expect(await failure(open().stream(call(packed.url), async () => 1))).toMatchObject({ kind: "bad-response" });
  });
});
