/** A stream that hands out work, kept open: opened anew whenever it breaks, until the work is to end. */
import { Code, ConnectError } from "@connectrpc/connect";
import { onTerminate } from "#platform";
import { MoltwireError } from "./error.ts";
import { anySignal, backoffMs, pause } from "./time.ts";

const firstWaitMs = 100;
const longestWaitMs = 10_000;

/** What another try does not mend. */
const hopeless: ReadonlySet<Code> = new Set([
  Code.Unauthenticated,
  Code.PermissionDenied,
  Code.InvalidArgument,
  Code.NotFound,
  Code.FailedPrecondition,
  Code.Unimplemented,
]);

const isHopeless = (error: ConnectError) =>
  // What no server told is a connection that broke, in whatever way it shows.
  hopeless.has(error.code) && (error instanceof MoltwireError || error.code === Code.Unimplemented);

/**
 * Calls `read` until `stop` aborts, which calls `onStop` at once; `read` calls back with each message that comes. Rejects with what another try does not mend; hears of
 * everything else.
 */
export async function keepOpen(
  read: (onMessage: () => void) => Promise<void>,
  { stop, onProblem }: { readonly stop: AbortSignal; readonly onProblem: (error: unknown) => void },
): Promise<void> {
  for (let failures = 0; !stop.aborted; failures++) {
    try {
      await read(() => void (failures = 0));
    } catch (thrown) {
      if (stop.aborted) return;
      const error = ConnectError.from(thrown);
      if (isHopeless(error)) throw error;
      onProblem(error);
    }
    await pause(backoffMs(failures, firstWaitMs, longestWaitMs, Math.random()), stop);
  }
}

/** A signal that aborts with the given one, and on SIGTERM. */
export function stopSignal(given: AbortSignal | undefined): { readonly stop: AbortSignal; end(): void } {
  const terminated = new AbortController();
  const end = onTerminate(() => terminated.abort());
  return { stop: anySignal(given, terminated.signal), end };
}
