/** What an agent remembers. */
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import type { CallOptions } from "@connectrpc/connect";
import type { Entry, EntryChange } from "../../gen/moltwire/memory/v1/memory_pb.ts";
import {
  type ListEntriesRequestSchema,
  MemoryService,
  type WatchEntriesRequestSchema,
  type WriteSchema,
} from "../../gen/moltwire/memory/v1/memory_service_pb.ts";
import { type Area, areaOf, paged, told } from "./area.ts";
import { type Connection, clientOf } from "./connection.ts";
import { type Content, contentOf, type Fields, payloadOf } from "./payload.ts";
import { NotFound } from "./reason-errors.ts";

/** Where an entry is: the namespace (default `default`), and whose memory for administrators. */
export type EntryPlace = { readonly namespace?: string; readonly agentId?: string; readonly orgId?: string };
/** How to write: besides the fields of Write, how long it is kept. */
export type SetOptions = EntryPlace &
  Omit<Fields<typeof WriteSchema>, "key" | "value" | "ttl" | "namespace"> & {
    /** From 1,000 to 365 days. Default: for ever. */
    readonly ttlMs?: number;
    /** What bytes are, such as `image/png`. */
    readonly contentType?: string;
  };

type Helpers = {
  /** Writes an entry. Gives it as it is now, without its value. */
  set(key: string, value: Content, options?: SetOptions, call?: CallOptions): Promise<Entry>;
  /** The value of an entry; undefined when there is none. */
  get(key: string, place?: EntryPlace, call?: CallOptions): Promise<Content | undefined>;
  /** Deletes an entry; gives whether there was one. */
  delete(key: string, place?: EntryPlace, call?: CallOptions): Promise<boolean>;
  /** All entries, page after page. Without values unless `withValues`. */
  list(request?: Fields<typeof ListEntriesRequestSchema>, call?: CallOptions): AsyncGenerator<Entry, void>;
  /** The changes as they are committed, over lost connections too. Each has its revision, after which a later watch can go on (`afterRevision`). */
  watch(request?: Fields<typeof WatchEntriesRequestSchema>, call?: CallOptions): AsyncGenerator<EntryChange, void>;
};

export type MemoryArea = Area<typeof MemoryService, Helpers>;

/**
 * The memory of the key's agent.
 *
 * @example
 * ```ts
 * import { connect } from "@moltwire/client";
 *
 * const { memory } = connect({ url, apiKey });
 * await memory.set("plan", { step: 1 }, { ttlMs: 60_000 });
 * console.log(await memory.get("plan")); // { step: 1 }
 * for await (const { key } of memory.list({ prefix: "pl" })) console.log(key); // plan
 * for await (const { revision, entry } of memory.watch({ afterRevision: 0n })) {
 *   console.log(revision, entry?.key); // 1n plan
 *   break;
 * }
 * ```
 */
export function memoryOf(connection: Connection): MemoryArea {
  const rpc = clientOf(connection, MemoryService);
  return areaOf<typeof MemoryService, Helpers>(rpc, {
    async set(key, value, { ttlMs, contentType, agentId = "", orgId = "", ...write } = {}, call) {
      const ttl = ttlMs === undefined ? {} : { ttl: durationFromMs(ttlMs) };
      const request = { orgId, agentId, write: { ...write, ...ttl, key, value: payloadOf(value, contentType) } };
      return (await rpc.setEntry(request, call)).entry!;
    },
    async get(key, place = {}, call) {
      try {
        return contentOf((await rpc.getEntry({ ...place, key }, call)).entry?.value);
      } catch (error) {
        if (error instanceof NotFound) return undefined;
        throw error;
      }
    },
    delete: async (key, place = {}, call) => (await rpc.deleteEntry({ ...place, key }, call)).deleted,
    list: (request = {}, call) =>
      paged(
        (pageToken) => rpc.listEntries({ ...request, pageToken }, call),
        ({ entries }) => entries,
      ),
    watch: (request = {}, call = {}) =>
      told(
        (options) => rpc.watchEntries(request, options),
        call,
        ({ event }) => (event.case === "change" ? event.value : undefined),
      ),
  });
}
