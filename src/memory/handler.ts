import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import type {
  BatchResultSchema,
  MemoryService,
  WatchEntriesResponseSchema,
} from "../../gen/moltwire/memory/v1/memory_service_pb.ts";
import type { App } from "../app.ts";
import { lockAgent } from "../bus/agent-store.ts";
import { asked, type Keeping, keepingOf, readKeepingOf } from "../bus/policy/keeping.ts";
import type { Tx } from "../db/db.ts";
import { Fault, notFound } from "../errors.ts";
import { command } from "../rpc/command.ts";
import { feed } from "../rpc/feed.ts";
import { largestAnswerBytes } from "../rpc/page.ts";
import { query } from "../rpc/query.ts";
import { changeMemory } from "./change.ts";
import { defaultNamespace } from "./limits.ts";
import { pageOfEntries } from "./list.ts";
import { type EntryRow, entryBytes, toEntry, writtenEntry } from "./message.ts";
import { agentOf, decideUse, findOwner, findOwnerAndEntry, type Use } from "./owner.ts";
import { type Outcome, placeId } from "./plan.ts";
import { insertMemory, present, readPlaces, stateOf } from "./store.ts";
import { tooLarge } from "./value.ts";
import { logReader, toChange } from "./watch.ts";
import { batchWish, deleteWish, placeOf, type SetWish, setWish } from "./wish.ts";

export const memoryHandler = (app: App): ServiceImpl<typeof MemoryService> => ({
  setEntry: command(app, async (req, given) => {
    const { tx, orgId, caller, now } = given;
    const wish = setWish(req.write!, "write");
    const held = written(
      await changeOne(app, tx, keepingOf(app, given), wish, useOf(orgId, caller, req.agentId, "write_memory", now)),
    );
    const { description, tags } = wish.content;
    return { entry: writtenEntry(wish.place, held, { description, tags }) };
  }),

  getEntry: query(app, async (req, given) => {
    const { db, orgId, caller, now } = given;
    const place = placeOf(req, "");
    const use = useOf(orgId, caller, req.agentId, "read_memory", now);
    const found = await findOwnerAndEntry(db, orgId, use.agentId, place, true);
    await (await decideUse(app, readKeepingOf(app, given), use, found)).refuse([place.namespace]);
    const row = present(found, now);
    if (!row) throw notFound("entry", place.key);
    return { entry: toEntry(app.vault, ownMemory(use), row) };
  }),

  listEntries: query(app, async (req, given) => {
    const { db, orgId, caller, now } = given;
    const namespace = req.namespace || defaultNamespace;
    const use = useOf(orgId, caller, req.agentId, "read_memory", now);
    // Before the entries: what changes meanwhile is told to who watches after it.
    const owner = await findOwner(db, orgId, use.agentId);
    await (await decideUse(app, readKeepingOf(app, given), use, owner)).refuse([namespace]);
    const memory = ownMemory(use);
    const listed = { namespace, publicOnly: false, now };
    const { rows, nextPageToken } = await pageOfEntries(app, db, memory, ["ListEntries"], req, listed);
    const entries = rows.map((row) => toEntry(app.vault, memory, row));
    return { entries, nextPageToken, revision: BigInt(owner?.head ?? 0) };
  }),

  deleteEntry: command(app, async (req, given) => {
    const { tx, orgId, caller, now } = given;
    const wish = deleteWish(req, "");
    const use = useOf(orgId, caller, req.agentId, "write_memory", now);
    const outcome = await changeOne(app, tx, keepingOf(app, given), wish, use);
    const { revision } = done(outcome);
    return { deleted: revision > 0, revision: BigInt(revision) };
  }),

  batchGetEntries: query(app, async (req, given) => {
    const { db, orgId, caller, now } = given;
    const places = req.keys.map((key, n) => placeOf(key, `keys[${n}]`));
    const use = useOf(orgId, caller, req.agentId, "read_memory", now);
    const owner = await findOwner(db, orgId, use.agentId);
    const { refuse } = await decideUse(app, readKeepingOf(app, given), use, owner);
    await refuse(places.map(({ namespace }) => namespace));
    const memory = ownMemory(use);
    const rows = await readPlaces(db, memory, places, true);
    const entries = rows.map((row) => present(row, now)).filter((row) => row !== undefined);
    const found = new Map(entries.map((row) => [placeId(row), row]));
    const asked = places.map((place) => found.get(placeId(place)));
    checkAnswer(asked);
    const results = asked.map((row) => (row ? { entry: toEntry(app.vault, memory, row) } : {}));
    return { results, revision: BigInt(rows[0]?.head ?? 0) };
  }),

  batchSetEntries: command(app, async (req, given) => {
    const { tx, orgId, caller, now } = given;
    const wishes = req.changes.map((change, n) => unlessAlone(req.atomic, () => batchWish(change, `changes[${n}]`)));
    const use = useOf(orgId, caller, req.agentId, "write_memory", now);
    const namespaces = req.changes.map(({ change }) => change.value!.namespace || defaultNamespace);
    const owner = await findOwner(tx, orgId, use.agentId);
    await (await decideUse(app, keepingOf(app, given), use, owner)).refuse(namespaces);
    const memory = ownMemory(use);
    const create = () => createOwn(tx, use);
    const outcomes = await changeMemory(tx, app, { memory, wishes, now, atomic: req.atomic, create });
    return { results: outcomes.map(toResult) };
  }),

  watchEntries: feed(app, async (req, given) => {
    const { db, orgId, caller } = given;
    type Message = MessageInitShape<typeof WatchEntriesResponseSchema>;
    const { namespace, prefix, afterRevision } = req;
    const useNow = () => useOf(orgId, caller, req.agentId, "read_memory", app.clock.now());
    const agentId = agentOf(caller, req.agentId);
    const keeping = readKeepingOf(app, given);
    const look = async (by: Keeping) => decideUse(app, by, useNow(), await findOwner(db, orgId, agentId));
    await (await look(keeping)).refuse([namespace || defaultNamespace]);
    const memory = { orgId, memoryId: agentId };
    return logReader<Message>(app, {
      ...{ memory, namespace, prefix, afterRevision },
      async messagesOf(changes) {
        const use = await look(asked(keeping));
        if (namespace) await use.refuse([namespace]);
        const permitted = await use.permits(changes.map((change) => change.namespace));
        const seen = changes.filter((change) => permitted.has(change.namespace));
        return seen.map((row) => ({
          revision: BigInt(row.revision),
          event: { case: "change", value: toChange(app, memory, row) },
        }));
      },
      checkpoint: (revision, nowMs) => ({
        revision: BigInt(revision),
        event: { case: "checkpoint", value: timestampFromMs(nowMs) },
      }),
      ended: () => {},
    });
  }),
});

