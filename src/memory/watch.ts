/** Following a log, as both services do. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { ChangeKind, type EntryChangeSchema } from "../../gen/moltwire/memory/v1/memory_pb.ts";
import type { App } from "../app.ts";
import { Fault } from "../errors.ts";
import type { Reader } from "../rpc/feed.ts";
import { type ChangeRow, readChanges, type Stretch } from "./log-store.ts";
import { type MemoryRef, openBody } from "./message.ts";
import { memoryTopic } from "./store.ts";

/** With the largest values these are about 3 MB. */
const changesAtOnce = 64;

export type ChangeMessage = MessageInitShape<typeof EntryChangeSchema>;

/** What a watcher wants of a log. */
export type Watching<Message> = {
  readonly memory: MemoryRef;
  readonly namespace: string;
  readonly prefix: string;
  /** Undefined: with the next change. */
  readonly afterRevision: bigint | undefined;
  /** The message for each change that the watcher may see; asked anew for every page. */
  messagesOf(changes: readonly ChangeRow[]): Promise<readonly Message[]>;
  /** Says that nothing happened. */
  checkpoint(revision: number, nowMs: number): Message;
  /** Throws when the memory is no longer there; returns where that only means that nothing was written yet. */
  ended(): void;
};

const nothing: Stretch = { head: 0, compacted: 0, changes: [] };

/** A reader of a log from a revision. Throws CURSOR_EXPIRED when that lies before what is kept, or after the log's end. */
export async function logReader<Message>(app: App, watching: Watching<Message>): Promise<Reader<Message, number>> {
  const { memory, namespace, prefix, afterRevision } = watching;
  const fits = (row: ChangeRow) => (namespace === "" || row.namespace === namespace) && row.key.startsWith(prefix);
  const read = async (after: number, limit: number): Promise<Stretch> => {
    const stretch = await readChanges(app.db.query, memory, after, limit);
    if (!stretch) watching.ended();
    const { head, compacted } = stretch ?? nothing;
    if (after < compacted || after > head) throw cursorExpired(after, compacted, head);
    return stretch ?? nothing;
  };
  const position = await startOf(afterRevision, () => readChanges(app.db.query, memory, 0, 1));
  if (afterRevision) await read(position, 1);
  return {
    topics: [memoryTopic(memory.memoryId)],
    position,
    first: [watching.checkpoint(position, app.clock.now())],
    cursor: String,
    checkpoint: watching.checkpoint,
    async read(after, most) {
      const limit = Math.min(most, changesAtOnce);
      const { changes } = await read(after, limit);
      const fitting = changes.filter(fits);
      const messages = fitting.length > 0 ? await watching.messagesOf(fitting) : [];
      return { messages, position: changes.at(-1)?.revision ?? after, more: changes.length === limit };
    },
  };
}

async function startOf(afterRevision: bigint | undefined, look: () => Promise<Stretch | undefined>): Promise<number> {
  if (afterRevision) {
    if (afterRevision > BigInt(Number.MAX_SAFE_INTEGER)) throw cursorExpired(afterRevision, 0, 0);
    return Number(afterRevision);
  }
  const { head, compacted } = (await look()) ?? nothing;
  return afterRevision === undefined ? head : compacted;
}

function cursorExpired(after: number | bigint, oldest: number, head: number): Fault {
  const what =
    after < oldest ? `changes after revision ${after} are no longer kept` : `the log ends before revision ${after}`;
  const message = `${what}: read the entries anew, and watch after revision ${oldest} to ${head}`;
  return new Fault("CURSOR_EXPIRED", message, { oldest_revision: String(oldest) });
}

/** A change as clients read it. */
export function toChange(app: Pick<App, "vault">, memory: MemoryRef, row: ChangeRow): ChangeMessage {
  const { revision, namespace, key, kind, time_ms, body } = row;
  const gone = { namespace, key, revision: BigInt(revision) };
  return {
    revision: BigInt(revision),
    kind: kind as ChangeKind,
    entry: body ? openBody(app.vault, memory, revision, body) : gone,
    time: timestampFromMs(time_ms),
  };
}

/** The change for somebody who reads only what is public; undefined for what concerns only others. */
export function publicChange(app: Pick<App, "vault">, memory: MemoryRef, row: ChangeRow): ChangeMessage | undefined {
  if (row.public !== 0 || (row.was_public !== 0 && row.body === null)) return toChange(app, memory, row);
  return row.was_public !== 0 ? toChange(app, memory, { ...row, kind: ChangeKind.DELETED, body: null }) : undefined;
}
