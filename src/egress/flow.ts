import { EgressError } from "./error.ts";

/** With so much unread, the other side is not read from until the reader has caught up. */
const maxUnreadBytes = 262_144;

/** An answer's body on its way to a reader who may be slower than the other side. */
export type Flow = {
  /** From the connection: the next bytes. False once the body is longer than allowed; the flow has failed then. */
  readonly push: (chunk: Uint8Array) => boolean;
  /** From the connection: that was all. */
  readonly end: () => void;
  /** From the connection: nothing more comes. What came before is read first. */
  readonly fail: (error: EgressError) => void;
  readonly ended: () => boolean;
  /** To be read once. */
  readonly chunks: AsyncIterable<Uint8Array>;
};

/** @param gate stops and goes on reading from the connection. */
export const openFlow = (
  maxBytes: number,
  status: number,
  gate: { readonly pause: () => void; readonly resume: () => void },
): Flow => {
  const queue: Uint8Array[] = [];
  let unread = 0;
  let total = 0;
  let paused = false;
  let over = false;
  let failure: EgressError | undefined;
  let wake = Promise.withResolvers<void>();

  const fail = (error: EgressError) => {
    if (over) return;
    failure ??= error;
    wake.resolve();
  };

  async function* read(): AsyncGenerator<Uint8Array> {
    for (;;) {
      const chunk = queue.shift();
      if (chunk) {
        unread -= chunk.length;
        if (paused && unread < maxUnreadBytes / 2) {
          paused = false;
          gate.resume();
        }
        yield chunk;
      } else if (failure) throw failure;
      else if (over) return;
      else {
        await wake.promise;
        wake = Promise.withResolvers();
      }
    }
  }

  return {
    push: (chunk) => {
      if (over || failure) return true;
      total += chunk.length;
      if (total > maxBytes) {
        fail(new EgressError("too-large", "the answer's body is too large", { sent: true, status }));
        return false;
      }
      queue.push(chunk);
      unread += chunk.length;
      if (!paused && unread > maxUnreadBytes) {
        paused = true;
        gate.pause();
      }
      wake.resolve();
      return true;
    },
    end: () => {
      if (failure) return;
      over = true;
      wake.resolve();
    },
    fail,
    ended: () => over,
    chunks: { [Symbol.asyncIterator]: () => read() },
  };
};