/** PAYLOAD_TOO_LARGE when entries read together come to more than the server sends. */
function checkAnswer(rows: readonly (EntryRow | undefined)[]): void {
  const bytes = rows.reduce((sum, row) => sum + (row ? entryBytes(row) : 0), 0);
  if (bytes <= largestAnswerBytes) return;
  const message = `the entries come to ${bytes} bytes; at most ${largestAnswerBytes} are answered: ask for fewer at once`;
  throw tooLarge("keys", message, largestAnswerBytes, bytes);
}

const useOf = (orgId: string, caller: Use["caller"], named: string, action: Use["action"], now: number): Use => ({
  orgId,
  caller,
  agentId: agentOf(caller, named),
  action,
  now,
});

/** An agent's own memory has the agent's id. */
const ownMemory = ({ orgId, agentId }: Use) => ({ orgId, memoryId: agentId });

/** Holds the agent, so that it is not deleted meanwhile, and makes its memory. */
async function createOwn(tx: Tx, { orgId, agentId, now }: Use): Promise<void> {
  if (!(await lockAgent(tx, orgId, agentId))) throw notFound("agent", agentId);
  await insertMemory(tx, { orgId, memoryId: agentId, agentId, namespace: null, now });
}

/** One write or deletion, which fails as a whole. */
async function changeOne(
  app: App,
  tx: Tx,
  keeping: Keeping,
  wish: SetWish | ReturnType<typeof deleteWish>,
  use: Use,
): Promise<Outcome> {
  const found = await findOwnerAndEntry(tx, use.orgId, use.agentId, wish.place, false);
  await (await decideUse(app, keeping, use, found)).refuse([wish.place.namespace]);
  const undertaking = { memory: ownMemory(use), wishes: [wish], now: use.now, atomic: true };
  const create = () => createOwn(tx, use);
  const [outcome] = await changeMemory(tx, app, { ...undertaking, state: stateOf([found!]), create });
  return outcome!;
}

/** What came of a wish that did not fail. */
export function done(outcome: Outcome): Exclude<Outcome, { fault: Fault }> {
  if ("fault" in outcome) throw outcome.fault;
  return outcome;
}

/** The entry that a wish wrote. */
export function written(outcome: Outcome) {
  const { held } = done(outcome);
  if (!held) throw new Error("a write that did not fail has written nothing");
  return held;
}

/** A wish, or why it cannot be one where each change is for itself. */
function unlessAlone<T>(atomic: boolean, make: () => T): T | Fault {
  try {
    return make();
  } catch (error) {
    if (atomic || !(error instanceof Fault)) throw error;
    return error;
  }
}

function toResult(outcome: Outcome): MessageInitShape<typeof BatchResultSchema> {
  if (!("fault" in outcome)) return { revision: BigInt(outcome.revision) };
  const { fault, present: presentRevision = 0 } = outcome;
  return { reason: fault.reason, message: fault.message, presentRevision: BigInt(presentRevision) };
}
