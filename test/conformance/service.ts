// The suite's own service, as its proto describes it: each request says how it is to be answered.

import { create, createRegistry } from "@bufbuild/protobuf";
import { type Any, anyPack } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type ConnectRouter, type HandlerContext, type ServiceImpl } from "@connectrpc/connect";
import {
  BidiStreamRequestSchema,
  ClientStreamRequestSchema,
  type ConformancePayload,
  ConformancePayload_RequestInfoSchema,
  ConformancePayloadSchema,
  ConformanceService,
  type Error as ErrorDefinition,
  type Header,
  IdempotentUnaryRequestSchema,
  ServerStreamRequestSchema,
  type StreamResponseDefinition,
  UnaryRequestSchema,
  type UnaryResponseDefinition,
} from "./gen/connectrpc/conformance/v1/service_pb.ts";

type RequestInfo = NonNullable<ConformancePayload["requestInfo"]>;

/** Adds the service. Error details and echoed requests are `Any`, so JSON needs to know their types. */
export function conformanceRoutes(router: ConnectRouter): void {
  const registry = createRegistry(ConformanceService.file);
  router.service(ConformanceService, service, { jsonOptions: { registry } });
}

/** Without `unimplemented`, which has to stay so. */
const service: Partial<ServiceImpl<typeof ConformanceService>> = {
  unary: (request, context) => answerOne(request.responseDefinition, [anyPack(UnaryRequestSchema, request)], context),
  idempotentUnary: (request, context) =>
    answerOne(request.responseDefinition, [anyPack(IdempotentUnaryRequestSchema, request)], context),

  async clientStream(requests, context) {
    let definition: UnaryResponseDefinition | undefined;
    const received: Any[] = [];
    for await (const request of requests) {
      if (received.length === 0) definition = request.responseDefinition;
      received.push(anyPack(ClientStreamRequestSchema, request));
    }
    return answerOne(definition, received, context);
  },

  serverStream(request, context) {
    setMetadata(context, request.responseDefinition);
    return answerMany(request.responseDefinition, [anyPack(ServerStreamRequestSchema, request)], context);
  },

  async *bidiStream(requests, context) {
    let definition: StreamResponseDefinition | undefined;
    let isFirst = true;
    let isFullDuplex = false;
    let sent = 0;
    const unanswered: Any[] = [];
    for await (const request of requests) {
      if (isFirst) {
        definition = request.responseDefinition;
        isFullDuplex = request.fullDuplex;
        setMetadata(context, definition);
        isFirst = false;
      }
      unanswered.push(anyPack(BidiStreamRequestSchema, request));
      if (!isFullDuplex) continue;
      const data = definition?.responseData[sent];
      if (data === undefined) break;
      await pause(definition?.responseDelayMs, context);
      yield { payload: create(ConformancePayloadSchema, { data, requestInfo: infoOf(context, unanswered.splice(0)) }) };
      sent += 1;
    }
    yield* answerMany(definition, unanswered, context, sent);
  },
};

/** The answer of a method with a single response. */
async function answerOne(definition: UnaryResponseDefinition | undefined, requests: Any[], context: HandlerContext) {
  setMetadata(context, definition);
  await pause(definition?.responseDelayMs, context);
  const requestInfo = infoOf(context, requests);
  const { response } = definition ?? {};
  if (response?.case === "error") throw toConnectError(response.value, requestInfo);
  const data = response?.case === "responseData" ? response.value : new Uint8Array();
  return { payload: create(ConformancePayloadSchema, { data, requestInfo }) };
}

/** The responses from number `sent` on, and the error after them. Only the very first response tells of the request. */
async function* answerMany(
  definition: StreamResponseDefinition | undefined,
  requests: Any[],
  context: HandlerContext,
  sent = 0,
) {
  if (definition === undefined) return;
  const { responseData, responseDelayMs, error } = definition;
  for (const [index, data] of responseData.entries()) {
    if (index < sent) continue;
    await pause(responseDelayMs, context);
    const requestInfo = index === 0 ? { requestInfo: infoOf(context, requests) } : {};
    yield { payload: create(ConformancePayloadSchema, { data, ...requestInfo }) };
  }
  if (error !== undefined)
    throw toConnectError(error, responseData.length === 0 ? infoOf(context, requests) : undefined);
}

type Metadata = { responseHeaders: Header[]; responseTrailers: Header[] };

function setMetadata({ responseHeader, responseTrailer }: HandlerContext, definition: Metadata | undefined): void {
  for (const { name, value } of definition?.responseHeaders ?? [])
    for (const each of value) responseHeader.append(name, each);
  for (const { name, value } of definition?.responseTrailers ?? [])
    for (const each of value) responseTrailer.append(name, each);
}

function infoOf(context: HandlerContext, requests: Any[]): RequestInfo {
  const left = context.timeoutMs();
  const queryParams = [...new URL(context.url).searchParams].map(([name, value]) => ({ name, value: [value] }));
  return create(ConformancePayload_RequestInfoSchema, {
    requestHeaders: [...context.requestHeader].map(([name, value]) => ({ name, value: value.split(/, */) })),
    requests,
    ...(left === undefined ? {} : { timeoutMs: BigInt(Math.round(left)) }),
    ...(context.requestMethod === "GET" ? { connectGetInfo: { queryParams } } : {}),
  });
}

function toConnectError({ code, message, details }: ErrorDefinition, info: RequestInfo | undefined): ConnectError {
  const error = new ConnectError(message ?? "", code as number);
  error.details = details.map(({ typeUrl, value }) => ({ type: typeUrl.slice(typeUrl.lastIndexOf("/") + 1), value }));
  if (info !== undefined) error.details.push({ desc: ConformancePayload_RequestInfoSchema, value: info });
  return error;
}

/**
 * What a call that ended meanwhile is answered with. The suite compares error details exactly and knows of none for a passed deadline, where Moltwire tells
 * its reason in one if the error is the deadline's own; what a handler throws of itself goes out as it is.
 */
const endOf = (reason: unknown): unknown =>
  reason instanceof ConnectError && reason.code === Code.DeadlineExceeded
    ? new ConnectError(reason.rawMessage, reason.code)
    : reason;

/** Waits as asked, but no longer than the call lives. */
function pause(ms: number | undefined, { signal }: HandlerContext): Promise<void> {
  if (!ms) return Promise.resolve();
  return new Promise((resolve, reject) => {
    const onAbort = () => {
      clearTimeout(timer);
      reject(endOf(signal.reason));
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", onAbort);
      resolve();
    }, ms);
    if (signal.aborted) onAbort();
    else signal.addEventListener("abort", onAbort, { once: true });
  });
}
