/** Following a log, as both services do. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { ChangeKind, type EntryChangeSchema } from "../../gen/moltwire/memory/v1/memory_pb.ts";
import type { App } from "../app.ts";
import { Fault } from "../errors.ts";
import type { Reader } from "../rpc/feed.ts";
import { type ChangeRow, readChanges, type Stretch } from "./log-store.ts";
import { type EntryMessage, type MemoryRef, openBody } from "./message.ts";
import { shown } from "./shared-foreign.ts";
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
  /** Whether 0 is a place in the log as any other, and not its oldest one that is kept. */
  readonly exact?: boolean;
  /** How a place in the log is told to who may not see revisions. */
  readonly cursorOf?: (revision: number) => string;
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
  const { memory, namespace, prefix, afterRevision, exact = false, cursorOf } = watching;
  const fits = (row: ChangeRow) => (namespace === "" || row.namespace === namespace) && row.key.startsWith(prefix);
  const read = async (after: number, limit: number): Promise<Stretch> => {
    const stretch = await readChanges(app.db.query, memory, after, limit);
    if (!stretch) watching.ended();
    const { head, compacted } = stretch ?? nothing;
    if (after < compacted || after > head) throw cursorExpired(after, compacted, head, cursorOf);
    return stretch ?? nothing;
  };
  const position = exact
    ? Number(afterRevision)
    : await startOf(afterRevision, () => readChanges(app.db.query, memory, 0, 1));
  if (afterRevision || exact) await read(position, 1);
  return {
    topics: [memoryTopic(memory.memoryId)],
    position,
    first: [watching.checkpoint(position, app.clock.now())],
    cursor: cursorOf ?? String,
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

function cursorExpired(
  after: number | bigint,
  oldest: number,
  head: number,
  cursorOf?: (revision: number) => string,
): Fault {
  if (cursorOf) {
    const text =
      "changes after this cursor are no longer kept: read the entries anew, and watch after the cursor of that list";
    return new Fault("CURSOR_EXPIRED", text, { oldest_cursor: cursorOf(oldest) });
  }
  const what =
    after < oldest ? `changes after revision ${after} are no longer kept` : `the log ends before revision ${after}`;
  const message = `${what}: read the entries anew, and watch after revision ${oldest} to ${head}`;
  return new Fault("CURSOR_EXPIRED", message, { oldest_revision: String(oldest) });
}

/** A change as clients read it. */
export function toChange(app: Pick<App, "vault">, memory: MemoryRef, row: ChangeRow): ChangeMessage {
  return { ...plainChange(row), revision: BigInt(row.revision), entry: entryOf(app, memory, row) };
}

/** The change for another organisation, without revisions; undefined for what concerns only others. */
export function publicChange(app: Pick<App, "vault">, memory: MemoryRef, row: ChangeRow): ChangeMessage | undefined {
  const told = (shownRow: ChangeRow): ChangeMessage => ({
    ...plainChange(shownRow),
    entry: shown(true, entryOf(app, memory, shownRow)),
  });
  if (row.public !== 0 || (row.was_public !== 0 && row.body === null)) return told(row);
  return row.was_public !== 0 ? told({ ...row, kind: ChangeKind.DELETED, body: null }) : undefined;
}

const plainChange = ({ kind, time_ms }: ChangeRow) => ({ kind: kind as ChangeKind, time: timestampFromMs(time_ms) });

const entryOf = (app: Pick<App, "vault">, memory: MemoryRef, row: ChangeRow): EntryMessage => {
  const { revision, namespace, key, body } = row;
  return body ? openBody(app.vault, memory, revision, body) : { namespace, key, revision: BigInt(revision) };
};
