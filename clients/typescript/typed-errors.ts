/** From what the wire tells to the class of its reason. */
import { durationMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type Transport } from "@connectrpc/connect";
import { ErrorInfoSchema, RetryInfoSchema } from "../../gen/google/rpc/error_details_pb.ts";
import { ErrorReason } from "../../gen/moltwire/api/v1/error_reason_pb.ts";
import type { TaskError as TaskFailure } from "../../gen/moltwire/bus/v1/task_pb.ts";
import { type Failure, MoltwireError, Unreachable } from "./error.ts";
import { DeadlineExceeded, reasonErrors } from "./reason-errors.ts";

const errorDomain = "moltwire.dev";
/** What a lost connection is told as, when no server said it. */
const lost: ReadonlySet<Code> = new Set([Code.Unavailable, Code.Aborted, Code.Unknown, Code.Internal]);

/** The error of a reason, of its class. */
export function reasonError(failure: Failure): MoltwireError {
  const Class = Object.hasOwn(reasonErrors, failure.reason)
    ? reasonErrors[failure.reason as keyof typeof reasonErrors]
    : MoltwireError;
  return new Class(failure);
}

/**
 * The error as callers get it: of the class of its reason; {@link Unreachable} when no server told one; DeadlineExceeded when this side's deadline passed. What is none
 * of these, such as a call that its own signal ended, stays the ConnectError it was.
 */
export function typedError(error: unknown, signal?: AbortSignal): ConnectError {
  if (error instanceof MoltwireError) return error;
  const from = ConnectError.from(error);
  const info = from.findDetails(ErrorInfoSchema).find(({ domain }) => domain === errorDomain);
  const { rawMessage: message, code } = from;
  if (info) {
    const [retry] = from.findDetails(RetryInfoSchema);
    const retryAfterMs = retry?.retryDelay && durationMs(retry.retryDelay);
    return reasonError({ reason: info.reason, message, code, about: info.metadata, retryAfterMs, from });
  }
  if (code === Code.DeadlineExceeded)
    return new DeadlineExceeded({ reason: "DEADLINE_EXCEEDED", message, code, about: {}, from });
  if (signal?.aborted) return from;
  return lost.has(code) || code === Code.Canceled ? new Unreachable(from) : from;
}

/** The error with which a task ended, of the class of its reason. */
export function taskFailure(taskId: string, error: TaskFailure | undefined): MoltwireError {
  const reason =
    Object.entries(ErrorReason).find(([, number]) => number === error?.reason)?.[0] ?? String(error?.reason ?? "");
  const about = { ...error?.metadata, task_id: taskId };
  return reasonError({ reason, message: error?.message || "the task did not complete", code: Code.Aborted, about });
}

/**
 * The transport, with errors of their classes, also in the middle of a stream. No interceptor could do that: what ends a call by its deadline is put in the place of what
 * they throw.
 */
export const typing = (inner: Transport): Transport => ({
  async unary(method, signal, ...call) {
    try {
      return await inner.unary(method, signal, ...call);
    } catch (error) {
      throw typedError(error, signal);
    }
  },
  async stream(method, signal, ...call) {
    try {
      const response = await inner.stream(method, signal, ...call);
      return { ...response, message: typed(response.message, signal) };
    } catch (error) {
      throw typedError(error, signal);
    }
  },
});

async function* typed<T>(messages: AsyncIterable<T>, signal: AbortSignal | undefined): AsyncGenerator<T> {
  try {
    yield* messages;
  } catch (error) {
    throw typedError(error, signal);
  }
}
