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
import type { Queryable, Tx } from "../db/db.ts";
import { badField, Fault, notFound } from "../errors.ts";
import type { Caller } from "../rpc/caller.ts";
import { type Command, command } from "../rpc/command.ts";
import { feed } from "../rpc/feed.ts";
import { readPage } from "../rpc/page.ts";
import { query } from "../rpc/query.ts";
import { seesWholeOrg } from "../rpc/scope.ts";
import { across, type Looked } from "./across.ts";
import { changeMemory } from "./change.ts";
import { done, written } from "./handler.ts";
import { maxNamespacesPerAgent } from "./limits.ts";
import { pageOfEntries } from "./list.ts";
import { type EntryMessage, toEntry, writtenEntry } from "./message.ts";
import { agentOf, type Use } from "./owner.ts";
import { emptyHead, type Outcome, quotaExceeded } from "./plan.ts";
import { cursorsOf, shown, startOf } from "./shared-foreign.ts";
import { refuseForbidden } from "./shared-policy.ts";
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
    query(app, async (req, { db, caller, now, orgId: own }) => {
      const { orgId, foreign } = looked(own);
      const found = await findSharedEntry(db, orgId, placeOf(req, ""), true);
      const row = present(found, now);
      if (!found || !row || (foreign && row.public === 0)) throw notFound("shared entry", req.key);
      await mayRead(app, db, { orgId, foreign }, req.namespace, { caller, agentId: found.owner_agent_id, now });
      const entry = shown(foreign, toEntry(app.vault, { orgId, memoryId: found.memory_id }, row));
      return { sharedEntry: toShared(orgId, found.owner_agent_id, entry, row.public !== 0) };
    }),
  ),

  listSharedNamespaces: across((looked) =>
    query(app, async (req, { db, orgId: own }) => {
      const { orgId, foreign } = looked(own);
      const filter = { ownerAgentId: req.ownerAgentId, publicOnly: foreign };
      const page = await readPage(
        app.cursors,
        ["ListSharedNamespaces", orgId, req.ownerAgentId, String(foreign)],
        req,
        (after, limit) => listNamespaces(db, orgId, filter, after, limit),
        ({ name }) => [name],
      );
      return { namespaces: page.rows.map((row) => toNamespace(row, foreign)), nextPageToken: page.nextPageToken };
    }),
  ),

  listSharedEntries: across((looked) =>
    query(app, async (req, { db, caller, now, orgId: own }) => {
      const { orgId, foreign } = looked(own);
      const found = await namespaceFor(db, { orgId, foreign }, req.namespace);
      await mayRead(app, db, { orgId, foreign }, req.namespace, { caller, agentId: found.agent_id, now });
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
    feed(app, async (req, { db, caller, orgId: own }) => {
      type Message = MessageInitShape<typeof WatchSharedEntriesResponseSchema>;
      const { orgId, foreign } = looked(own);
      const { namespace, prefix } = req;
      const found = await namespaceFor(db, { orgId, foreign }, namespace);
      const memory = { orgId, memoryId: found.memory_id };
      const cursors = cursorsOf(app, memory);
      const afterRevision = startOf(req, foreign, cursors.decode);
      const at = (revision: number) => ({
        revision: BigInt(foreign ? 0 : revision),
        cursor: cursors.encode(revision),
      });
      const check = () =>
        mayRead(app, db, { orgId, foreign }, namespace, { caller, agentId: found.agent_id, now: app.clock.now() });
      await check();
      return logReader<Message>(app, {
        ...{ memory, namespace, prefix, afterRevision, exact: req.afterCursor !== "" },
        ...(foreign && { cursorOf: cursors.encode }),
        async messagesOf(changes) {
          await check();
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

/** The namespace, if the caller may know of it: of another organisation one with something public. */
async function namespaceFor(db: Queryable, { orgId, foreign }: Looked, namespace: string): Promise<NamespaceRow> {
  const found = await findNamespace(db, orgId, namespace);
  if (!found || (foreign && found.public_entries === 0)) throw noNamespace(namespace);
  return found;
}

/** POLICY_DENIED where the organisation forbids it. Who looks from another one sees what is public, and is none of those its policies can name. */
async function mayRead(
  app: App,
  db: Queryable,
  { orgId, foreign }: Looked,
  namespace: string,
  asked: Pick<Use, "caller" | "agentId" | "now">,
): Promise<void> {
  if (!foreign) await refuseForbidden(app, db, { ...asked, orgId, action: "read_memory" }, namespace);
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
  { tx, caller, orgId, now }: Command,
  wish: SetWish | DeleteWish,
  agentId: string,
  mayCreate: boolean,
): Promise<Outcome> {
  const { namespace } = wish.place;
  const isOwn = async () => {
    const found = await findSharedEntry(tx, orgId, wish.place, false);
    if (found && found.owner_agent_id !== agentId) throw ownedByOther(namespace, found.owner_agent_id);
    return found;
  };
  let found = await isOwn();
  if (!found && !mayCreate) throw noNamespace(namespace);
  await refuseForbidden(app, tx, { orgId, caller, agentId, action: "write_memory", now }, namespace);
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

const ownedByOther = (namespace: string, owner: string): Fault =>
  new Fault(
    "POLICY_DENIED",
    `the namespace ${namespace} belongs to the agent ${owner}, and only that one writes there`,
    {
      owner_agent_id: owner,
      action: "write_memory",
    },
  );

const toShared = (
  orgId: string,
  ownerAgentId: string,
  entry: EntryMessage,
  isPublic: boolean,
): MessageInitShape<typeof SharedEntrySchema> => ({ entry, orgId, ownerAgentId, public: isPublic });
