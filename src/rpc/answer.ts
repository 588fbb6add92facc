// How answers get onto the wire: errors in the caller's own protocol, and responses whose request was not read to its end.

import type { EventEmitter } from "node:events";
import type { IncomingMessage, ServerResponse } from "node:http";
import { constants, type Http2ServerRequest, type Http2ServerResponse } from "node:http2";
import type { ConnectError } from "@connectrpc/connect";
import { encodeEnvelope, mergeNonProtocolHeaders, type UniversalServerResponse } from "@connectrpc/connect/protocol";
import {
  codeToHttpStatus,
  endStreamFlag,
  endStreamToJson,
  errorToJsonBytes,
} from "@connectrpc/connect/protocol-connect";
import { setTrailerStatus } from "@connectrpc/connect/protocol-grpc";
import { trailerFlag, trailerSerialize } from "@connectrpc/connect/protocol-grpc-web";
import { limitHeld } from "./held.ts";

/** A request as node:http or node:http2 gives it. */
export type RawRequest = IncomingMessage | Http2ServerRequest;
/** Its response. */
export type RawResponse = ServerResponse | Http2ServerResponse;
/** How a caller reads an error. `connect` is JSON under the mapped HTTP status, which also suits who speaks no RPC protocol. */
export type Dialect = "connect" | "connect-stream" | "grpc" | "grpc-web" | "grpc-web-text";

const dialects: readonly [RegExp, Dialect][] = [
  [/^application\/grpc-web-text\b/i, "grpc-web-text"],
  [/^application\/grpc-web\b/i, "grpc-web"],
  [/^application\/grpc\b/i, "grpc"],
  [/^application\/connect\b/i, "connect-stream"],
];

/** The dialect of a request, told by its content type. A Connect GET has none and reads `connect`. */
export function dialectOf(contentType: string | undefined): Dialect {
  return dialects.find(([pattern]) => pattern.test(contentType ?? ""))?.[1] ?? "connect";
}

/**
 * An error as a whole answer.
 *
 * Connect unary: JSON under the mapped HTTP status. Connect streaming: one end-of-stream message. gRPC: trailers only, so
 * without a body. gRPC-Web: a trailer frame, which browsers can read where they cannot read headers.
 * See https://connectrpc.com/docs/protocol and https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md
 */
export function errorAnswer(contentType: string | undefined, error: ConnectError): Answer {
  const dialect = dialectOf(contentType);
  const header = new Headers();
  if (dialect === "connect") {
    mergeNonProtocolHeaders(header, error.metadata);
    header.set("content-type", "application/json");
    return { status: codeToHttpStatus(error.code), header, body: errorToJsonBytes(error, undefined) };
  }
  // A type that is none of ours would be an odd thing to echo, and headers take no odd characters.
  const type = knownType.test(contentType ?? "") ? (contentType ?? "") : fallbackType[dialect];
  header.set("content-type", type);
  if (dialect === "connect-stream") {
    const end = JSON.stringify(endStreamToJson(new Headers(), error, undefined));
    return { status: 200, header, body: encodeEnvelope(endStreamFlag, new TextEncoder().encode(end)) };
  }
  if (dialect === "grpc") {
    setTrailerStatus(header, error);
    return { status: 200, header, body: new Uint8Array(0) };
  }
  const frame = encodeEnvelope(trailerFlag, trailerSerialize(setTrailerStatus(new Headers(), error)));
  return {
    status: 200,
    header,
    body: dialect === "grpc-web" ? frame : Buffer.from(Buffer.from(frame).toString("base64")),
  };
}

/** A whole answer. */
export type Answer = { status: number; header: Headers; body: Uint8Array; trailer?: Headers };

const knownType = /^application\/(connect\+(json|proto)|grpc(-web(-text)?)?(\+(json|proto))?)$/i;
const fallbackType = {
  "connect-stream": "application/connect+json",
  grpc: "application/grpc",
  "grpc-web": "application/grpc-web",
  "grpc-web-text": "application/grpc-web-text",
};

