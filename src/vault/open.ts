/** The vault at the start of a server: whether the data is encrypted, and whether the keys that were given are those of the data. */
import { randomBytes } from "node:crypto";
import type { Logger } from "pino";
import type { Clock } from "../clock.ts";
import { ConfigError } from "../config.ts";
import type { Db, Tx } from "../db/db.ts";
import { Fault } from "../errors.ts";
import type { Ids } from "../ids.ts";
import { findVault, insertVault, isUntouched, mastersInUse, type VaultRow, vaultTopic } from "./key-store.ts";
import { createKeyring, type Keyring, masterOf, refreshMs } from "./keyring.ts";
import { type MasterKey, unwrap, wrap } from "./master-key.ts";
import { plainVault, type Vault } from "./sealed.ts";
import { sealingDb } from "./sealing-db.ts";
import { beginWalk } from "./walk.ts";
import { putWalk, type SealedTable } from "./walk-store.ts";

/** What is authenticated when the check value is wrapped. */
export const checkName = "check value";
export const newCheck = (master: MasterKey): Uint8Array => wrap(master, checkName, randomBytes(32));

type Needs = {
  readonly db: Db;
  /** The current one, then previous ones; none: nothing is to be encrypted. */
  readonly masters: readonly MasterKey[];
  readonly tables: readonly SealedTable[];
  readonly ids: Ids;
  readonly clock: Clock;
  readonly log: Logger;
};

export type OpenVault = {
  readonly vault: Vault;
  /** The database for everybody who seals and opens. */
  readonly db: Db;
  /** Undefined: nothing is encrypted. */
  readonly keyring: Keyring | undefined;
  /** Keeps up with what other servers do, until the signal aborts. */
  follow(signal: AbortSignal): Promise<void>;
};

/**
 * Opens the vault of a database whose schema is up to date, before anything is written to it. With a master key and data that is not encrypted yet, turns encryption on. Throws a
 * {@link ConfigError} when the keys are not those of the data.
 */
export async function openVault(needs: Needs): Promise<OpenVault> {
  const { db, masters, log } = needs;
  const found = await findVault(db.query);
  const [current] = masters;
  if (!current) {
    if (found) throw keyMissing(found);
    return openPlainVault(db, log);
  }
  const row = found ?? (await db.tx((tx) => turnOn(tx, needs, current)));
  await checkMasters(db, row, masters);
  const keyring = createKeyring({ ...needs, row });
  await keyring.refresh();
  return { vault: keyring, db: sealingDb(db, keyring), keyring, follow: keyring.follow };
}

/** In a database where nothing was written yet there is nothing to seal, and whatever is not encrypted is refused from the beginning. */
async function turnOn(tx: Tx, { tables, clock }: Needs, master: MasterKey): Promise<VaultRow> {
  const now = clock.now();
  const untouched = await isUntouched(tx);
  const first = await insertVault(tx, master.id, newCheck(master), now);
  const row = (await findVault(tx))!;
  const done = { done_ms: now, strict_ms: now };
  if (first === 1 && untouched)
    for (const { table } of tables)
      await putWalk(tx, { ...beginWalk(table, row.reseal_generation, undefined), ...done });
  if (first === 1) tx.ring(vaultTopic);
  return row;
}

async function checkMasters(db: Db, row: VaultRow, masters: readonly MasterKey[]): Promise<void> {
  const given = new Set(masters.map(({ id }) => id));
  if (!given.has(row.master_id)) {
    throw new ConfigError(
      `MOLTWIRE_MASTER_KEY: is not the key of this data, which was encrypted under ${row.master_id}; given: ${[...given].join(", ")}.\n` +
        `  Give that key. To change it, give the new one as MOLTWIRE_MASTER_KEY and that one as MOLTWIRE_MASTER_KEY_PREVIOUS, and then run \`moltwire vault rotate\`.`,
    );
  }
  try {
    unwrap(masterOf(masters, row.master_id), checkName, row.check_value);
  } catch (cause) {
    throw new ConfigError(
      `MOLTWIRE_MASTER_KEY: ${row.master_id} does not open the check value in the database, which was changed.\n  Restore the database from a backup.`,
      { cause },
    );
  }
  const missing = (await mastersInUse(db.query)).filter((id) => !given.has(id));
  if (missing.length > 0) {
    throw new ConfigError(
      `MOLTWIRE_MASTER_KEY_PREVIOUS: lacks ${missing.join(", ")}, by which data keys are still wrapped.\n` +
        "  Give that key until `moltwire vault status` says that no data keys are left to wrap.",
    );
  }
}

const keyMissing = ({ master_id }: VaultRow): ConfigError =>
  new ConfigError(
    `MOLTWIRE_MASTER_KEY: is missing, and this data is encrypted under ${master_id}.\n  Give that key, or its file as MOLTWIRE_MASTER_KEY_FILE.`,
  );

/** Keeps data in the clear, and stops writing it once another server has turned encryption on. */
function openPlainVault(db: Db, log: Logger): OpenVault {
  const plain = plainVault();
  let overtaken = false;
  const vault: Vault = {
    ...plain,
    seal(place, bytes) {
      if (overtaken)
        throw new Fault("SHUTTING_DOWN", "another server encrypts this data, and this one has no master key");
      return plain.seal(place, bytes);
    },
  };
  const look = async () => {
    overtaken = (await findVault(db.query)) !== undefined;
    if (overtaken) log.fatal("another server has turned encryption on: start this one again with MOLTWIRE_MASTER_KEY");
  };
  return {
    vault,
    db,
    keyring: undefined,
    async follow(signal) {
      const bell = db.listen(vaultTopic, signal);
      while (!signal.aborted && !overtaken) {
        await bell.wait(refreshMs, signal).catch(() => {});
        if (!signal.aborted)
          await look().catch((error: unknown) =>
            log.error({ err: error }, "whether data is encrypted could not be read"),
          );
      }
    },
  };
}
