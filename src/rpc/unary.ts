/**
 * The short way of unary calls over Connect: the same gate, interceptors and implementations as Connect's own handler, without its iterables, linked signals and
 * copies of headers, which took two thirds of a small call's processor time. Whatever is out of the ordinary goes the long way, by that handler.
 */
import type { DescMethodUnary, Message } from "@bufbuild/protobuf";
import { Code, ConnectError, type ContextValues, type HandlerContext, type Interceptor } from "@connectrpc/connect";
import {
  type Compression,
  compressionNegotiate,
  createMethodSerializationLookup,
  mergeNonProtocolHeaders,
  type UniversalHandlerOptions,
} from "@connectrpc/connect/protocol";
import { codeToHttpStatus, errorToJsonBytes } from "@connectrpc/connect/protocol-connect";
import type { Answer, RawRequest, RawResponse } from "./answer.ts";
import { urlOf, webHeaders, whenCallerLeaves } from "./incoming.ts";
import { collect, requestFault } from "./malformed.ts";
import { applied, UnaryContext, type UnaryImpl } from "./unary-context.ts";

/** A call that goes the short way: how it is encoded, and after how many milliseconds nobody waits any more. */
export type ShortCall = { readonly isBinary: boolean; readonly timeoutMs: number | undefined };

const typeProto = "application/proto";
const typeJson = "application/json";
/** From here on an answer is compressed for who accepts it, as Connect does by default. */
const compressMinBytes = 1_024;
const plainHost = /^([\w.-]{1,255}|\[[\da-f:.]{2,45}\])(:\d{1,5})?$/i;

/** How a request goes the short way; undefined if it is no ordinary POST of one message. */
export function shortCall({ method, headers }: RawRequest, maxTimeoutMs: number): ShortCall | undefined {
  const type = headers["content-type"];
  if (method !== "POST" || (type !== typeJson && type !== typeProto)) return undefined;
  if ((headers["content-encoding"] ?? "identity") !== "identity") return undefined;
  // Its body is digested as it is read; see body-digest.ts.
  if (headers["content-digest"] !== undefined) return undefined;
  if (!plainHost.test(String(headers[":authority"] ?? headers.host ?? ""))) return undefined;
  const timeout = headers["connect-timeout-ms"];
  if (timeout === undefined) return { isBinary: type === typeProto, timeoutMs: undefined };
  if (typeof timeout !== "string" || !/^\d{1,10}$/.test(timeout) || Number(timeout) > maxTimeoutMs) return undefined;
  return { isBinary: type === typeProto, timeoutMs: Number(timeout) };
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
  const { binaryOptions, jsonOptions } = options;
  const serialization = createMethodSerializationLookup(method, binaryOptions, jsonOptions, options);
  const limits = { maxBytes: options.readMaxBytes, timeoutMs: options.bodyTimeoutMs };
  const invoke = applied(method, impl, options.interceptors);

  return async (call, raw, response, values, way) => {
    const context = new PostedContext(method, raw, response, values, call.timeoutMs);
    const read = async (): Promise<Message> => {
      try {
        return serialization.getI(call.isBinary).parse(await collect(raw, limits));
      } catch (error) {
        const fault = requestFault(error);
        way.onUnreadable(context, fault);
        throw fault;
      }
    };
    try {
      await way.gate(context);
      context.message = await read();
      const { message, header } = await invoke(context);
      if (header !== context.responseHeader) throw new Error("an interceptor answered with headers of its own");
      const body = serialization.getO(call.isBinary).serialize(message);
      context.responseHeader.set("content-type", call.isBinary ? typeProto : typeJson);
      return await packed({ status: 200, header: context.wholeHeader(), body }, raw, options.compressions);
    } catch (error) {
      const failed = error instanceof ConnectError ? error : new ConnectError("internal error", Code.Internal);
      if (!failed.isWireError) mergeNonProtocolHeaders(context.responseHeader, failed.metadata);
      context.responseHeader.set("content-type", typeJson);
      const answer = { status: codeToHttpStatus(failed.code), body: errorToJsonBytes(failed, jsonOptions) };
      return packed({ ...answer, header: context.wholeHeader() }, raw, options.compressions);
    } finally {
      context.end();
    }
  };
}

/** A call that came by itself, as an HTTP request. */
class PostedContext extends UnaryContext {
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
    timeoutMs: number | undefined,
  ) {
    super(method, values, "connect");
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

  /** The headers of the answer, trailers among them as Connect has it. */
  wholeHeader(): Headers {
    for (const [name, value] of this.trailersSet() ?? []) this.responseHeader.append(`trailer-${name}`, value);
    return this.responseHeader;
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

/** Compressed, if it is long and its reader knows how to unpack it. */
async function packed(answer: Answer, { headers }: RawRequest, compressions: readonly Compression[]): Promise<Answer> {
  const accepted = headers["accept-encoding"];
  if (answer.body.byteLength < compressMinBytes || typeof accepted !== "string") return answer;
  const { response } = compressionNegotiate([...compressions], null, accepted, "accept-encoding");
  if (response === null) return answer;
  const body = await response.compress(answer.body);
  answer.header.set("content-encoding", response.name);
  return { ...answer, body };
}
