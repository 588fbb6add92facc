/** BatchService: many calls in one, each through the same gate, interceptors and implementation as a call that comes by itself. */
import {
  create,
  type DescMethod,
  type DescMethodUnary,
  type DescService,
  fromBinary,
  fromJson,
  type Message,
  type MessageInitShape,
  type MessageShape,
  toBinary,
  toJson,
} from "@bufbuild/protobuf";
import { type Duration, durationMs, ValueSchema } from "@bufbuild/protobuf/wkt";
import {
  type ConnectError,
  type ConnectRouter,
  type ContextValues,
  createContextValues,
  type HandlerContext,
  type Interceptor,
  type ServiceImpl,
  type UnaryResponse,
} from "@connectrpc/connect";
import { codeToString } from "@connectrpc/connect/protocol-connect";
import { ErrorInfoSchema } from "../../gen/google/rpc/error_details_pb.ts";
import {
  type BatchCall,
  BatchErrorSchema,
  type BatchResultSchema,
  type BatchService,
  type ExecuteResponseSchema,
} from "../../gen/moltwire/batch/v1/batch_service_pb.ts";
import type { App } from "../app.ts";
import { badField, Fault, toConnectError } from "../errors.ts";
import { accessOf, methodName } from "./access.ts";
import { type Caller, callerOf, traceOf } from "./caller.ts";
import { clientAddressKey } from "./client-address.ts";
import { asConnectError } from "./errors.ts";
import { callEnded } from "./observe.ts";
import { largestAnswerBytes } from "./page.ts";
import { traceparent } from "./trace-context.ts";
import { applied, UnaryContext, type UnaryImpl } from "./unary-context.ts";

/** What calls pass on their way in, as at the port. */
export type Inside = {
  readonly services: readonly DescService[];
  readonly routes: (router: ConnectRouter) => void;
  readonly gate: (context: HandlerContext, caller: Caller, isCounted: boolean) => Promise<void>;
  readonly interceptors: readonly Interceptor[];
};

export type Batch = {
  readonly handler: ServiceImpl<typeof BatchService>;
  /** Lets calls in, before the first batch comes. */
  open(inside: Inside): void;
};

/** As many as one HTTP/2 connection has open at once; so many answers are in memory before there is known to be no room for them. */
const maxAtOnce = 100;
/** Of all batches, so that they do not take all the room that waits for the database. */
const maxInAll = 1_000;
/** Answers may be written in base64, which takes a third more. */
const roomBytes = (largestAnswerBytes * 3) / 4 - 262_144;

type Result = MessageInitShape<typeof BatchResultSchema>;
type Outcome = NonNullable<Result["outcome"]>;

/** A unary method that may be a part of batches, and how it is carried out. */
type Carried = {
  readonly method: DescMethodUnary;
  readonly invoke: (context: UnaryContext) => Promise<UnaryResponse>;
};

