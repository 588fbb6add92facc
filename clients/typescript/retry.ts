/** Sending a call again: only where the error says that it is worth it, and so that it is carried out once. */
import { type DescMethod, getOption } from "@bufbuild/protobuf";
import type { ConnectError, Interceptor } from "@connectrpc/connect";
import { access, Kind } from "../../gen/moltwire/api/v1/access_pb.ts";
import { MoltwireError, Unreachable } from "./error.ts";
import { backoffMs, pause } from "./time.ts";
import { typedError } from "./typed-errors.ts";

/** The reasons whose documentation says to try again, without saying when. */
const again: ReadonlySet<string> = new Set([
  "STILL_RUNNING",
  "SHUTTING_DOWN",
  "OUTCOME_UNKNOWN",
  "OVERLOADED",
  "STORAGE_UNAVAILABLE",
]);
const firstWaitMs = 100;
const longestWaitMs = 5_000;

/** What a method promises. */
export const kindOf = (method: DescMethod): Kind => getOption(method, access).kind;

/**
 * How long to wait before the same call is worth sending again; undefined when it is not. What the server says (RetryInfo) is kept to. A lost connection is worth it.
 */
export function retryWaitMs(error: ConnectError, failures: number, longestMs = longestWaitMs): number | undefined {
  if (!(error instanceof MoltwireError)) return undefined;
  if (error.retryAfterMs !== undefined) return error.retryAfterMs + Math.random() * firstWaitMs;
  if (!again.has(error.reason) && !(error instanceof Unreachable)) return undefined;
  return backoffMs(failures, firstWaitMs, longestMs, Math.random());
}

/**
 * Sends a unary call again, at most `maxAttempts` times in all, within its deadline. Where the server says to wait for longer than 5 s, such as for a budget's next day, the
 * error is the caller's.
 */
export const retries =
  (maxAttempts: number, onProblem: (error: unknown) => void): Interceptor =>
  (next) =>
  async (request) => {
    if (request.stream) return next(request);
    for (let attempt = 1; ; attempt++) {
      try {
        return await next(request);
      } catch (thrown) {
        const error = typedError(thrown, request.signal);
        const waitMs = retryWaitMs(error, attempt - 1);
        if (attempt >= maxAttempts || waitMs === undefined || waitMs > longestWaitMs + firstWaitMs) throw thrown;
        onProblem(error);
        await pause(waitMs, request.signal);
        if (request.signal.aborted) throw thrown;
      }
    }
  };

/** Gives each command a key of its own, one for all its attempts, unless it has one. A heartbeat needs none: a second one does what the first did. */
export const idempotencyKeys: Interceptor = (next) => (request) => {
  const isCommand = !request.stream && kindOf(request.method) === Kind.COMMAND;
  if (isCommand && !request.method.name.startsWith("Heartbeat") && !request.header.has("idempotency-key"))
    request.header.set("idempotency-key", randomName());
  return next(request);
};

/** 32 hexadecimal digits that nothing else has. */
export const randomName = (): string =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
