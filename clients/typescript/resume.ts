/** Feeds that go on over lost connections: nothing is lost, repeated or reordered, since each round begins after the last message that was taken. */
import { create, type DescMessage, type DescMethod, type MessageShape } from "@bufbuild/protobuf";
import { Code, ConnectError, type StreamResponse, type Transport } from "@connectrpc/connect";
import { Kind } from "../../gen/moltwire/api/v1/access_pb.ts";
import { MoltwireError, Unreachable } from "./error.ts";
import { kindOf, retryWaitMs } from "./retry.ts";
import { anySignal, pause } from "./time.ts";
import { typedError } from "./typed-errors.ts";

/** A feed says something every 15 s; a connection silent for longer is dead, though nothing has said so. */
const maxSilenceMs = 45_000;
const longestWaitMs = 10_000;

/** What a message says of its place, and what the request has to say to go on after it. */
const places = [
  ["cursor", "afterCursor"],
  ["sequence", "afterSequence"],
  ["revision", "afterRevision"],
] as const;
/** What says where to begin, and may not stand beside a place. */
const beginnings = ["start", "fromStart"];

export type Place = { readonly told: string; readonly after: string };

/** Where a feed tells its place. Undefined for what is no feed, and for feeds of work, which have none. */
export function placeOf(method: DescMethod): Place | undefined {
  if (method.methodKind !== "server_streaming" || kindOf(method) !== Kind.FEED) return undefined;
  const has = (message: DescMessage, name: string) => message.fields.some(({ localName }) => localName === name);
  const found = places.find(([told, after]) => has(method.output, told) && has(method.input, after));
  return found && { told: found[0], after: found[1] };
}

/** The transport, with feeds that resume by themselves. Until a feed has begun, it is tried `maxAttempts` times; after that for ever. */
export const resuming = (inner: Transport, maxAttempts: number, onProblem: (error: unknown) => void): Transport => ({
  unary: (...call) => inner.unary(...call),
  async stream(method, signal, timeoutMs, header, input, contextValues) {
    const place = placeOf(method);
    if (!place) return inner.stream(method, signal, timeoutMs, header, input, contextValues);
    const open = (request: Fields, round: AbortSignal) =>
      inner.stream(
        method,
        round,
        undefined,
        header,
        once(create(method.input, request as never)),
        contextValues,
      ) as Promise<StreamResponse<DescMessage, DescMessage>>;
    const first = await only(input);
    const deadline = timeoutMs ? AbortSignal.timeout(timeoutMs) : undefined;
    const message = follow(open, plain(first), place, {
      signal: anySignal(signal, deadline),
      maxAttempts,
      onProblem,
    });
    const { parent: service } = method;
    return { stream: true, service, method, header: new Headers(), trailer: new Headers(), message } as never;
  },
});

type Fields = Record<string, unknown>;
type Options = {
  readonly signal: AbortSignal;
  readonly maxAttempts: number;
  readonly onProblem: (error: unknown) => void;
};

async function* follow(
  open: (request: Fields, round: AbortSignal) => Promise<StreamResponse<DescMessage, DescMessage>>,
  first: Fields,
  place: Place,
  { signal, maxAttempts, onProblem }: Options,
): AsyncGenerator<MessageShape<DescMessage>> {
  let request = first;
  let hasBegun = false;
  for (let failures = 0; ; failures++) {
    let isOpen = false;
    const round = new AbortController();
    try {
      const { message } = await listened(open(request, anySignal(signal, round.signal)), round);
      const messages = message[Symbol.asyncIterator]();
      for (;;) {
        const { done, value } = await listened(messages.next(), round);
        if (done) return;
        request = after(request, place, value as unknown as Fields);
        hasBegun = isOpen = true;
        failures = 0;
        yield value;
      }
    } catch (thrown) {
      const error = broken(thrown, signal, isOpen);
      if (signal.aborted) throw error;
      const waitMs = retryWaitMs(error, failures, longestWaitMs);
      if (waitMs === undefined || (!hasBegun && failures + 1 >= maxAttempts)) throw error;
      onProblem(error);
      await pause(waitMs, signal);
    } finally {
      // Whoever breaks out of the loop hangs up.
      round.abort();
    }
  }
}

/** What broke off in the middle without a reason is a lost connection, in whatever way it shows. */
function broken(thrown: unknown, signal: AbortSignal, wasOpen: boolean): ConnectError {
  const error = typedError(thrown, signal);
  return wasOpen && !signal.aborted && !(error instanceof MoltwireError) ? new Unreachable(error) : error;
}

/** A request as it was written: what was a whole message is completed anew. */
function plain(request: object): Fields {
  const { $typeName: _, ...fields } = request as Fields;
  return fields;
}

/** The request with which to go on after this message. */
function after(request: Fields, { told, after }: Place, message: Fields): Fields {
  const next: Fields = { ...request, [after]: message[told] };
  for (const name of beginnings) if (name in next) delete next[name];
  return next;
}

/** What comes, unless nothing does for too long: then the round is over. */
async function listened<T>(coming: Promise<T>, round: AbortController): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const silence = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      const error = new ConnectError(`nothing heard for ${maxSilenceMs} ms`, Code.Unavailable);
      round.abort(error);
      reject(error);
    }, maxSilenceMs);
  });
  try {
    return await Promise.race([coming, silence]);
  } finally {
    clearTimeout(timer);
  }
}

async function* once<T>(value: T): AsyncGenerator<T> {
  yield value;
}

async function only<T>(values: AsyncIterable<T>): Promise<T> {
  for await (const value of values) return value;
  throw new ConnectError("a feed takes one request", Code.InvalidArgument);
}
