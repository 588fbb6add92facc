/** The calls of one turn of the event loop go to the server as one batch: one round trip, and one commit, for all of them. */
import { type DescMessage, type DescMethod, fromBinary, getOption, type Message, toBinary } from "@bufbuild/protobuf";
import { type Duration, durationMs } from "@bufbuild/protobuf/wkt";
import {
  Code,
  ConnectError,
  type Interceptor,
  type Transport,
  type UnaryRequest,
  type UnaryResponse,
} from "@connectrpc/connect";
import { codeFromString } from "@connectrpc/connect/protocol-connect";
import { access } from "../../gen/moltwire/api/v1/access_pb.ts";
import { type BatchResult, BatchService } from "../../gen/moltwire/batch/v1/batch_service_pb.ts";

/** What a server takes; see batch_service.proto. Bytes: of the calls, with room for what is around them. */
const maxCalls = 500;
const maxBytes = 3 << 20;
/** A larger request gains nothing by company. */
const maxCallBytes = 256 << 10;
const plainText = /^[!-~]{0,255}$/;
/** What a call may have of its own, and be a part of a batch. */
const known: ReadonlySet<string> = new Set([
  ...["authorization", "idempotency-key", "traceparent"],
  ...["accept-encoding", "connect-protocol-version", "connect-timeout-ms", "content-type", "user-agent"],
]);

const uncounted = /^(Heartbeat|Respond)Task$|^HeartbeatJob$/;

type Call = {
  readonly request: UnaryRequest;
  readonly bytes: Uint8Array;
  readonly alone: () => Promise<UnaryResponse>;
  readonly answered: (response: Promise<UnaryResponse>) => void;
};

/**
 * The innermost interceptor: holds a unary call until the turn ends in which it was made, and sends it with those that were made in the same turn with the same deadline and key;
 * by itself where there is no other, where it may wait for others, and where the server knows no batches. `bare` has no interceptors; `later` calls back when the turn is over.
 */
export function coalescing(bare: Transport, later: (run: () => void) => void): Interceptor {
  /** Of this turn, by their deadlines and keys. */
  let waiting = new Map<string, Call[]>();
  let isOff = false;

  const flush = () => {
    const turn = waiting;
    waiting = new Map();
    for (const calls of turn.values())
      for (const batch of batchesOf(calls.filter(({ request }) => !request.signal.aborted))) send(batch);
  };

  const send = (calls: readonly Call[]) => {
    if (calls.length === 1) return calls[0]!.answered(calls[0]!.alone());
    const results = execute(bare, calls).catch((error: unknown) => {
      isOff ||= error instanceof ConnectError && error.code === Code.Unimplemented;
      if (isOff) return undefined;
      throw error;
    });
    for (const [index, call] of calls.entries())
      call.answered(results.then((all) => (all ? responseOf(call, all[index]!) : call.alone())));
  };

  return (next) => async (request) => {
    if (isOff || request.stream || !mayJoin(request)) return next(request);
    const bytes = toBinary(request.method.input as DescMessage, request.message);
    if (bytes.byteLength > maxCallBytes) return next(request);
    return new Promise<UnaryResponse>((resolve, reject) => {
      const { signal } = request;
      const left = () => reject(signal.reason);
      if (signal.aborted) return left();
      signal.addEventListener("abort", left, { once: true });
      const answered = (response: Promise<UnaryResponse>) => {
        response.finally(() => signal.removeEventListener("abort", left)).then(resolve, reject);
      };
      if (waiting.size === 0) later(flush);
      const group = `${request.header.get("connect-timeout-ms") ?? ""} ${request.header.get("authorization") ?? ""}`;
      const alone = async () => (await next(request)) as UnaryResponse;
      const calls = waiting.get(group) ?? [];
      calls.push({ request, bytes, alone, answered });
      waiting.set(group, calls);
    });
  };
}

/** Whether a call can be a part of a batch: its method, what its request asks for, and its headers. */
function mayJoin({ method, message, header, requestMethod }: UnaryRequest): boolean {
  const { alone, waits } = getOption(method, access);
  // What does not count against the limit of requests would, as a part of a batch.
  if (alone || uncounted.test(method.name) || requestMethod !== "POST" || mayWait(method, message, waits)) return false;
  if (!plainText.test(header.get("idempotency-key") ?? "") || !plainText.test(header.get("traceparent") ?? ""))
    return false;
  return [...header.keys()].every((name) => known.has(name));
}

function mayWait({ input }: DescMethod, message: Message, waits: string): boolean {
  const field = input.fields.find(({ name }) => name === waits);
  if (!field) return false;
  const value = (message as Message & Record<string, boolean | Duration | undefined>)[field.localName];
  return typeof value === "object" ? durationMs(value) > 0 : value === false;
}

function* batchesOf(calls: readonly Call[]): Generator<readonly Call[]> {
  let batch: Call[] = [];
  let bytes = 0;
  for (const call of calls) {
    if (batch.length === maxCalls || bytes + call.bytes.byteLength > maxBytes) {
      yield batch;
      [batch, bytes] = [[], 0];
    }
    batch.push(call);
    bytes += call.bytes.byteLength;
  }
  if (batch.length > 0) yield batch;
}

/** The batch has the key and the deadline that its calls share; whoever leaves, leaves by itself. */
async function execute(bare: Transport, calls: readonly Call[]): Promise<readonly BatchResult[]> {
  const { header } = calls[0]!.request;
  const authorization = header.get("authorization");
  const timeout = header.get("connect-timeout-ms");
  const response = await bare.unary(
    BatchService.method.execute,
    undefined,
    timeout === null ? undefined : Number(timeout),
    authorization === null ? {} : { authorization },
    {
      calls: calls.map(({ request, bytes }) => ({
        method: `${request.service.typeName}/${request.method.name}`,
        request: { case: "message" as const, value: bytes },
        idempotencyKey: request.header.get("idempotency-key") ?? "",
        traceparent: request.header.get("traceparent") ?? "",
      })),
    },
  );
  return response.message.results;
}

function responseOf(
  { request, alone }: Call,
  { outcome, idempotencyReplayed, traceId }: BatchResult,
): Promise<UnaryResponse> | UnaryResponse {
  const { service, method } = request;
  const header = new Headers({ "x-trace-id": traceId, ...(idempotencyReplayed && { "idempotency-replayed": "true" }) });
  if (outcome.case === "message") {
    const message = fromBinary(method.output as DescMessage, outcome.value);
    return { stream: false, service, method, header, trailer: new Headers(), message } as UnaryResponse;
  }
  if (outcome.case !== "error")
    throw new ConnectError("the batch was answered with no answer to this call", Code.Internal);
  const { code, message, metadata, details } = outcome.value;
  // There was no room for its answer among those of the batch, or it is a method that batches do not carry.
  if (metadata.carried_out !== undefined || code === "unimplemented") return alone();
  const error = new ConnectError(message, codeFromString(code) ?? Code.Unknown, header);
  error.details = details.map(({ type, value }) => ({ type, value }));
  throw error;
}
