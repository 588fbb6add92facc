/**
 * The data keys at hand. A payload is sealed and opened without waiting, so the key must be there before: reading brings the keys of all that is read (see sealing-db.ts), and a
 * body that seals for an organisation whose key is not at hand is undone, gets the key, and runs again. That happens once for each organisation, process and rotation.
 */
import { createSecretKey, type KeyObject, randomBytes } from "node:crypto";
import type { Logger } from "pino";
import type { Clock } from "../clock.ts";
import type { Db, Queryable, Tx } from "../db/db.ts";
import type { Ids } from "../ids.ts";
import {
  activeKey,
  countSeals,
  findKeyById,
  findVault,
  insertKey,
  type KeyRow,
  KeyState,
  keysChangedAfter,
  nextEpoch,
  retireKey,
  type VaultRow,
  vaultTopic,
} from "./key-store.ts";
import { type MasterKey, unwrap, wrap } from "./master-key.ts";
import { type DataKey, decrypt, encrypt, headerOf, keyDropped, notAuthentic, openPlain, type Vault } from "./sealed.ts";
import { strictTables } from "./walk-store.ts";

/** A body seals for an organisation whose data key is not at hand. */
export class KeyNeeded extends Error {
  override readonly name = "KeyNeeded";
  readonly orgId: string;

  constructor(orgId: string) {
    super(`the data key of ${orgId} is not at hand`);
    this.orgId = orgId;
  }
}

/** What is known of a data key; without `key` it was dropped. */
export type Known = { readonly orgId: string; readonly generation: number; readonly key: KeyObject | undefined };

type Active = DataKey & { readonly generation: number; seals: number };

/** What has the vault work: `seal` and `open` for everybody, the rest for the server's own upkeep. */
export type Keyring = Vault & {
  readonly masters: readonly MasterKey[];
  /** The row of the vault as it was read last. */
  state(): VaultRow;
  /** Makes the organisation's active key if it has none, and has it at hand. */
  ensure(orgId: string): Promise<void>;
  /** What is known of a key, without waiting. */
  known(keyId: string): Known | undefined;
  /** Reads the keys that rows name and that are not at hand. A key that does not exist stays unknown. */
  bring(db: Queryable, keyIds: readonly string[]): Promise<void>;
  /** Hears of what other servers, and this one, have changed. */
  refresh(): Promise<void>;
  /** Refreshes until the signal aborts: at every ring, and every few seconds. */
  follow(signal: AbortSignal): Promise<void>;
  /** Writes down how much was sealed. */
  close(): Promise<void>;
};

type Needs = {
  readonly db: Db;
  readonly masters: readonly MasterKey[];
  readonly ids: Ids;
  readonly clock: Clock;
  readonly log: Logger;
  readonly row: VaultRow;
};

const keyBytes = 32;
/** Behind the bell, which can be lost with a connection. */
export const refreshMs = 5_000;
/**
 * NIST SP 800-38D, 8.3: with random nonces of 96 bits a key seals at most 2^32 payloads. It is retired at 2^30 that are written down; what is not written down yet is less than 2^20 for each
 * server that runs or was killed, so that it would take 3,000 kills at the worst moment to pass the limit.
 */
const retireAt = 2 ** 30;
const sealsNoted = 2 ** 20;

/** What is authenticated when a data key is wrapped. */
export const nameOfKey = ({ org_id, key_id }: Pick<KeyRow, "org_id" | "key_id">): string => `${org_id}\0${key_id}`;