/** Sends a whole answer, whether or not the request's body was read. `extra` are headers set by hooks. */
export function sendAnswer(request: RawRequest, response: RawResponse, answer: Answer, extra: ExtraHeaders = {}): void {
  if (response.destroyed || response.headersSent) return;
  const length = { "content-length": String(answer.body.byteLength) };
  // gRPC over HTTP/2 ends with its headers, where a length would only puzzle strict clients.
  const isTrailersOnly = answer.body.byteLength === 0 && "stream" in request;
  const headers = { ...extra, ...nodeHeaders(answer.header), ...(isTrailersOnly ? {} : length) };
  if (isGivenUp(request)) {
    writeHead(response, answer.status, { ...headers, connection: "close" });
    endLater(request, response, answer.body);
    return;
  }
  writeHead(response, answer.status, headers);
  leaveUnread(request, response);
  if (answer.body.byteLength > 0 && request.method !== "HEAD") response.end(answer.body);
  else response.end();
}

/**
 * Sends an answer as it comes. Resolves when it is out or its reader is gone; rejects with what the body threw. A reader
 * that takes nothing for `stallMs` is cut off. The body's iterator is released in every case. `isWhole`: nobody waits for the
 * first part of it, so it goes out in one piece.
 */
export async function sendStream(
  request: RawRequest,
  response: RawResponse,
  answer: UniversalServerResponse,
  { extra = {}, stallMs, isWhole = false }: { extra?: ExtraHeaders; stallMs: number; isWhole?: boolean },
): Promise<void> {
  const chunks = answer.body?.[Symbol.asyncIterator]();
  try {
    // The headers are not final before the first chunk.
    let next = await chunks?.next();
    let last: Uint8Array | undefined;
    const isLast = isGivenUp(request);
    // HTTP/1.1 sends trailers only after chunks.
    if ((isWhole || isLast) && ("stream" in response || answer.trailer === undefined) && chunks !== undefined) {
      const parts: Uint8Array[] = [];
      for (; next !== undefined && next.done !== true; next = await chunks.next()) parts.push(next.value);
      last = parts.length > 1 ? Buffer.concat(parts) : parts[0];
    }
    if (isGone(response)) return;
    const headers = { ...extra, ...nodeHeaders(answer.header ?? new Headers()) };
    if (isLast && chunks === undefined) last = new Uint8Array(0);
    if (isLast && last !== undefined) {
      writeHead(response, answer.status, {
        ...headers,
        connection: "close",
        "content-length": String(last.byteLength),
      });
      const out = taken(response, "finish", stallMs, last.byteLength);
      endLater(request, response, last);
      return await out;
    }
    writeHead(response, answer.status, headers);
    // HTTP/2 would otherwise end a response without a body by its headers, and send no trailers.
    if ("stream" in response) response.writeHead(answer.status);
    for (; chunks !== undefined && next !== undefined && next.done !== true; next = await chunks.next()) {
      if (isGone(response)) return;
      // Both kinds take bytes; their declarations overlap in nothing a compiler can call.
      if (!(response as ServerResponse).write(next.value))
        await taken(response, "drain", stallMs, next.value.byteLength);
    }
    if (isGone(response)) return;
    if (answer.trailer !== undefined) addTrailers(response, nodeHeaders(answer.trailer));
    leaveUnread(request, response);
    const out = taken(response, "finish", stallMs, last?.byteLength ?? 0);
    if (last === undefined) response.end();
    else response.end(last);
    await out;
  } finally {
    chunks?.return?.().catch(() => {});
  }
}

/** Whether nobody takes the response any more. An HTTP/2 response does not know it by itself; its stream does. */
const isGone = (response: RawResponse): boolean =>
  "stream" in response ? response.stream.destroyed || response.stream.closed : response.destroyed;

/** Headers as Fastify keeps them. */
export type ExtraHeaders = Record<string, number | string | string[] | undefined>;

function writeHead(response: RawResponse, status: number, headers: ExtraHeaders): void {
  for (const [name, value] of Object.entries(headers)) {
    if (value !== undefined) response.setHeader(name, value);
  }
  response.statusCode = status;
}

function nodeHeaders(headers: Headers): Record<string, string | string[]> {
  const plain: Record<string, string | string[]> = Object.create(null);
  for (const [name, value] of headers) plain[name] = value;
  if (plain["set-cookie"] !== undefined) plain["set-cookie"] = headers.getSetCookie();
  return plain;
}

function addTrailers(response: RawResponse, trailers: Record<string, string | string[]>): void {
  if ("stream" in response) response.addTrailers(trailers);
  else response.addTrailers(trailers as Record<string, string>);
}

/**
 * Resolves at the event or when the response is closed; closes it when neither comes in time, or when readers leave so many bytes lying that memory
 * is at stake and this one has waited longest.
 */