export function createBatch(app: App): Batch {
  const carried = new Map<string, Carried>();
  /** Those that are called by themselves only. */
  const apart = new Set<string>();
  const places = placesFor(maxInAll);
  let pass: Inside["gate"];

  const execute = async (calls: readonly BatchCall[], batch: HandlerContext) => {
    const results: Result[] = [];
    const room = { left: roomBytes };
    const waiting = calls.entries();
    const lane = async () => {
      for (const [index, call] of waiting) {
        await places.take();
        results[index] = await carryOut(call, index, batch, room).finally(places.leave);
      }
    };
    await Promise.all(Array.from({ length: Math.min(maxAtOnce, calls.length) }, lane));
    return { results } satisfies MessageInitShape<typeof ExecuteResponseSchema>;
  };

  async function carryOut(call: BatchCall, index: number, batch: HandlerContext, room: Room): Promise<Result> {
    const found = carried.get(call.method);
    if (batch.signal.aborted) return failed(asConnectError(app, batch.signal.reason, batch.method, "", batch.signal));
    if (room.left < 0) return failed(noRoom(false));
    if (!found && apart.has(call.method))
      return failed(badField(`calls[${index}].method`, "it is no part of a batch: call it by itself"));
    if (!found) return failed(new Fault("UNIMPLEMENTED", `calls[${index}]: there is no such method`));
    const { method, invoke } = found;
    const context = new CarriedContext(method, call, batch);
    const answer = async (): Promise<Result> => {
      await pass(context, callerOf(batch), index === 0);
      context.message = readable(app, context, call, index);
      const { message } = await invoke(context);
      return { outcome: written(method, message as MessageShape<typeof method.output>, call), ...context.told() };
    };
    const result = await answer().catch((error: unknown) => {
      const refusal = asConnectError(app, error, method, context.told().traceId, context.signal);
      return { ...failed(refusal), ...context.told() };
    });
    tellLeast(context.responseHeader, batch.responseHeader);
    room.left -= sizeOf(result.outcome!);
    if (room.left >= 0 || result.outcome!.case === "error") return result;
    return { ...failed(noRoom(true)), ...context.told() };
  }

  return {
    handler: { execute: ({ calls }, context) => execute(calls, context) },
    open({ services, routes, gate, interceptors }) {
      pass = gate;
      for (const service of services) for (const method of service.methods) apart.add(methodName(method));
      routes(
        listening((method, impl) => {
          if (!accessOf(method).alone)
            carried.set(methodName(method), { method, invoke: applied(method, impl, interceptors) });
        }),
      );
    },
  };
}

/** So many at once; who comes then waits for its turn. */
function placesFor(count: number): { take(): Promise<void>; leave(): void } {
  let free = count;
  const waiting: (() => void)[] = [];
  return {
    take() {
      if (free === 0) return new Promise((resolve) => waiting.push(resolve));
      free--;
      return Promise.resolve();
    },
    leave() {
      const next = waiting.shift();
      if (next) next();
      else free++;
    },
  };
}

/** What answers may still come to, in bytes; below nothing once one did not fit. */
type Room = { left: number };

/** A router that opens nothing: it is told of services, and tells of their unary methods. */
function listening(tell: (method: DescMethodUnary, impl: UnaryImpl) => void): ConnectRouter {
  const router: ConnectRouter = {
    handlers: [],
    service(service, implementation) {
      const methods = implementation as Record<string, UnaryImpl | undefined>;
      for (const method of service.methods) {
        const impl = methods[method.localName];
        if (method.methodKind === "unary" && impl) tell(method as DescMethodUnary, impl.bind(implementation));
      }
      return router;
    },
    rpc: (_method: DescMethod, ..._: unknown[]) => router,
  };
  return router;
}

/** The request of a call. INVALID_REQUEST, and the call is over, if it is none, or if the call would wait for others. */
function readable(app: App, context: CarriedContext, { request }: BatchCall, index: number): Message {
  const { method, values } = context;
  const field = `calls[${index}].${request.case ?? "message"}`;
  try {
    const message = parsed(method, request, field);
    if (waits(method, message)) {
      const { waits: name } = accessOf(method);
      throw badField(`${field}.${name}`, "a call that waits for others is no part of a batch: call it by itself");
    }
    return message;
  } catch (error) {
    const refusal = asConnectError(app, error, method, traceOf(context).traceId, context.signal);
    callEnded(app, method, values, refusal);
    throw refusal;
  }
}

function parsed({ input }: DescMethodUnary, request: BatchCall["request"], field: string): Message {
  try {
    if (request.case === "json")
      return fromJson(input, toJson(ValueSchema, request.value), { ignoreUnknownFields: true });
    return fromBinary(input, request.value ?? new Uint8Array());
  } catch (error) {
    throw badField(field, `this is no ${input.typeName}: ${error instanceof Error ? error.message : String(error)}`);
  }
}

