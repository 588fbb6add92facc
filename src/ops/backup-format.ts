/**
 * The file of a backup: rows, not pages, so that it can be restored into either engine.
 *
 *     "moltwire backup\n"  { kind: u8, length: u32, body }…  SHA-256 of all before (32 bytes)
 *
 * Numbers are little-endian. The frames, by kind: one `h` (JSON, {@link BackupHead}); then for each table a `t` (JSON, {@link BackupTable}) and any
 * number of `r`, each holding whole rows: their values in the order of the columns, each a tag and what {@link tags} says; last one `e` (JSON,
 * {@link BackupEnd}).
 */
import { createHash } from "node:crypto";
import { closeSync, fstatSync, openSync, readSync } from "node:fs";

/** What a column can hold, as both engines give it here: every integer is a bigint. */
export type Cell = bigint | number | string | Uint8Array | null;

export type BackupHead = {
  readonly format: number;
  readonly schema: number;
  readonly server: string;
  readonly engine: string;
  /** When it was begun. */
  readonly timeMs: number;
  /** The last number given by each table's counter, in decimal. */
  readonly counters: Readonly<Record<string, string>>;
};
export type BackupTable = { readonly name: string; readonly columns: readonly string[] };
/** How many rows each table has. */
export type BackupEnd = { readonly rows: Readonly<Record<string, number>> };

/** A file is no whole backup that this program can restore. The message is for the terminal, and begins after the file's name. */
export class BadBackupError extends Error {
  override readonly name = "BadBackupError";
}

/** The form this program writes and reads. */
export const formatVersion = 1;

const magic = Buffer.from("moltwire backup\n");
const kinds = { head: 0x68, table: 0x74, rows: 0x72, end: 0x65 } as const;
/** What follows a tag: nothing; an int64; a float64; a u32 of bytes of UTF-8; a u32 of bytes. */
const tags = { null: 0, integer: 1, real: 2, text: 3, bytes: 4 } as const;
const frameHeadBytes = 5;
const digestBytes = 32;
/** Rows are gathered up to this; a frame is longer by one row at most. */
const frameBytes = 262_144;
const maxFrameBytes = 1 << 30;

/** What was written. */
export type Written = { readonly rows: number; readonly bytes: number; readonly sha256: string };

/** Writes a backup in order: head, then tables each with its rows, then end. `write` has the bytes only for the time of its call. */
export function backupWriter(write: (bytes: Uint8Array) => void) {
  const hash = createHash("sha256");
  const counts: Record<string, number> = {};
  let table = "";
  let bytes = 0;
  let buffer = Buffer.allocUnsafe(2 * frameBytes);
  let used = frameHeadBytes;

  const put = (part: Uint8Array) => {
    hash.update(part);
    write(part);
    bytes += part.length;
  };
  const putJson = (kind: number, value: object) => {
    const body = Buffer.from(JSON.stringify(value));
    const head = Buffer.allocUnsafe(frameHeadBytes);
    head.writeUInt8(kind);
    head.writeUInt32LE(body.length, 1);
    put(head);
    put(body);
  };
  const flush = () => {
    if (used === frameHeadBytes) return;
    buffer.writeUInt8(kinds.rows);
    buffer.writeUInt32LE(used - frameHeadBytes, 1);
    put(buffer.subarray(0, used));
    used = frameHeadBytes;
  };
  const makeRoom = (more: number) => {
    if (used + more <= buffer.length) return;
    const larger = Buffer.allocUnsafe(2 * (used + more));
    buffer.copy(larger, 0, 0, used);
    buffer = larger;
  };
  const putCell = (cell: Cell) => {
    const length = typeof cell === "string" ? 3 * cell.length : cell instanceof Uint8Array ? cell.length : 8;
    makeRoom(frameHeadBytes + length);
    if (cell === null) buffer[used++] = tags.null;
    else if (typeof cell === "bigint") {
      buffer[used] = tags.integer;
      used = buffer.writeBigInt64LE(cell, used + 1);
    } else if (typeof cell === "number") {
      buffer[used] = tags.real;
      used = buffer.writeDoubleLE(cell, used + 1);
    } else {
      const isText = typeof cell === "string";
      buffer[used] = isText ? tags.text : tags.bytes;
      const at = used + frameHeadBytes;
      if (!isText) buffer.set(cell, at);
      const size = isText ? buffer.write(cell, at) : cell.length;
      buffer.writeUInt32LE(size, used + 1);
      used = at + size;
    }
  };

  return {
    head(head: BackupHead): void {
      put(magic);
      putJson(kinds.head, head);
    },
    table(next: BackupTable): void {
      flush();
      table = next.name;
      counts[table] = 0;
      putJson(kinds.table, next);
    },
    row(cells: readonly Cell[]): void {
      for (const cell of cells) putCell(cell);
      counts[table]!++;
      if (used >= frameBytes) flush();
    },
    end(): Written {
      flush();
      putJson(kinds.end, { rows: counts } satisfies BackupEnd);
      put(hash.copy().digest());
      return { rows: total(counts), bytes, sha256: hash.digest("hex") };
    },
  };
}