/** Opens the keys of this database; its row says that it is encrypted. */
export function createKeyring({ db, masters, ids, clock, log, row }: Needs): Keyring {
  let state = row;
  let strict: ReadonlySet<string> | undefined;
  let refreshing: Promise<void> = Promise.resolve();
  const keys = new Map<string, Known>();
  const active = new Map<string, Active>();
  const coming = new Map<string, Promise<void>>();
  const notes = new Set<Promise<void>>();

  function learn(found: KeyRow): Known {
    const before = keys.get(found.key_id);
    // What was dropped stays so, however late an earlier reading of it comes back.
    if (before && !before.key) return before;
    const known: Known = {
      orgId: found.org_id,
      generation: found.generation,
      key: found.wrapped ? (before?.key ?? unwrapKey(masters, found, found.wrapped)) : undefined,
    };
    keys.set(found.key_id, known);
    return known;
  }

  async function make(tx: Tx, orgId: string): Promise<KeyRow> {
    const vault = (await findVault(tx))!;
    const before = await activeKey(tx, orgId);
    if (before && before.generation >= vault.generation) return before;
    if (before) await retireKey(tx, before.key_id, await nextEpoch(tx));
    const named = { org_id: orgId, key_id: ids.next("dky") };
    const wrapped = wrap(masterOf(masters, vault.master_id), nameOfKey(named), randomBytes(keyBytes));
    const { generation, master_id } = vault;
    await insertKey(tx, { ...named, generation, master_id, wrapped }, clock.now());
    // Whoever was first.
    return (await activeKey(tx, orgId))!;
  }

  async function ensure(orgId: string): Promise<void> {
    const found = await db.tx((tx) => make(tx, orgId));
    const { key } = learn(found);
    if (key) active.set(orgId, { keyId: found.key_id, key, generation: found.generation, seals: 0 });
  }

  /** Counts in steps, since every step is a transaction. */
  function note(one: Active): void {
    const seals = one.seals;
    one.seals = 0;
    const noted = db
      .tx(async (tx) => {
        const all = await countSeals(tx, one.keyId, seals);
        if (all >= retireAt) await retireKey(tx, one.keyId, await nextEpoch(tx));
      })
      .catch((error: unknown) => log.error({ err: error }, "how much a data key has sealed could not be written down"))
      .finally(() => notes.delete(noted));
    notes.add(noted);
  }

  async function readAgain(): Promise<void> {
    const now = await findVault(db.query);
    if (!now || (strict && now.epoch === state.epoch)) return;
    for (const changed of await keysChangedAfter(db.query, state.epoch)) {
      if (keys.has(changed.key_id) || changed.state === KeyState.dropped) learn(changed);
      if (active.get(changed.org_id)?.keyId === changed.key_id) forget(changed.org_id);
    }
    strict = await strictTables(db.query);
    state = now;
  }

  /** One after another, so that none goes back behind another. */
  function refresh(): Promise<void> {
    const next = refreshing.catch(() => {}).then(readAgain);
    refreshing = next.catch(() => {});
    return next;
  }

  function forget(orgId: string): void {
    const one = active.get(orgId);
    active.delete(orgId);
    if (one && one.seals > 0) note(one);
  }

  return {
    encrypts: true,
    masters,
    state: () => state,
    seal(place, bytes) {
      const one = active.get(place.orgId);
      if (!one || one.generation < state.generation) throw new KeyNeeded(place.orgId);
      if (++one.seals >= sealsNoted) note(one);
      return encrypt(one, place, bytes);
    },
    open(place, sealed) {
      const header = headerOf(sealed);
      if (!header) throw notAuthentic(place, "UNKNOWN_FORMAT");
      if (!header.encrypted) {
        if (strict?.has(place.table)) throw notAuthentic(place, "NOT_ENCRYPTED");
        return openPlain(place, sealed);
      }
      const known = keys.get(header.keyId);
      if (!known || known.orgId !== place.orgId) throw notAuthentic(place, "UNKNOWN_KEY");
      if (!known.key) throw keyDropped(place);
      return decrypt({ keyId: header.keyId, key: known.key }, place, sealed);
    },
    ensure(orgId) {
      const under = coming.get(orgId) ?? ensure(orgId).finally(() => coming.delete(orgId));
      coming.set(orgId, under);
      return under;
    },
    known: (keyId) => keys.get(keyId),
    async bring(from, keyIds) {
      for (const keyId of keyIds) {
        const found = await findKeyById(from, keyId);
        if (found) learn(found);
      }
    },
    refresh,
    async follow(signal) {
      const bell = db.listen(vaultTopic, signal);
      while (!signal.aborted) {
        await refresh().catch((error: unknown) =>
          log.error({ err: error }, "the vault's keys could not be read again"),
        );
        await bell.wait(refreshMs, signal).catch(() => {});
      }
    },
    async close() {
      for (const orgId of [...active.keys()]) forget(orgId);
      await Promise.all(notes);
    },
  };
}

/** The master key of this id. Throws when the server was not given it. */
export function masterOf(masters: readonly MasterKey[], id: string): MasterKey {
  const master = masters.find((one) => one.id === id);
  if (!master) throw new Error(`data keys are wrapped by the master key ${id}, which this server was not given`);
  return master;
}

const unwrapKey = (masters: readonly MasterKey[], found: KeyRow, wrapped: Uint8Array): KeyObject =>
  createSecretKey(unwrap(masterOf(masters, found.master_id), nameOfKey(found), wrapped));
