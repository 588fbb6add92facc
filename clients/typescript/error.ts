/** What every error of a Moltwire server has. The classes of its reasons are in reason-errors.ts. */
import { Code, ConnectError } from "@connectrpc/connect";
import { BadRequestSchema } from "../../gen/google/rpc/error_details_pb.ts";

/** What an error is made of. */
export type Failure = {
  /** The name of the reason, such as `BUDGET_EXCEEDED`. */
  readonly reason: string;
  readonly message: string;
  readonly code: Code;
  /** The values the reason names; see ErrorReason. */
  readonly about: Readonly<Record<string, string>>;
  /** How long the server says to wait before the same call is worth repeating. */
  readonly retryAfterMs?: number | undefined;
  /** The error as it came; its headers and details are kept. */
  readonly from?: ConnectError | undefined;
};

/**
 * A call, or a task, failed for a reason that the server told. There is a subclass for each reason, with the reason's values as properties; a reason that this version
 * of the client does not know, of a newer server, is of this class itself.
 *
 * It is a ConnectError too, with its `code`, `metadata` (the headers) and `details`.
 */
export class MoltwireError extends ConnectError {
  /** The name of the reason, such as `BUDGET_EXCEEDED`. */
  readonly reason: string;
  /** The values the reason names, as they came. */
  readonly about: Readonly<Record<string, string>>;
  /** How long the server says to wait before the same call is worth repeating, in milliseconds. Undefined: it says nothing. */
  readonly retryAfterMs: number | undefined;
  /** When that is, by the clock of this machine. */
  readonly retryAt: Date | undefined;

  constructor({ reason, message, code, about, retryAfterMs, from }: Failure) {
    super(message, code, from?.metadata, undefined, from ?? undefined);
    this.details = from?.details ?? [];
    this.reason = reason;
    this.about = about;
    this.retryAfterMs = retryAfterMs;
    this.retryAt = retryAfterMs === undefined ? undefined : new Date(Date.now() + retryAfterMs);
  }

  /** ConnectError takes whatever looks like one for an instance, and would do so for every subclass. */
  static override [Symbol.hasInstance]<T>(this: abstract new (...args: never) => T, value: unknown): value is T {
    // biome-ignore lint/complexity/noThisInStatic: it is the class that is asked about
    return Function.prototype[Symbol.hasInstance].call(this, value);
  }

  /** The trace in which the call stands, in the server's log too. */
  get traceId(): string | undefined {
    return this.about.trace_id;
  }

  /** Every field of the request that is wrong. */
  get fields(): readonly { readonly field: string; readonly description: string }[] {
    return this.findDetails(BadRequestSchema).flatMap(({ fieldViolations }) => fieldViolations);
  }

  /** A value as a number; undefined when it was not told or is none. */
  protected numberOf(key: string): number | undefined {
    const text = this.about[key];
    const number = Number(text);
    return text === undefined || text === "" || Number.isNaN(number) ? undefined : number;
  }

  /** A value as a time. */
  protected timeOf(key: string): Date | undefined {
    const time = new Date(this.about[key] ?? Number.NaN);
    return Number.isNaN(time.getTime()) ? undefined : time;
  }
}

/** No Moltwire server answered, or the connection was lost before the answer came: whether a command was carried out is not known. */
export class Unreachable extends MoltwireError {
  /** An error that no server told. */
  constructor(from: ConnectError) {
    super({ reason: "UNREACHABLE", message: from.rawMessage, code: Code.Unavailable, about: {}, from });
  }
}