const total = (counts: Readonly<Record<string, number>>): number => Object.values(counts).reduce((a, b) => a + b, 0);

/** A frame after the head. */
export type Frame =
  | { readonly table: BackupTable }
  | { readonly rows: readonly Cell[][] }
  | { readonly end: BackupEnd };

/** A backup that was found whole. */
export type CheckedBackup = {
  readonly path: string;
  readonly head: BackupHead;
  readonly rows: number;
  /** Reads it from the beginning. */
  frames(): Generator<Frame>;
};

/**
 * Reads the file once from end to end. Throws {@link BadBackupError} unless it is a whole, unaltered backup of this form. The checksum finds
 * accidents; who alters a file on purpose can make another.
 */
export function checkBackup(path: string): CheckedBackup {
  const file = openSync(path, "r");
  try {
    const { size } = fstatSync(file);
    const hash = createHash("sha256");
    const start = readAt(file, 0, Math.min(size, magic.length));
    if (!start.equals(magic)) throw new BadBackupError("is no Moltwire backup");
    hash.update(start);
    let head: BackupHead | undefined;
    let end: BackupEnd | undefined;
    for (const { kind, body, header } of rawFrames(file, size)) {
      hash.update(header).update(body);
      if (kind === kinds.head) head = readHead(body);
      if (kind === kinds.end) end = parse<BackupEnd>(body);
    }
    if (!head || !end) throw cutOff();
    if (!readAt(file, size - digestBytes, digestBytes).equals(hash.digest()))
      throw new BadBackupError("is altered or damaged: its checksum does not fit");
    return { path, head, rows: total(end.rows), frames: () => readFrames(path) };
  } finally {
    closeSync(file);
  }
}

function readHead(body: Buffer): BackupHead {
  const head = parse<BackupHead>(body);
  if (head.format !== formatVersion)
    throw new BadBackupError(
      `has the form ${head.format}, and this program reads ${formatVersion}: restore it with the version that made it`,
    );
  return head;
}

function* readFrames(path: string): Generator<Frame> {
  const file = openSync(path, "r");
  try {
    let width = 0;
    for (const { kind, body } of rawFrames(file, fstatSync(file).size)) {
      if (kind === kinds.rows) yield { rows: readRows(body, width) };
      else if (kind === kinds.end) yield { end: parse<BackupEnd>(body) };
      else if (kind === kinds.table) {
        const table = parse<BackupTable>(body);
        width = table.columns.length;
        yield { table };
      }
    }
  } finally {
    closeSync(file);
  }
}

type RawFrame = { readonly kind: number; readonly header: Buffer; readonly body: Buffer };

/** The frames between the magic and the digest; throws if they do not end where the digest begins. */
function* rawFrames(file: number, size: number): Generator<RawFrame> {
  const endAt = size - digestBytes;
  let at = magic.length;
  let kind: number = 0;
  while (kind !== kinds.end) {
    if (at + frameHeadBytes > endAt) throw cutOff();
    const header = readAt(file, at, frameHeadBytes);
    kind = header.readUInt8();
    const length = header.readUInt32LE(1);
    if (!Object.values<number>(kinds).includes(kind) || length > maxFrameBytes) throw damaged();
    at += frameHeadBytes;
    if (at + length > endAt) throw cutOff();
    yield { kind, header, body: readAt(file, at, length) };
    at += length;
  }
  if (at !== endAt) throw damaged();
}

function readRows(body: Buffer, width: number): Cell[][] {
  const rows: Cell[][] = [];
  let at = 0;
  const readCell = (): Cell => {
    const tag = body[at++];
    if (tag === tags.null) return null;
    if (tag === tags.integer || tag === tags.real) {
      at += 8;
      return tag === tags.integer ? body.readBigInt64LE(at - 8) : body.readDoubleLE(at - 8);
    }
    const from = at + 4;
    at = from + body.readUInt32LE(at);
    return tag === tags.text ? body.toString("utf8", from, at) : body.subarray(from, at);
  };
  while (at < body.length) rows.push(Array.from({ length: width }, readCell));
  return rows;
}

function readAt(file: number, at: number, length: number): Buffer {
  const bytes = Buffer.allocUnsafe(length);
  for (let got = 0; got < length; ) {
    const read = readSync(file, bytes, got, length - got, at + got);
    if (read === 0) throw cutOff();
    got += read;
  }
  return bytes;
}

function parse<T>(body: Buffer): T {
  try {
    return JSON.parse(body.toString()) as T;
  } catch {
    throw damaged();
  }
}

const cutOff = () => new BadBackupError("is cut off or damaged: its end is missing");
const damaged = () => new BadBackupError("is altered or damaged");
