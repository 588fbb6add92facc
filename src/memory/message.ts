/** Entries and changes: as they are stored, and as clients read them. */
import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { EntrySchema, type Value, ValueSchema } from "../../gen/moltwire/memory/v1/memory_pb.ts";
import type { Vault } from "../vault/sealed.ts";
import type { Held } from "./plan.ts";
import type { Content, EntryPlace } from "./wish.ts";

/** Which memory: its row's key. */
export type MemoryRef = { readonly orgId: string; readonly memoryId: string };

/** An entry as it is stored; `about` and `value` are sealed, and `value` is null where it was not asked for. */
export type EntryRow = {
  readonly namespace: string;
  readonly key: string;
  readonly revision: number;
  readonly create_revision: number;
  readonly size_bytes: number;
  readonly create_ms: number;
  readonly update_ms: number;
  readonly expire_ms: number | null;
  readonly public: number;
  readonly about: Uint8Array | null;
  readonly value: Uint8Array | null;
};

/** What is in an entry at most, in bytes of protobuf, beside its names and what is sealed: revisions, times. */
const plainBytes = 256;

/** What an entry takes at most in an answer, in bytes of protobuf: what is sealed is no shorter than what it was made of. */
export const entryBytes = ({ namespace, key, about, value }: EntryRow): number =>
  plainBytes + Buffer.byteLength(namespace) + Buffer.byteLength(key) + (about?.length ?? 0) + (value?.length ?? 0);

export type EntryMessage = MessageInitShape<typeof EntrySchema>;

type Part = "about" | "value";

/** Where a part of an entry lies. */
export const placeOfPart = ({ orgId, memoryId }: MemoryRef, { namespace, key }: EntryPlace, part: Part) => ({
  orgId,
  table: "memory_entry",
  id: JSON.stringify([memoryId, namespace, key, part]),
});

/** Where an entry lies in the log. */
export const placeOfChange = ({ orgId, memoryId }: MemoryRef, revision: number) => ({
  orgId,
  table: "memory_change",
  id: `${memoryId} ${revision}`,
});

export const sealValue = (vault: Vault, memory: MemoryRef, place: EntryPlace, value: Value): Uint8Array =>
  vault.seal(placeOfPart(memory, place, "value"), toBinary(ValueSchema, value));

/** Description and tags; null for neither. */
export const sealAbout = (
  vault: Vault,
  memory: MemoryRef,
  place: EntryPlace,
  { description, tags }: Content,
): Uint8Array | null =>
  description === "" && tags.length === 0
    ? null
    : vault.seal(placeOfPart(memory, place, "about"), Buffer.from(JSON.stringify({ description, tags })));

export const sealBody = (vault: Vault, memory: MemoryRef, entry: EntryMessage, revision: number): Uint8Array =>
  vault.seal(placeOfChange(memory, revision), toBinary(EntrySchema, create(EntrySchema, entry)));

export const openBody = (vault: Vault, memory: MemoryRef, revision: number, body: Uint8Array): EntryMessage =>
  fromBinary(EntrySchema, vault.open(placeOfChange(memory, revision), body));

/** An entry that was just written. */
export const writtenEntry = (place: EntryPlace, held: Held, content: Partial<Content>): EntryMessage => ({
  ...place,
  ...(content.value && { value: content.value }),
  revision: BigInt(held.revision),
  createRevision: BigInt(held.createRevision),
  sizeBytes: BigInt(held.sizeBytes),
  createTime: timestampFromMs(held.createMs),
  updateTime: timestampFromMs(held.updateMs),
  ...(held.expireMs !== null && { expireTime: timestampFromMs(held.expireMs) }),
  description: content.description ?? "",
  tags: [...(content.tags ?? [])],
});

/** An entry as clients read it. */
export function toEntry(vault: Vault, memory: MemoryRef, row: EntryRow): EntryMessage {
  const { about, value } = row;
  const open = (part: Part, sealed: Uint8Array) => vault.open(placeOfPart(memory, row, part), sealed);
  return writtenEntry({ namespace: row.namespace, key: row.key }, toHeld(row), {
    ...(about && (JSON.parse(Buffer.from(open("about", about)).toString()) as Pick<Content, "description" | "tags">)),
    ...(value && { value: fromBinary(ValueSchema, open("value", value)) }),
  });
}

export const toHeld = (row: Omit<EntryRow, "namespace" | "key" | "about" | "value">): Held => ({
  revision: row.revision,
  createRevision: row.create_revision,
  sizeBytes: row.size_bytes,
  createMs: row.create_ms,
  updateMs: row.update_ms,
  expireMs: row.expire_ms,
  isPublic: row.public !== 0,
});