export function taken(response: RawResponse, event: "drain" | "finish", stallMs: number, bytes: number): Promise<void> {
  if (isGone(response)) return Promise.resolve();
  return new Promise((resolve) => {
    const cut = () => {
      if ("stream" in response) response.stream.close(constants.NGHTTP2_CANCEL);
      else response.destroy();
    };
    const timer = setTimeout(cut, stallMs);
    const release = holdAnswer(bytes, cut);
    const done = () => {
      clearTimeout(timer);
      release();
      response.off(event, done).off("close", done);
      resolve();
    };
    response.on(event, done).on("close", done);
  });
}

/** Bytes of answers that the process keeps for readers who do not take them. */
const holdAnswer = limitHeld(67_108_864);

/** What emits `finish` when the last byte went out; an HTTP/2 response does so only when its stream is closed. */
function finishOf(response: RawResponse): EventEmitter {
  return "stream" in response ? response.stream : response;
}

/** How much of an unwanted body is still taken, and for how long. */
const unreadMaxBytes = 262_144;
const unreadMaxMs = 1_000;

/** How long an answer waits for the rest of a body of announced length. */
const announcedMaxMs = 250;

/**
 * Takes the rest of a small HTTP/2 body whose length was announced, and drops it; call it before an early answer. Its sender
 * may stop at the answer's first bytes, short of its own announcement, which nghttp2 takes for a broken stream: it
 * resets it, and the reset overtakes the answer's end (RFC 9113, section 8.1.1).
 */
export function takeAnnounced(request: RawRequest): Promise<void> {
  const isAnnounced = "stream" in request && request.headers["content-length"] !== undefined;
  if (!isAnnounced || request.complete || request.destroyed) return Promise.resolve();
  return new Promise((resolve) => {
    let leftBytes = unreadMaxBytes;
    const done = () => {
      clearTimeout(timer);
      request.off("end", done).off("close", done).off("data", onData).pause();
      resolve();
    };
    const timer = setTimeout(done, announcedMaxMs);
    const onData = (chunk: Buffer) => {
      leftBytes -= chunk.byteLength;
      if (leftBytes < 0) done();
    };
    request.on("end", done).on("close", done).on("data", onData).resume();
  });
}

/**
 * Says what becomes of the rest of a body nobody wants; call it just before the response ends. A little is read and dropped: that
 * lets small bodies end, their connections be used again, and a sender who is still sending come to read the answer, which
 * closing at once would take from it. Then HTTP/1.1 closes the connection and HTTP/2 resets the stream with NO_ERROR (RFC
 * 9113, section 8.1).
 */
function leaveUnread(request: RawRequest, response: RawResponse): void {
  if (request.complete) return;
  if ("stream" in request) {
    // A reset overtakes whatever of the response is not sent yet.
    const reset = () => request.stream.close(constants.NGHTTP2_NO_ERROR);
    finishOf(response).once("finish", () => dropRest(request, reset));
    return;
  }
  const { socket } = request;
  dropRest(request, () => socket.destroySoon());
}

/** Whether more of a body may be to come over HTTP/1.1 than is read and dropped, so that its connection has to end with it. */
function isGivenUp(request: RawRequest): boolean {
  if ("stream" in request || request.complete) return false;
  return !(Number(request.headers["content-length"]) <= unreadMaxBytes);
}

/**
 * Sends an answer of announced length that says its connection will close, and closes it once a little of the body is dropped. Unannounced, a sender
 * who happened to be through would use the connection again, and lose its next call with it.
 */
function endLater(request: RawRequest, response: RawResponse, body: Uint8Array): void {
  let isEnded = false;
  const end = () => {
    if (!isEnded) response.end();
    isEnded = true;
  };
  if (body.byteLength > 0 && request.method !== "HEAD") (response as ServerResponse).write(body);
  else (response as ServerResponse).flushHeaders();
  dropRest(request, end, end);
}

function dropRest(request: RawRequest, cut: () => void, over: () => void = () => {}): void {
  if (request.complete || request.destroyed) {
    over();
    return;
  }
  let leftBytes = unreadMaxBytes;
  const timer = setTimeout(() => {
    // All of it came, though nobody took it: an HTTP/1.1 connection may by now be busy with its next request.
    if (request.complete) done();
    else cut();
  }, unreadMaxMs);
  const onData = (chunk: Buffer) => {
    leftBytes -= chunk.byteLength;
    if (leftBytes >= 0) return;
    done();
    cut();
  };
  const done = () => {
    clearTimeout(timer);
    request.off("data", onData);
    over();
  };
  request.once("end", done).once("close", done).on("data", onData).resume();
}
