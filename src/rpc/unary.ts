/**
 * The short way of unary calls: the same gate, interceptors and implementations as Connect's own handlers, without their iterables, linked signals and
 * copies of headers, which took two thirds of a small call's processor time. Whatever is out of the ordinary goes the long way, by those handlers.
 */
import type { DescMethodUnary, Message } from "@bufbuild/protobuf";
import { base64Decode } from "@bufbuild/protobuf/wire";
import { MethodOptions_IdempotencyLevel } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type ContextValues, type HandlerContext, type Interceptor } from "@connectrpc/connect";
import {
  type Compression,
  compressionNegotiate,
  createMethodSerializationLookup,
  type UniversalHandlerOptions,
} from "@connectrpc/connect/protocol";
import { contentTypeJson, contentTypeProto, parseTimeout } from "@connectrpc/connect/protocol-grpc";
import * as grpcWeb from "@connectrpc/connect/protocol-grpc-web";
import type { Answer, RawRequest, RawResponse } from "./answer.ts";
import { urlOf, webHeaders, whenCallerLeaves } from "./incoming.ts";
import { collect, isWronglyCompressed, requestFault } from "./malformed.ts";
import { applied, UnaryContext, type UnaryImpl } from "./unary-context.ts";
import { connectWire, grpcWebWire, grpcWire, type Reply, type Wire } from "./unary-wire.ts";

/** A call that goes the short way: how it is encoded, and after how many milliseconds nobody waits any more. */
export type ShortCall = {
  readonly wire: Wire;
  readonly isBinary: boolean;
  readonly timeoutMs: number | undefined;
  /** Of a GET: the message, which throws where it is none. */
  readonly asked?: () => Uint8Array;
};

/** From here on an answer is compressed for who accepts it, as Connect does by default. */
const compressMinBytes = 1_024;
const plainHost = /^([\w.-]{1,255}|\[[\da-f:.]{2,45}\])(:\d{1,5})?$/i;

const grpcJson = { wire: grpcWire, isBinary: false };
const grpcProto = { wire: grpcWire, isBinary: true };
const webJson = { wire: grpcWebWire, isBinary: false };
const webProto = { wire: grpcWebWire, isBinary: true };
/** What is posted under which type; others go the long way, spelled otherwise or not. */
const posted = new Map<string | undefined, Pick<ShortCall, "wire" | "isBinary">>([
  ["application/json", { wire: connectWire, isBinary: false }],
  ["application/proto", { wire: connectWire, isBinary: true }],
  ["application/grpc", grpcProto],
  [contentTypeProto, grpcProto],
  [contentTypeJson, grpcJson],
  ["application/grpc-web", webProto],
  [grpcWeb.contentTypeProto, webProto],
  [grpcWeb.contentTypeJson, webJson],
]);

/** How a request goes the short way; undefined if it is not ordinary. */
export function shortCall(method: DescMethodUnary, raw: RawRequest, maxTimeoutMs: number): ShortCall | undefined {
  const { headers } = raw;
  const how = raw.method === "POST" ? posted.get(headers["content-type"]) : askedBy(method, raw);
  if (!how) return undefined;
  const { wire } = how;
  // Over HTTP/1.1, trailers need an answer in chunks.
  if (wire === grpcWire && !("stream" in raw)) return undefined;
  if ((headers[wire.headers.encoding] ?? "identity") !== "identity") return undefined;
  // Its body is digested as it is read; see body-digest.ts.
  if (headers["content-digest"] !== undefined) return undefined;
  if (!plainHost.test(String(headers[":authority"] ?? headers.host ?? ""))) return undefined;
  const timeout = headers[wire.headers.timeout];
  if (timeout === undefined) return { ...how, timeoutMs: undefined };
  const timeoutMs = typeof timeout === "string" ? timeoutIn(wire, timeout, maxTimeoutMs) : undefined;
  return timeoutMs === undefined ? undefined : { ...how, timeoutMs };
}

/** Undefined for what is no timeout, or too long. */
function timeoutIn({ isEnveloped }: Wire, text: string, maxTimeoutMs: number): number | undefined {
  if (isEnveloped) {
    const { timeoutMs, error } = parseTimeout(text, maxTimeoutMs);
    return error ? undefined : timeoutMs;
  }
  return /^\d{1,10}$/.test(text) && Number(text) <= maxTimeoutMs ? Number(text) : undefined;
}

/** A GET (https://connectrpc.com/docs/protocol#unary-get-request) of a method without effects. */
function askedBy({ idempotency }: DescMethodUnary, raw: RawRequest): Omit<ShortCall, "timeoutMs"> | undefined {
  if (raw.method !== "GET" || idempotency !== MethodOptions_IdempotencyLevel.NO_SIDE_EFFECTS) return undefined;
  const query = new URLSearchParams(raw.url!.split("?", 2)[1] ?? "");
  const encoding = query.get("encoding");
  if ((encoding !== "json" && encoding !== "proto") || query.has("compression")) return undefined;
  const message = query.get("message") ?? "";
  const asked = () => (query.get("base64") === "1" ? base64Decode(message) : new TextEncoder().encode(message));
  return { wire: connectWire, isBinary: encoding === "proto", asked };
}

