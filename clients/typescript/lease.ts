/** One piece of leased work: heartbeats go out while it is done, and its answer is brought to the server. */
import { Code, ConnectError } from "@connectrpc/connect";
import { anySignal, backoffMs, pause } from "./time.ts";

/** How far the work is: `fraction` from 0 to 1. */
export type Told = { readonly fraction: number; readonly message: string };

/** The work failed, and whether another try may mend it. */
export class TaskError extends Error {
  override readonly name = "TaskError";
  readonly retryable: boolean;

  constructor(message: string, options: { readonly retryable: boolean; readonly cause?: unknown }) {
    super(message, { cause: options.cause });
    this.retryable = options.retryable;
  }
}

/** What a handler that threw has to say of it. What is no {@link TaskError} may be mended by another try. */
export function failureOf(error: unknown): { readonly message: string; readonly retryable: boolean } {
  const message = (error instanceof Error ? error.message : String(error)).slice(0, maxMessageLength);
  return { message, retryable: error instanceof TaskError ? error.retryable : true };
}

/** Progress within the limits of the protocol. */
export const toldOf = (fraction: number, message = ""): Told => ({
  fraction: Math.min(1, Math.max(0, fraction)) || 0,
  message: message.slice(0, maxProgressLength),
});

const maxMessageLength = 4_096;
const maxProgressLength = 1_024;
const firstWaitMs = 100;
const longestWaitMs = 5_000;
/** What may pass: the same call again may be answered. */
const passing: ReadonlySet<Code> = new Set([
  Code.Unavailable,
  Code.ResourceExhausted,
  Code.Internal,
  Code.Unknown,
  Code.Aborted,
  Code.DeadlineExceeded,
]);

export type Lease<Outcome> = {
  readonly leaseMs: number;
  /** Aborting it lets the work go. */
  readonly give: AbortController;
  /** Does it; never rejects. */
  run(): Promise<Outcome>;
  /** Brings the outcome. It is called until the server has answered, and has one effect. */
  answer(outcome: Outcome): Promise<unknown>;
  /** Extends the lease; gives whether somebody wants the work to end. */
  beat(options: { readonly signal: AbortSignal; readonly timeoutMs: number }): Promise<boolean>;
  readonly onProblem: (error: unknown) => void;
};

/** Never rejects: what goes wrong is an answer to the server, or told to `onProblem`. */
export async function underLease<Outcome>(lease: Lease<Outcome>): Promise<void> {
  const { give, onProblem } = lease;
  const done = new AbortController();
  const beating = beat(lease, done.signal);
  const outcome = await lease.run();
  try {
    if (!give.signal.aborted) await untilAnswered(give.signal, () => lease.answer(outcome));
  } catch (error) {
    if (!give.signal.aborted) onProblem(error);
  } finally {
    done.abort();
    await beating;
  }
}

/** A heartbeat in every third of the lease, until the work is answered or let go. */
async function beat<Outcome>({ leaseMs, give, beat, onProblem }: Lease<Outcome>, done: AbortSignal): Promise<void> {
  const signal = anySignal(done, give.signal);
  const timeoutMs = Math.floor(leaseMs / 3);
  while (!signal.aborted) {
    await pause(timeoutMs, signal);
    if (signal.aborted) return;
    try {
      if (await beat({ signal, timeoutMs })) give.abort();
    } catch (error) {
      // A lost heartbeat is made good by the next one; a lost lease is not.
      if (signal.aborted) return;
      if (ConnectError.from(error).code === Code.FailedPrecondition) give.abort();
      else onProblem(error);
    }
  }
}

/** Calls until the server has answered, whatever it says; the key makes it one answer. As long as the lease is there it is worth it. */
async function untilAnswered(signal: AbortSignal, call: () => Promise<unknown>): Promise<void> {
  for (let failures = 0; ; failures++) {
    try {
      await call();
      return;
    } catch (error) {
      if (signal.aborted || !passing.has(ConnectError.from(error).code)) throw error;
      await pause(backoffMs(failures, firstWaitMs, longestWaitMs, Math.random()), signal);
      if (signal.aborted) throw error;
    }
  }
}
