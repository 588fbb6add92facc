/**
 * Why an outgoing call gave no response:
 * - `denied`: the guard refuses it; no connection was opened, trying again is pointless.
 * - `busy`: too many calls are already running or waiting here; says nothing about the other side.
 * - `unreachable`: no such name, refused, TLS failed, or the connection was lost before an answer began.
 * - `timeout`: the time for connecting, or for the whole call, ran out.
 * - `too-large`: the answer's headers or (decompressed) body passed the limit.
 * - `redirect`: the answer was a redirect; those are never followed.
 * - `bad-response`: the answer was not HTTP, was cut short, or came in an unreadable encoding.
 * - `aborted`: the caller's signal, or `close()`.
 */
export type EgressErrorKind =
  | "denied"
  | "busy"
  | "unreachable"
  | "timeout"
  | "too-large"
  | "redirect"
  | "bad-response"
  | "aborted";

/**
 * The only error `src/egress` throws for a call. The message is fit for the owner of the endpoint: it never
 * holds a resolved address. `cause`, where there is one, may: it is for the operator's log.
 */
export class EgressError extends Error {
  readonly kind: EgressErrorKind;
  /** Whether the request may have reached the other side; false only if it certainly did not. */
  readonly sent: boolean;
  /** The answer's status, if its headers had arrived. */
  readonly status: number | undefined;

  constructor(
    kind: EgressErrorKind,
    message: string,
    details: { sent?: boolean; status?: number | undefined; cause?: unknown } = {},
  ) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = "EgressError";
    this.kind = kind;
    this.sent = details.sent ?? false;
    this.status = details.status;
  }
}

/** A refusal by the guard: nothing was connected to. */
export const denied = (message: string): EgressError => new EgressError("denied", message);

/** What a call's own signal is aborted with, whoever aborts it. */
export type Stop = { readonly kind: "timeout" | "aborted"; readonly message: string };

/** The error of a call that was stopped by its signal (whose reason is a {@link Stop}). */
export const stopped = (signal: AbortSignal, sent: boolean, status?: number): EgressError => {
  const stop = signal.reason as Stop;
  return new EgressError(stop.kind, stop.message, { sent, status });
};

/**
 * The promise, or the error of the signal if that comes first: for work that cannot be cancelled itself.
 * Nothing has been sent at that point.
 */
export const orStopped = <T>(work: Promise<T>, signal: AbortSignal): Promise<T> =>
  new Promise((resolve, reject) => {
    const stop = () => reject(stopped(signal, false));
    if (signal.aborted) return stop();
    signal.addEventListener("abort", stop, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener("abort", stop));
  });