/** What a short call needs of its server. */
export type ShortOptions = {
  readonly interceptors: Interceptor[];
  readonly compressions: readonly Compression[];
  readonly readMaxBytes: number;
  readonly writeMaxBytes: number;
  readonly bodyTimeoutMs: number;
} & Partial<Pick<UniversalHandlerOptions, "binaryOptions" | "jsonOptions">>;

/** What happens to one call on its way. */
export type ShortWay = {
  /** As Connect's request gate: throws a ConnectError for who may not go on. */
  readonly gate: (context: HandlerContext) => Promise<void>;
  /** The call was let in, and its message could not be read. */
  readonly onUnreadable: (context: HandlerContext, fault: ConnectError) => void;
};

/** Answers one call, whatever its sender or its handler does. */
export type ShortHandler = (
  call: ShortCall,
  request: RawRequest,
  response: RawResponse,
  values: ContextValues,
  way: ShortWay,
) => Promise<Answer>;

/** The short way of a method. */
export function shortHandler(method: DescMethodUnary, impl: UnaryImpl, options: ShortOptions): ShortHandler {
  const { binaryOptions, jsonOptions, compressions } = options;
  const serialization = createMethodSerializationLookup(method, binaryOptions, jsonOptions, options);
  const limits = { maxBytes: options.readMaxBytes, timeoutMs: options.bodyTimeoutMs };
  const invoke = applied(method, impl, options.interceptors);

  return async (call, raw, response, values, way) => {
    const { wire, isBinary, asked } = call;
    const context = new CallContext(method, raw, response, values, call);
    const reply = () =>
      context.reply(isBinary, jsonOptions, (bytes) =>
        packing(bytes, raw.headers[wire.headers.accepts], wire, compressions),
      );
    const read = async (): Promise<Message> => {
      let isOdd = false;
      try {
        const body = asked ? asked() : await collect(raw, limits, wire.isEnveloped);
        isOdd = wire.isEnveloped && isWronglyCompressed(raw, body);
        return serialization.getI(isBinary).parse(wire.messageIn(body));
      } catch (error) {
        const fault = isOdd ? ConnectError.from(error) : requestFault(error);
        way.onUnreadable(context, fault);
        throw fault;
      }
    };
    try {
      await way.gate(context);
      context.message = await read();
      const { message, header } = await invoke(context);
      if (header !== context.responseHeader) throw new Error("an interceptor answered with headers of its own");
      return await wire.answer(reply(), serialization.getO(isBinary).serialize(message));
    } catch (error) {
      const failed = error instanceof ConnectError ? error : new ConnectError("internal error", Code.Internal);
      return wire.refusal(reply(), failed);
    } finally {
      context.end();
    }
  };
}

/** A call that came by itself, as an HTTP request. */
class CallContext extends UnaryContext {
  readonly #raw: RawRequest;
  readonly #response: RawResponse;
  readonly #endMs: number | undefined;
  #requestHeader: Headers | undefined;
  #signal: { readonly signal: AbortSignal; readonly release: () => void } | undefined;

  constructor(
    method: DescMethodUnary,
    raw: RawRequest,
    response: RawResponse,
    values: ContextValues,
    { wire, timeoutMs, asked }: ShortCall,
  ) {
    super(method, values, wire.name, asked ? "GET" : "POST");
    this.#raw = raw;
    this.#response = response;
    this.#endMs = timeoutMs === undefined ? undefined : performance.now() + timeoutMs;
  }

  get url(): string {
    return urlOf(this.#raw);
  }

  get requestHeader(): Headers {
    return (this.#requestHeader ??= webHeaders(this.#raw.headers));
  }

  get signal(): AbortSignal {
    this.#signal ??= endSignal(this.#raw, this.#response, this.timeoutMs());
    return this.#signal.signal;
  }

  /** What is left, in whole milliseconds, as times are kept. */
  timeoutMs(): number | undefined {
    return this.#endMs === undefined ? undefined : Math.ceil(this.#endMs - performance.now());
  }

  /** What there is to answer with. */
  reply(isBinary: boolean, jsonOptions: Reply["jsonOptions"], pack: Reply["pack"]): Reply {
    return { header: this.responseHeader, trailer: this.trailersSet(), isBinary, jsonOptions, pack };
  }

  /** The call is over: its connection's end and its deadline mean nothing to it. */
  end(): void {
    this.#signal?.release();
  }
}

/** Aborted when the caller leaves or the deadline passes, also if either was before. */
function endSignal(raw: RawRequest, response: RawResponse, timeoutMs: number | undefined) {
  const controller = new AbortController();
  const release = whenCallerLeaves(raw, response, (why) => controller.abort(why));
  const late = () => controller.abort(new ConnectError("the operation timed out", Code.DeadlineExceeded));
  if (timeoutMs !== undefined && timeoutMs <= 0) late();
  const timer = timeoutMs === undefined || timeoutMs <= 0 ? undefined : setTimeout(late, timeoutMs);
  return {
    signal: controller.signal,
    release: () => {
      clearTimeout(timer);
      release();
    },
  };
}

/** How an answer is compressed, if it is long and its reader knows how to unpack it. */
function packing(
  bytes: Uint8Array,
  accepted: string | string[] | undefined,
  { headers }: Wire,
  compressions: readonly Compression[],
): Compression | undefined {
  if (bytes.byteLength < compressMinBytes || typeof accepted !== "string") return undefined;
  return compressionNegotiate([...compressions], null, accepted, headers.accepts).response ?? undefined;
}
