import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import type {
  SharedEntrySchema,
  SharedMemoryService,
  WatchSharedEntriesResponseSchema,
} from "../../gen/moltwire/memory/v1/shared_memory_service_pb.ts";
import type { App } from "../app.ts";
import { findAgent, lockAgent } from "../bus/agent-store.ts";
import { asked, type Keeping, keepingOf, readKeepingOf } from "../bus/policy/keeping.ts";
import type { Tx } from "../db/db.ts";
import { badField, type Fault, notFound } from "../errors.ts";
import { readVisible } from "../queue/page.ts";
import type { Caller } from "../rpc/caller.ts";
import { type Command, command } from "../rpc/command.ts";
import { feed } from "../rpc/feed.ts";
import { type Query, query } from "../rpc/query.ts";
import { seesWholeOrg } from "../rpc/scope.ts";
import { across, type Looked } from "./across.ts";
import { changeMemory } from "./change.ts";
import { done, written } from "./handler.ts";
import { maxNamespacesPerAgent } from "./limits.ts";
import { pageOfEntries } from "./list.ts";
import { type EntryMessage, toEntry, writtenEntry } from "./message.ts";
import { agentOf } from "./owner.ts";
import { emptyHead, type Outcome, quotaExceeded } from "./plan.ts";
import { cursorsOf, shown, startOf } from "./shared-foreign.ts";
import { checkShared, refuseOther, showsShared } from "./shared-policy.ts";
import {
  countNamespaces,
  findNamespace,
  findSharedEntry,
  listNamespaces,
  type NamespaceRow,
  toNamespace,
} from "./shared-store.ts";
import { insertMemory, present, stateOf } from "./store.ts";
import { logReader, publicChange, toChange } from "./watch.ts";
import { type DeleteWish, deleteWish, placeOf, type SetWish, setWish } from "./wish.ts";

export const sharedMemoryHandler = (app: App): ServiceImpl<typeof SharedMemoryService> => ({
  publishSharedEntry: command(app, async (req, given) => {
    if (req.write!.namespace === "") throw badField("write.namespace", "name the namespace to share in");
    const wish = setWish(req.write!, "write", req.public);
    const agentId = await actingOwner(given.tx, given.caller, given.orgId, req.agentId);
    const held = written(await changeShared(app, given, wish, agentId, true));
    const { description, tags } = wish.content;
    const entry = writtenEntry(wish.place, held, { description, tags });
    return { sharedEntry: toShared(given.orgId, agentId, entry, held.isPublic) };
  }),

  getSharedEntry: across((looked) =>
    query(app, async (req, given) => {
      const { db, now } = given;
      const { orgId, foreign } = looked(given.orgId);
      const found = await findSharedEntry(db, orgId, placeOf(req, ""), true);
      const row = present(found, now);
      if (!foreign) await mayRead(app, given, req.namespace, found?.owner_agent_id);
      if (!found || !row || (foreign && row.public === 0)) throw notFound("shared entry", req.key);
      const entry = shown(foreign, toEntry(app.vault, { orgId, memoryId: found.memory_id }, row));
      return { sharedEntry: toShared(orgId, found.owner_agent_id, entry, row.public !== 0) };
    }),
  ),

  listSharedNamespaces: across((looked) =>
    query(app, async (req, given) => {
      const { db, caller, now } = given;
      const { orgId, foreign } = looked(given.orgId);
      const filter = { ownerAgentId: req.ownerAgentId, publicOnly: foreign };
      const keeping = readKeepingOf(app, given);
      const page = await readVisible(
        app.cursors,
        ["ListSharedNamespaces", orgId, req.ownerAgentId, String(foreign)],
        req,
        (after, limit) => listNamespaces(db, orgId, filter, after, limit),
        async ({ name: namespace, agent_id: agentId }) =>
          foreign || showsShared(app, keeping, { orgId, caller, agentId, action: "read_memory", namespace, now }),
        ({ name }) => [name],
      );
      return { namespaces: page.rows.map((row) => toNamespace(row, foreign)), nextPageToken: page.nextPageToken };
    }),
  ),

  listSharedEntries: across((looked) =>
    query(app, async (req, given) => {
      const { db, now } = given;
      const { orgId, foreign } = looked(given.orgId);
      const found = await namespaceFor(app, given, { orgId, foreign }, req.namespace);
      const memory = { orgId, memoryId: found.memory_id };
      const listed = { namespace: req.namespace, publicOnly: foreign, now };
      const scope = ["ListSharedEntries", String(foreign)];
      const { rows, nextPageToken } = await pageOfEntries(app, db, memory, scope, req, listed);
      const sharedEntries = rows.map((row) =>
        toShared(orgId, found.agent_id, shown(foreign, toEntry(app.vault, memory, row)), row.public !== 0),
      );
      const cursor = cursorsOf(app, memory).encode(found.head);
      return { sharedEntries, nextPageToken, revision: BigInt(foreign ? 0 : found.head), cursor };
    }),
  ),

  deleteSharedEntry: command(app, async (req, given) => {
    const agentId = await actingOwner(given.tx, given.caller, given.orgId, req.agentId);
    const { revision } = done(await changeShared(app, given, deleteWish(req, ""), agentId, false));
    return { deleted: revision > 0, revision: BigInt(revision) };
  }),

  watchSharedEntries: across((looked) =>
    feed(app, async (req, given) => {
      type Message = MessageInitShape<typeof WatchSharedEntriesResponseSchema>;
      const { orgId, foreign } = looked(given.orgId);
      const { namespace, prefix } = req;
      const found = await namespaceFor(app, given, { orgId, foreign }, namespace);
      const memory = { orgId, memoryId: found.memory_id };
      const cursors = cursorsOf(app, memory);
      const afterRevision = startOf(req, foreign, cursors.decode);
      const at = (revision: number) => ({
        revision: BigInt(foreign ? 0 : revision),
        cursor: cursors.encode(revision),
      });
      return logReader<Message>(app, {
        ...{ memory, namespace, prefix, afterRevision, exact: req.afterCursor !== "" },
        ...(foreign && { cursorOf: cursors.encode }),
        async messagesOf(changes) {
          if (!foreign) await mayRead(app, { ...given, now: app.clock.now() }, namespace, found.agent_id, asked);
          return changes.flatMap((row): Message[] => {
            const change = foreign ? publicChange(app, memory, row) : toChange(app, memory, row);
            const told = { change: change!, public: row.public !== 0 };
            return change ? [{ ...at(row.revision), event: { case: "change", value: told } }] : [];
          });
        },
        checkpoint: (revision, nowMs) => ({
          ...at(revision),
          event: { case: "checkpoint", value: timestampFromMs(nowMs) },
        }),
        ended: () => {
          throw noNamespace(namespace);
        },
      });
    }),
  ),
});

