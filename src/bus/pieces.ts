/** Between an agent that streams and the log: what comes close together becomes one row, and an agent that is faster than the disk waits. */
import type { Clock } from "../clock.ts";
import type { Piece } from "./piece-store.ts";

/** The most that is kept of what one task streams, over all its attempts by one server. */
export const maxTaskBytes = 4 * 1_048_576;
/** The most one row holds. */
export const maxPieceBytes = 65_536;
/** With so much unwritten, whoever adds waits. */
const maxPendingBytes = 2 * maxPieceBytes;
/** What a piece costs beside its text. */
const rowBytes = 128;

const firstWaitMs = 50;
const lastWaitMs = 3_200;
/** After so many rows of a task the wait doubles: an hour of small pieces is some 2,500 rows. */
const rowsPerDoubling = 256;

/** What a task has streamed already. */
export type PieceMeter = { bytes: number; rows: number; cut: boolean };

export const newMeter = (): PieceMeter => ({ bytes: 0, rows: 0, cut: false });

/** Writes pieces, and with `cut` that no more follow; false when the task is no longer ours, and then nothing was written. */
export type WritePieces = (pieces: readonly Piece[], cut: boolean) => Promise<boolean>;

export type Pieces = {
  /**
   * Takes a piece. Wait for it before reading more from the agent: it resolves when there is room for the next one. Rejects when an earlier
   * piece could not be written. What comes after {@link Pieces.close} is dropped.
   */
  add(piece: Piece): Promise<void>;
  /** Writes what is left; after it nothing is written any more. */
  close(): Promise<void>;
};

/** The stream of one attempt. */
export function openPieces(clock: Clock, meter: PieceMeter, write: WritePieces): Pieces {
  let pending: { piece: Piece; bytes: number }[] = [];
  let pendingBytes = 0;
  let cutPending = false;
  let timer: { cancel(): void } | undefined;
  let writing: Promise<void> | undefined;
  let failure: { readonly error: unknown } | undefined;
  let closed = false;
  let lost = false;

  const isEmpty = () => pending.length === 0 && !cutPending;

  /** Writes all that is pending, after what is being written. Never rejects: the failure is told to who adds next, or closes. */
  function flush(): Promise<void> {
    timer?.cancel();
    timer = undefined;
    if (failure || lost) return Promise.resolve();
    return (writing ??= writeAll().finally(() => {
      writing = undefined;
    }));
  }

  async function writeAll(): Promise<void> {
    while (!isEmpty()) {
      const batch = pending;
      const cut = cutPending;
      pending = [];
      pendingBytes = 0;
      cutPending = false;
      meter.rows += batch.length;
      try {
        lost = !(await write(
          batch.map(({ piece }) => piece),
          cut,
        ));
      } catch (error) {
        failure = { error };
      }
      if (failure || lost) return;
      // While it was written more may have come: that has time again, unless it is much or the last.
      if (!closed && pendingBytes < maxPieceBytes) break;
    }
    if (!closed && !isEmpty()) arm();
  }

  const arm = () => {
    timer ??= clock.after(waitMs(meter.rows), () => void flush());
  };

  function take(piece: Piece): void {
    const bytes = bytesOf(piece);
    if (meter.cut) return;
    if (meter.bytes + bytes > maxTaskBytes) {
      meter.cut = true;
      cutPending = true;
      return;
    }
    const last = pending.at(-1);
    if (last?.piece.case === "progress" && piece.case === "progress") {
      last.piece = piece;
      return;
    }
    meter.bytes += bytes;
    pendingBytes += bytes;
    if (last?.piece.case === "chunk" && piece.case === "chunk" && last.bytes + bytes <= maxPieceBytes) {
      last.piece = { case: "chunk", value: last.piece.value + piece.value };
      last.bytes += bytes;
    } else pending.push({ piece, bytes });
  }

  return {
    async add(piece) {
      if (failure) throw failure.error;
      if (closed || lost) return;
      for (const part of inParts(piece)) take(part);
      if (isEmpty()) return;
      if (pendingBytes < maxPieceBytes && !cutPending) {
        if (!writing) arm();
        return;
      }
      const written = flush();
      if (pendingBytes < maxPendingBytes) return;
      await written;
      if (failure) throw (failure as { readonly error: unknown }).error;
    },
    async close() {
      closed = true;
      timer?.cancel();
      await writing;
      await flush();
      if (failure) throw failure.error;
    },
  };
}

/** How long pieces are gathered before they are written, by the rows that a task has. */
export const waitMs = (rows: number): number =>
  Math.min(lastWaitMs, firstWaitMs * 2 ** Math.floor(rows / rowsPerDoubling));

const bytesOf = (piece: Piece): number =>
  piece.case === "chunk" ? Buffer.byteLength(piece.value) : rowBytes + Buffer.byteLength(piece.value.message);

/** Text that is too long for a row, cut between characters. */
function inParts(piece: Piece): Piece[] {
  if (piece.case === "progress") return [piece];
  if (piece.value.length * 3 <= maxPieceBytes) return piece.value === "" ? [] : [piece];
  const parts: Piece[] = [];
  let from = 0;
  while (from < piece.value.length) {
    let to = Math.min(piece.value.length, from + Math.floor(maxPieceBytes / 3));
    // Not between the halves of a surrogate pair.
    if (to < piece.value.length && (piece.value.charCodeAt(to - 1) & 0xfc00) === 0xd800) to--;
    parts.push({ case: "chunk", value: piece.value.slice(from, to) });
    from = to;
  }
  return parts;
}
