/** What tests of memory do again and again. */
import { fromJson, type JsonValue, toJson } from "@bufbuild/protobuf";
import { durationFromMs, ValueSchema } from "@bufbuild/protobuf/wkt";
import type { Entry, Value } from "../../gen/moltwire/memory/v1/memory_pb.ts";
import type { Clients } from "../harness.ts";

/** A value of JSON. */
export const json = (value: JsonValue) => ({ kind: { case: "json" as const, value: fromJson(ValueSchema, value) } });

/** A value of bytes. */
export const data = (value: Uint8Array) => ({ kind: { case: "data" as const, value } });

/** What a value of JSON says. */
export const jsonOf = (value: Value | undefined): JsonValue | undefined =>
  value?.kind.case === "json" ? toJson(ValueSchema, value.kind.value) : undefined;

export type SetOptions = {
  readonly namespace?: string;
  readonly ttlMs?: number;
  readonly keepTtl?: boolean;
  readonly ifRevision?: bigint;
};

/** A write as requests hold it. */
export const write = (key: string, value: JsonValue, { ttlMs, ...rest }: SetOptions = {}) => ({
  key,
  value: json(value),
  ...(ttlMs !== undefined && { ttl: durationFromMs(ttlMs) }),
  ...rest,
});

export async function set(as: Clients, key: string, value: JsonValue, options: SetOptions = {}): Promise<Entry> {
  const { entry } = await as.memory.setEntry({ write: write(key, value, options) });
  return entry!;
}

export async function get(as: Clients, key: string, namespace = ""): Promise<Entry> {
  const { entry } = await as.memory.getEntry({ key, namespace });
  return entry!;
}

/** All entries of a list, page by page. */
export async function listAll(as: Clients, request: Parameters<Clients["memory"]["listEntries"]>[0]): Promise<Entry[]> {
  const entries: Entry[] = [];
  for (let pageToken = ""; ; ) {
    const page = await as.memory.listEntries({ ...request, pageToken });
    entries.push(...page.entries);
    pageToken = page.nextPageToken;
    if (!pageToken) return entries;
  }
}

/** The changes that a stream tells until there are so many. */
export async function changesOf<C>(
  open: (signal: AbortSignal) => AsyncIterable<{ event: { case?: string | undefined; value?: unknown } }>,
  count: number,
): Promise<C[]> {
  const leave = new AbortController();
  const changes: C[] = [];
  try {
    if (count === 0) return changes;
    for await (const { event } of open(leave.signal))
      if (event.case === "change" && changes.push(event.value as C) === count) break;
  } finally {
    leave.abort();
  }
  return changes;
}