/** Whether a call may wait for work of others; see `waits` in access.proto. */
function waits(method: DescMethodUnary, message: Message): boolean {
  const { waits: name } = accessOf(method);
  if (name === "") return false;
  const { localName } = method.input.fields.find((field) => field.name === name)!;
  const value = (message as Message & Record<string, boolean | Duration | undefined>)[localName];
  return typeof value === "object" ? durationMs(value) > 0 : value === false;
}

function written({ output }: DescMethodUnary, message: Message, { request }: BatchCall): Outcome {
  if (request.case === "json") return { case: "json", value: fromJson(ValueSchema, toJson(output, message)) };
  return { case: "message", value: toBinary(output, message) };
}

function sizeOf(outcome: Outcome): number {
  if (outcome.case === "message") return outcome.value!.byteLength;
  if (outcome.case === "error") return toBinary(BatchErrorSchema, create(BatchErrorSchema, outcome.value)).byteLength;
  const value = create(ValueSchema, outcome.value as MessageInitShape<typeof ValueSchema>);
  // One of them is what goes out.
  return Math.max(toBinary(ValueSchema, value).byteLength, JSON.stringify(toJson(ValueSchema, value)).length);
}

const noRoom = (carriedOut: boolean): Fault =>
  new Fault(
    "PAYLOAD_TOO_LARGE",
    carriedOut
      ? "it was carried out, and the answers of this batch leave no room for its own: repeat it by itself with its idempotency key"
      : "it was not carried out: the answers of this batch leave no room for more",
    { limit_bytes: String(roomBytes), carried_out: String(carriedOut) },
  );

function failed(error: Fault | ConnectError): Result {
  const told = error instanceof Fault ? toConnectError(error) : error;
  const { code, rawMessage: message, details } = told;
  const [info] = told.findDetails(ErrorInfoSchema);
  const value = {
    code: codeToString(code),
    message,
    reason: info?.reason ?? "",
    metadata: info?.metadata ?? {},
    details: details.map((detail) =>
      "desc" in detail
        ? { type: detail.desc.typeName, value: toBinary(detail.desc, create(detail.desc, detail.value)) }
        : { type: detail.type, value: detail.value },
    ),
  };
  return { outcome: { case: "error", value } };
}

/** The batch is answered with the headers of whatever of its calls' limits has least left, as a call is with those of its own. */
function tellLeast(call: Headers, batch: Headers): void {
  const left = call.get("ratelimit-remaining");
  if (left === null || Number(left) >= Number(batch.get("ratelimit-remaining") ?? Number.POSITIVE_INFINITY)) return;
  for (const name of ["ratelimit-limit", "ratelimit-remaining"]) batch.set(name, call.get(name)!);
}

/** A call that came in a batch: it has the caller, the connection and the deadline of the batch, and of its own what the batch says of it. */
class CarriedContext extends UnaryContext {
  readonly requestHeader = new Headers();
  readonly #batch: HandlerContext;

  constructor(method: DescMethodUnary, { idempotencyKey, traceparent: own }: BatchCall, batch: HandlerContext) {
    super(method, valuesOf(batch), batch.protocolName);
    this.#batch = batch;
    if (idempotencyKey) this.requestHeader.set("idempotency-key", idempotencyKey);
    this.requestHeader.set("traceparent", own || traceparent(traceOf(batch)));
  }

  get url(): string {
    return this.#batch.url;
  }

  get signal(): AbortSignal {
    return this.#batch.signal;
  }

  timeoutMs(): number | undefined {
    return this.#batch.timeoutMs();
  }

  /** What headers of its answer would tell. */
  told(): { readonly idempotencyReplayed: boolean; readonly traceId: string } {
    return {
      idempotencyReplayed: this.responseHeader.has("idempotency-replayed"),
      traceId: this.responseHeader.get("x-trace-id") ?? "",
    };
  }
}

const valuesOf = (batch: HandlerContext): ContextValues =>
  createContextValues().set(clientAddressKey, batch.values.get(clientAddressKey));
