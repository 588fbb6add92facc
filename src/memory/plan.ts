/** The rule of the area: what becomes of a memory when these wishes are done to it in order. */
import { ChangeKind } from "../../gen/moltwire/memory/v1/memory_pb.ts";
import { Fault } from "../errors.ts";
import type { MemoryLimits } from "./limits.ts";
import type { Content, DeleteWish, EntryPlace, SetWish, Wish } from "./wish.ts";

/** Where a memory's log ends and begins, and what its quota is counted in; expired entries count until they are announced. */
export type Head = {
  readonly head: number;
  readonly compacted: number;
  readonly entries: number;
  readonly bytes: number;
  readonly publicEntries: number;
};

export const emptyHead: Head = { head: 0, compacted: 0, entries: 0, bytes: 0, publicEntries: 0 };

/** An entry as far as the rule looks at it. */
export type Held = {
  readonly revision: number;
  readonly createRevision: number;
  readonly sizeBytes: number;
  readonly createMs: number;
  readonly updateMs: number;
  readonly expireMs: number | null;
  readonly isPublic: boolean;
};

/** One row of the log, and the entry as it leaves it: `held` and `content` where there is one. */
export type Change = {
  readonly revision: number;
  readonly kind: ChangeKind;
  readonly place: EntryPlace;
  readonly wasPublic: boolean;
  readonly held?: Held;
  readonly content?: Content;
};

/** What came of a wish: the revision it took (0: nothing was to do), and the entry it wrote; or why not. */
export type Outcome =
  | { readonly revision: number; readonly held?: Held }
  | { readonly fault: Fault; readonly present?: number };

export type Plan = { readonly head: Head; readonly changes: readonly Change[]; readonly outcomes: readonly Outcome[] };

/** A memory with the entries that the wishes name; those that are not there are not in the map. */
export type State = { readonly head: Head; readonly entries: ReadonlyMap<string, Held> };

/** The most changes that one transaction removes from the log's old end. */
const maxCompacted = 2_000;
/** How far a log grows beyond what is kept before its old end is removed. */
const slack = 500;

export const placeId = ({ namespace, key }: EntryPlace): string => JSON.stringify([namespace, key]);

export const isOver = ({ expireMs }: Pick<Held, "expireMs">, now: number): boolean =>
  expireMs !== null && expireMs <= now;

/** A wish that fails changes nothing, but that an expiry it came upon is announced. */
export function planChanges(state: State, wishes: readonly (Wish | Fault)[], now: number, limits: MemoryLimits): Plan {
  const entries = new Map(state.entries);
  let head = state.head;
  const changes: Change[] = [];

  const record = (kind: ChangeKind, place: EntryPlace, held?: Held, content?: Content): void => {
    const id = placeId(place);
    const before = entries.get(id);
    if (held) entries.set(id, held);
    else entries.delete(id);
    head = afterChange(head, before, held);
    const after = { ...(held && { held }), ...(content && { content }) };
    changes.push({ revision: head.head, kind, place, wasPublic: before?.isPublic ?? false, ...after });
  };

  const outcomes = wishes.map((wish): Outcome => {
    if (wish instanceof Fault) return { fault: wish };
    const found = entries.get(placeId(wish.place));
    if (found && isOver(found, now)) record(ChangeKind.EXPIRED, wish.place);
    const before = entries.get(placeId(wish.place));
    if (wish.kind === "expire") return { revision: 0 };
    const refused =
      checkRevision(wish, before) ?? (wish.kind === "set" ? checkQuota(wish, before, head, limits) : undefined);
    if (refused) return refused;
    if (wish.kind === "set") {
      const held = written(wish, before, head.head + 1, now);
      record(ChangeKind.SET, wish.place, held, wish.content);
      return { revision: held.revision, held };
    }
    if (!before) return { revision: 0 };
    record(ChangeKind.DELETED, wish.place);
    return { revision: head.head };
  });
  return { head: compact(head, limits.keptChanges), changes, outcomes };
}

const afterChange = (head: Head, before: Held | undefined, after: Held | undefined): Head => ({
  ...head,
  head: head.head + 1,
  entries: head.entries + Number(after !== undefined) - Number(before !== undefined),
  bytes: head.bytes + (after?.sizeBytes ?? 0) - (before?.sizeBytes ?? 0),
  publicEntries: head.publicEntries + Number(after?.isPublic ?? false) - Number(before?.isPublic ?? false),
});

const written = (wish: SetWish, before: Held | undefined, revision: number, now: number): Held => ({
  revision,
  createRevision: before?.createRevision ?? revision,
  sizeBytes: wish.sizeBytes,
  createMs: before?.createMs ?? now,
  updateMs: now,
  expireMs: wish.ttlMs === undefined ? (wish.keepTtl ? (before?.expireMs ?? null) : null) : now + wish.ttlMs,
  isPublic: wish.isPublic,
});

function checkRevision({ ifRevision, field }: SetWish | DeleteWish, before: Held | undefined): Outcome | undefined {
  const present = before?.revision ?? 0;
  if (ifRevision === undefined || ifRevision === BigInt(present)) return undefined;
  const is = before ? `it is at revision ${present}` : "there is no such entry";
  const metadata = { field: field ? `${field}.if_revision` : "if_revision", revision: String(present) };
  return { fault: new Fault("FAILED_PRECONDITION", `${metadata.field}: ${is}, not ${ifRevision}`, metadata), present };
}

function checkQuota(wish: SetWish, before: Held | undefined, head: Head, limits: MemoryLimits): Outcome | undefined {
  if (!before && head.entries >= limits.maxKeys)
    return { fault: quotaExceeded("memory_keys", limits.maxKeys, head.entries, "delete some") };
  const grows = wish.sizeBytes - (before?.sizeBytes ?? 0);
  if (grows > 0 && head.bytes + grows > limits.maxBytes)
    return { fault: quotaExceeded("memory_bytes", limits.maxBytes, head.bytes, `this write takes ${grows} more`) };
  return undefined;
}

/** QUOTA_EXCEEDED with the figures. */
export function quotaExceeded(resource: string, limit: number, used: number, advice: string): Fault {
  const message = `the quota of ${resource.replace("_", " ")} is ${limit}, of which ${used} are used: ${advice}`;
  const quota = { subject: resource, description: message };
  return new Fault("QUOTA_EXCEEDED", message, { resource, limit: String(limit), used: String(used) }, { quota });
}

/** Now and then a write takes the log's old end with it: no log is longer than what is kept and its slack. */
function compact(head: Head, kept: number): Head {
  const over = head.head - head.compacted - kept;
  if (over < Math.min(slack, Math.ceil(kept / 8))) return head;
  return { ...head, compacted: head.compacted + Math.min(over, maxCompacted) };
}
