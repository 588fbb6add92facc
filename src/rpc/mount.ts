// Connect's handlers on Fastify's routes. What strangers, deadlines and shutdowns do to a call is settled here, once.

import type { DescMethod, DescMethodUnary } from "@bufbuild/protobuf";
import {
  Code,
  ConnectError,
  type ConnectRouter,
  type ContextValues,
  createConnectRouter,
  createContextKey,
  createContextValues,
  type HandlerContext,
  type Interceptor,
} from "@connectrpc/connect";
import {
  createAsyncIterable,
  type UniversalHandler,
  type UniversalHandlerOptions,
  type UniversalServerResponse,
} from "@connectrpc/connect/protocol";
import { codeToString } from "@connectrpc/connect/protocol-connect";
import type { FastifyError, FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { dialectOf, errorAnswer, type RawRequest, sendAnswer, sendStream, takeAnnounced, taken } from "./answer.ts";
import { digested } from "./body-digest.ts";
import { brotli, gzip } from "./compression.ts";
import { type Incoming, incoming } from "./incoming.ts";
import { isWronglyCompressed, readEnvelopes, readWhole, requestFault } from "./malformed.ts";
import { refuse } from "./refuse.ts";
import { endOnAbort, linkSignals } from "./signals.ts";
import { type ShortCall, type ShortHandler, shortCall, shortHandler } from "./unary.ts";
import type { UnaryImpl } from "./unary-context.ts";

/** What to mount, and within which limits. */
export type MountOptions = {
  /** Adds the services: `(router) => router.service(QueueService, queueHandler(app))`. */
  routes: (router: ConnectRouter) => void;
  /** The outermost first. They run after the body is decoded. */
  interceptors?: Interceptor[];
  /**
   * Runs when the method is known, before the body is read. A ConnectError it throws is answered in the caller's protocol
   * and the body stays unread.
   */
  gate?: (context: HandlerContext) => void | Promise<void>;
  /** The values of a call, from what Fastify's hooks left on the request. */
  contextValues?: (request: FastifyRequest) => ContextValues;
  /** The largest message taken, on the wire and unpacked; `router.service` may give a service less. Default 1 MiB. */
  readMaxBytes?: number;
  /** The largest message sent. Default 4 MiB. */
  writeMaxBytes?: number;
  /** The longest deadline a caller may set; a longer one is `invalid_argument`. Default one hour. */
  maxTimeoutMs?: number;
  /** How long a body that is one message may take to come; then `deadline_exceeded`. Default 30 s. */
  bodyTimeoutMs?: number;
  /** How long a reader may take nothing of its response before it is cut off. Default 60 s. */
  stallTimeoutMs?: number;
  /**
   * Once aborted, new calls are refused and open streams see their own signal aborted; those still open `streamGraceMs` later
   * are ended, all with `unavailable` (or the signal's reason, if that is a ConnectError). Unary calls finish.
   */
  shutdownSignal?: AbortSignal;
  /** See `shutdownSignal`. Default 1 s. */
  streamGraceMs?: number;
  /** Told of every error that is the server's own: what is thrown and is not a ConnectError. Its caller gets `internal`. */
  onFailure?: (failure: Failure) => void;
  /** Told of calls that the gate let in and that reach no interceptor, because their message could not be read. */
  onUnreadable?: (context: HandlerContext, error: ConnectError) => void;
  /** Told of calls that not even the gate saw: `code` is Connect's, or `http_415` where only HTTP has a word for it. */
  onUngated?: (method: DescMethod, code: string, tookMs: number) => void;
};

/** An error that is the server's own, and where it came up. */
export type Failure = { error: unknown; method: DescMethod; request: FastifyRequest };

/** What the parts of one call tell each other. */
type Call = {
  request: FastifyRequest;
  /** Whether the gate was reached. */
  isGated: boolean;
  /** Set once the gate let the call in. */
  context?: HandlerContext;
  /** Whether the interceptors were reached, which a unary call does only with a whole, decoded message. */
  isDecoded: boolean;
  isWronglyCompressed: boolean;
};

type Limits = Required<Omit<MountOptions, "routes" | "interceptors" | "gate" | "shutdownSignal">> & {
  shutdownSignal: AbortSignal;
};

const compressions = [gzip, brotli];
const callKey = createContextKey<Call | undefined>(undefined, { description: "the call as it is mounted" });

/** Serves Connect, gRPC and gRPC-Web calls of the routes' services on the Fastify instance, whose hooks apply. */
export function mount(fastify: FastifyInstance, options: MountOptions): void {
  const limits: Limits = {
    contextValues: createContextValues,
    readMaxBytes: 1_048_576,
    writeMaxBytes: 4_194_304,
    maxTimeoutMs: 3_600_000,
    bodyTimeoutMs: 30_000,
    stallTimeoutMs: 60_000,
    shutdownSignal: new AbortController().signal,
    streamGraceMs: 1_000,
    onFailure: () => {},
    onUnreadable: () => {},
    onUngated: () => {},
    ...options,
  };
  const interceptors = [guard(limits), ...(options.interceptors ?? [])];
  const gate = gateOf(options, limits);
  const router = createConnectRouter({
    acceptCompression: compressions,
    readMaxBytes: limits.readMaxBytes,
    writeMaxBytes: limits.writeMaxBytes,
    maxTimeoutMs: limits.maxTimeoutMs,
    interceptors,
    requestGate: async (context) => {
      endCheaply(context);
      await gate(context);
    },
  });
  const short = new Map<DescMethod, ShortHandler>();
  options.routes(
    seeing(router, (method, impl, own) => {
      short.set(method, shortHandler(method, impl, { ...limits, ...own, interceptors, compressions }));
    }),
  );
  fastify.register(async (instance) => {
    // The body is read by the handler, within its limits, and not by Fastify.
    instance.removeAllContentTypeParsers();
    instance.addContentTypeParser("*", (_request, _payload, done) => done(null));
    instance.setErrorHandler((error: FastifyError, request, reply) => {
      // Fastify's own complaint, about a content type that is none. The rest is for whoever made the hooks.
      if (error.code !== "FST_ERR_CTP_INVALID_MEDIA_TYPE") throw error;
      const answer = errorAnswer(undefined, new ConnectError(error.message, Code.InvalidArgument));
      reply.hijack();
      sendAnswer(request.raw, reply.raw, { ...answer, status: 415 }, reply.getHeaders());
    });
    for (const handler of router.handlers) {
      const route: Route = { handler, short: short.get(handler.method), gate };
      instance.all(handler.requestPath, (request, reply) => serve(route, request, reply, limits));
    }
  });
}

const over = new ConnectError("the call is over", Code.Canceled);

/** Connect aborts the context of each call that is over, and without a reason an abort makes one, with a stack: a twentieth of a small call's time. */
function endCheaply(context: HandlerContext): void {
  const ended = context as HandlerContext & { abort(reason?: unknown): void };
  const { abort } = ended;
  ended.abort = (reason = over) => abort(reason);
}

/** How the calls of a method are answered. */
type Route = {
  readonly handler: UniversalHandler;
  /** For ordinary unary calls; see unary.ts. */
  readonly short: ShortHandler | undefined;
  readonly gate: Gate;
};

type Gate = (context: HandlerContext) => Promise<void>;

function gateOf({ gate }: MountOptions, limits: Limits): Gate {
  return async (context) => {
    const call = context.values.get(callKey);
    if (call !== undefined) call.isGated = true;
    try {
      await gate?.(context);
    } catch (error) {
      if (error instanceof ConnectError || call === undefined) throw error;
      limits.onFailure({ error, method: context.method, request: call.request });
      throw new ConnectError("internal error", Code.Internal);
    }
    if (call !== undefined) call.context = context;
  };
}

/** What a service may have of its own and its calls still go the short way; what else a router takes is for Connect's handlers. */
const ordinaryOptions: ReadonlySet<string> = new Set(["readMaxBytes", "writeMaxBytes", "jsonOptions", "binaryOptions"]);

/** The router, whose unary methods are told as they are registered. */
function seeing(
  router: ConnectRouter,
  tell: (method: DescMethodUnary, impl: UnaryImpl, own: Partial<UniversalHandlerOptions> | undefined) => void,
): ConnectRouter {
  const seen: ConnectRouter = {
    ...router,
    service(service, implementation, options) {
      const methods = implementation as Record<string, UnaryImpl | undefined>;
      const isOrdinary = Object.keys(options ?? {}).every((name) => ordinaryOptions.has(name));
      for (const method of isOrdinary ? service.methods : []) {
        const impl = methods[method.localName];
        if (method.methodKind === "unary" && impl !== undefined)
          tell(method as DescMethodUnary, impl.bind(implementation), options);
      }
      router.service(service, implementation, options);
      return seen;
    },
  };
  return seen;
}

async function serve(route: Route, request: FastifyRequest, reply: FastifyReply, limits: Limits) {
  const { handler } = route;
  if (limits.shutdownSignal.aborted) {
    const error = shuttingDown(limits.shutdownSignal);
    limits.onUngated(handler.method, codeToString(error.code), reply.elapsedTime);
    return refuse(reply, request, error);
  }
  reply.hijack();
  const call: Call = { request, isGated: false, isDecoded: false, isWronglyCompressed: false };
  try {
    const short = route.short && shortCall(handler.method as DescMethodUnary, request.raw, limits.maxTimeoutMs);
    if (route.short && short) await answerShortly(route.short, route.gate, short, call, reply, limits);
    else await answerCall(handler, call, reply, limits);
  } catch (error) {
    // The stream's own reader is gone, or the server is at fault; handlers turn what they throw into answers.
    if (!reply.raw.destroyed) limits.onFailure({ error, method: handler.method, request });
    const failed = new ConnectError("internal error", Code.Internal);
    sendAnswer(request.raw, reply.raw, errorAnswer(request.headers["content-type"], failed), reply.getHeaders());
    if (!reply.raw.writableEnded) reply.raw.destroy();
  }
}

/** Answers that are no longer than this are not watched as they go out, unless their connection's reader leaves some lying. */
const shortBytes = 16_384;

async function answerShortly(
  handle: ShortHandler,
  gate: Gate,
  short: ShortCall,
  call: Call,
  reply: FastifyReply,
  limits: Limits,
): Promise<void> {
  const { raw } = call.request;
  const values = limits.contextValues(call.request).set(callKey, call);
  const answer = await handle(short, raw, reply.raw, values, { gate, onUnreadable: limits.onUnreadable });
  if (!raw.complete) await takeAnnounced(raw);
  const extra = reply.getHeaders();
  if (answer.body.byteLength <= shortBytes && !("stream" in raw)) {
    sendAnswer(raw, reply.raw, answer, extra);
    if (raw.socket.writableLength === 0) return;
    return taken(reply.raw, "finish", limits.stallTimeoutMs, answer.body.byteLength);
  }
  const body = createAsyncIterable([answer.body]);
  await sendStream(raw, reply.raw, { ...answer, body }, { extra, stallMs: limits.stallTimeoutMs, isWhole: true });
}

async function answerCall(handler: UniversalHandler, call: Call, reply: FastifyReply, limits: Limits): Promise<void> {
  const { raw, headers } = call.request;
  const contentType = headers["content-type"];
  const values = limits.contextValues(call.request).set(callKey, call);
  let universal: Incoming;
  try {
    universal = incoming(raw, reply.raw, values);
  } catch (error) {
    return sendAnswer(raw, reply.raw, errorAnswer(contentType, ConnectError.from(error)), reply.getHeaders());
  }
  // A unary call is finished even while the server shuts down.
  const isUnary = handler.method.methodKind === "unary";
  const { shutdownSignal } = limits;
  const link = linkSignals(universal.signal, isUnary ? undefined : shutdownSignal, () => shuttingDown(shutdownSignal));
  try {
    const body = digested(values, headers["content-digest"], bodyOf(raw, handler.method, call, limits));
    // Connect fails over a fault whose message, quoting the request, no trailer can hold; it stays the sender's.
    const answer = await handler({ ...universal, body, signal: link.signal }).catch((error: unknown) => {
      if (faultOf(call) === undefined) throw error;
      return undefined;
    });
    if (isOneMessage(handler.method)) await takeAnnounced(raw);
    const fault = faultOf(call);
    if (!call.isGated && answer !== undefined) limits.onUngated(handler.method, headFault(answer), reply.elapsedTime);
    else if (call.context !== undefined && !call.isDecoded)
      limits.onUnreadable(call.context, fault ?? ConnectError.from(call.context.signal.reason));
    if (fault !== undefined || answer === undefined) {
      await answer?.body?.[Symbol.asyncIterator]().return?.();
      return sendAnswer(raw, reply.raw, errorAnswer(contentType, fault!), reply.getHeaders());
    }
    const extra = { ...reply.getHeaders(), ...explained(answer, handler) };
    await sendStream(raw, reply.raw, answer, { extra, stallMs: limits.stallTimeoutMs, isWhole: isUnary });
  } finally {
    link.release();
    universal.release();
  }
}

function bodyOf(raw: RawRequest, method: DescMethod, call: Call, limits: Limits): AsyncIterable<Uint8Array> {
  const bodyLimits = {
    maxBytes: limits.readMaxBytes,
    timeoutMs: isOneMessage(method) ? limits.bodyTimeoutMs : undefined,
  };
  if (dialectOf(raw.headers["content-type"]) === "connect") return readWhole(raw, bodyLimits);
  return readEnvelopes(raw, bodyLimits, (envelope) => {
    call.isWronglyCompressed ||= isWronglyCompressed(raw, envelope);
  });
}

const isOneMessage = ({ methodKind }: DescMethod): boolean =>
  methodKind === "unary" || methodKind === "server_streaming";

/** The sender's fault in a unary call that failed between the gate and the interceptors, if Connect called it the server's. */
function faultOf(call: Call): ConnectError | undefined {
  if (call.isDecoded || call.context === undefined || call.isWronglyCompressed) return undefined;
  const { reason } = call.context.signal;
  const fault = requestFault(reason);
  return fault === reason ? undefined : fault;
}

/** What is wrong with a request that did not come as far as the gate; only the HTTP statuses tell, and gRPC has but one. */
const headFault = ({ status }: UniversalServerResponse): string =>
  status === 200 ? codeToString(Code.InvalidArgument) : `http_${status}`;

/** The headers that say what would have been right: RFC 9110, sections 15.5.6 and 15.5.16. */
function explained(answer: UniversalServerResponse, handler: UniversalHandler): Record<string, string> {
  if (answer.status === 405) return { allow: handler.allowedMethods.join(", ") };
  if (answer.status !== 415) return {};
  const kinds = handler.method.methodKind === "unary" ? ["", "grpc+", "grpc-web+"] : ["connect+", "grpc+", "grpc-web+"];
  return { "accept-post": kinds.flatMap((kind) => [`application/${kind}json`, `application/${kind}proto`]).join(", ") };
}

/**
 * The outermost interceptor: faults of a streamed request are the sender's; a stream ends when its signal says so, whatever its
 * handler does; an aborted call answers why it was aborted; and every error of the server's own is reported.
 */
function guard(limits: Limits): Interceptor {
  return (next) => async (request) => {
    const call = request.contextValues.get(callKey);
    if (call === undefined) return next(request);
    call.isDecoded = true;
    const reason = () => ConnectError.from(request.signal.reason, Code.Canceled);
    const outward = (error: unknown): ConnectError => {
      if (error instanceof ConnectError) return error;
      const { signal } = request;
      const isEcho = error === signal.reason || (error instanceof Error && error.name === "AbortError");
      if (!isEcho) limits.onFailure({ error, method: request.method, request: call.request });
      return signal.aborted ? reason() : new ConnectError("internal error", Code.Internal);
    };
    const graceMs = () => (limits.shutdownSignal.aborted ? limits.streamGraceMs : 0);
    try {
      const response = await next(request.stream ? { ...request, message: received(request.message, call) } : request);
      if (!response.stream) return response;
      return {
        ...response,
        message: endOnAbort(response.message, { signal: request.signal, graceMs, reason, outward }),
      };
    } catch (error) {
      throw outward(error);
    }
  };
}

async function* received<T>(messages: AsyncIterable<T>, call: Call): AsyncGenerator<T> {
  try {
    yield* messages;
  } catch (error) {
    if (call.request.raw.aborted) throw new ConnectError("the client went away", Code.Canceled);
    throw call.isWronglyCompressed ? error : requestFault(error);
  }
}

/** What calls get that the shutdown refuses or ends. */
function shuttingDown(signal: AbortSignal): ConnectError {
  if (signal.reason instanceof ConnectError) return signal.reason;
  return new ConnectError("the server is shutting down; try again", Code.Unavailable);
}