const noNamespace = (namespace: string): Fault => notFound("namespace", namespace);

/** The namespace, if the caller may read it: of another organisation one with something public. */
async function namespaceFor(
  app: App,
  given: Query,
  { orgId, foreign }: Looked,
  namespace: string,
): Promise<NamespaceRow> {
  const found = await findNamespace(given.db, orgId, namespace);
  if (!foreign) await mayRead(app, given, namespace, found?.agent_id);
  if (!found || (foreign && found.public_entries === 0)) throw noNamespace(namespace);
  return found;
}

/** POLICY_DENIED by the caller's organisation. Who looks from another one sees what is public, and is none of those that its policies can name. */
async function mayRead(
  app: App,
  given: Query,
  namespace: string,
  ownerId = "",
  how: (keeping: Keeping) => Keeping = (keeping) => keeping,
): Promise<void> {
  const { orgId, caller, now } = given;
  const use = { orgId, caller, agentId: ownerId, action: "read_memory", namespace, now } as const;
  await checkShared(app, how(readKeepingOf(app, given)), use);
}

/** The agent that writes: the caller, or the one that an administrator names. NOT_FOUND for any other. */
async function actingOwner(tx: Tx, caller: Caller, orgId: string, named: string): Promise<string> {
  const agentId = agentOf(caller, named);
  const known = seesWholeOrg(caller) ? await findAgent(tx, orgId, agentId) : agentId === caller.agentId;
  if (!known) throw notFound("agent", agentId);
  return agentId;
}

/** One write or deletion in a namespace of the agent. A write into a namespace that is not there yet makes it. */
async function changeShared(
  app: App,
  given: Command,
  wish: SetWish | DeleteWish,
  agentId: string,
  mayCreate: boolean,
): Promise<Outcome> {
  const { tx, caller, orgId, now } = given;
  const { namespace } = wish.place;
  const keeping = keepingOf(app, given);
  const use = { orgId, caller, agentId, action: "write_memory", namespace, now } as const;
  const isOwn = async () => {
    const found = await findSharedEntry(tx, orgId, wish.place, false);
    const ownerId = found?.owner_agent_id ?? agentId;
    if (ownerId !== agentId) await refuseOther(app, keeping, { ...use, agentId: ownerId });
    return found;
  };
  let found = await isOwn();
  if (!found && !mayCreate) {
    await checkShared(app, keeping, { ...use, agentId: "" });
    throw noNamespace(namespace);
  }
  await checkShared(app, keeping, { ...use, founds: !found });
  let memoryId = found?.memory_id;
  if (memoryId === undefined) {
    memoryId = app.ids.next("mem");
    // Another agent may have made it since: then it is that one's.
    if (!(await createShared(tx, { orgId, memoryId, agentId, namespace, now }))) {
      found = await isOwn();
      memoryId = found!.memory_id;
    }
  }
  const state = (found && stateOf([found])) ?? { head: emptyHead, entries: new Map() };
  const create = () => Promise.reject(noNamespace(namespace));
  const memory = { orgId, memoryId };
  const [outcome] = await changeMemory(tx, app, { memory, wishes: [wish], now, atomic: true, state, create });
  return outcome!;
}

/** Holds the agent, so that it is not deleted meanwhile and its namespaces are counted one after another; false when the namespace is there by now. */
async function createShared(tx: Tx, made: Parameters<typeof insertMemory>[1]): Promise<boolean> {
  const { orgId, agentId } = made;
  if (!(await lockAgent(tx, orgId, agentId))) throw notFound("agent", agentId);
  const owned = await countNamespaces(tx, orgId, agentId, maxNamespacesPerAgent);
  if (owned >= maxNamespacesPerAgent)
    throw quotaExceeded("shared_namespaces", maxNamespacesPerAgent, owned, "write into one of them");
  return (await insertMemory(tx, made)) === 1;
}

const toShared = (
  orgId: string,
  ownerAgentId: string,
  entry: EntryMessage,
  isPublic: boolean,
): MessageInitShape<typeof SharedEntrySchema> => ({ entry, orgId, ownerAgentId, public: isPublic });
