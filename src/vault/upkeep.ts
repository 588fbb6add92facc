/** What the vault does in the background, a little at a time and on one server: retiring data keys, wrapping them anew, and sealing what is there already. */
import type { Clock } from "../clock.ts";
import type { Db } from "../db/db.ts";
import { takeLease } from "../lease.ts";
import { hasStale, nextEpoch, retireStale, rewrapKey, type VaultRow, wrappedBy } from "./key-store.ts";
import { type Keyring, masterOf, nameOfKey, refreshMs } from "./keyring.ts";
import { unwrap, wrap } from "./master-key.ts";
import { beginWalk, walkOn } from "./walk.ts";
import { listWalks, putWalk, type SealedTable, type WalkRow } from "./walk-store.ts";

/** How often {@link createUpkeep}'s work is to be done. */
export const upkeepMs = 200;
/** For so long it works at once; the rest of the time the database is for others. */
const roundMs = 200;
/** Longer than a round, and so long nobody goes on with the work of a server that was killed. Who loses it in the middle of a round does no harm. */
const leaseMs = 2_000;
const keysAtOnce = 200;

/**
 * After a change of the keys another server may write with those of before until it has heard of it. A walk is done when it found nothing in a pass that began
 * later than this after the change.
 */
export const settleMs: number = 3 * refreshMs;

type Needs = {
  readonly db: Db;
  readonly keyring: Keyring;
  readonly tables: readonly SealedTable[];
  readonly clock: Clock;
  readonly serverId: string;
  readonly stopping: AbortSignal;
};

/** One round of work. It costs nothing while there is nothing to do, and does nothing while another server does it. */
export function createUpkeep({ db, keyring, tables, clock, serverId, stopping }: Needs): () => Promise<void> {
  /** With this epoch nothing was left to do. */
  let idleEpoch = -1;
  /** Not the server's id: a server that holds a lease by that name counts as alive, and its tasks as cared for. */
  const owner = `vault:${serverId}`;

  return async () => {
    const vault = keyring.state();
    if (vault.epoch === idleEpoch) return;
    const lease = await db.tx((tx) => takeLease(tx, "vault", owner, clock.now(), leaseMs));
    if (!lease) return;
    const endMs = performance.now() + roundMs;
    const mayGoOn = () => performance.now() < endMs && !stopping.aborted;
    let left = await retireOld(db, vault, mayGoOn);
    left = (await rewrapOld(db, keyring, vault, mayGoOn)) || left;
    left = (await walkTables(vault, mayGoOn)) || left;
    if (!left && keyring.state().epoch === vault.epoch) idleEpoch = vault.epoch;
  };

  /** True when there is more to do. */
  async function walkTables(vault: VaultRow, mayGoOn: () => boolean): Promise<boolean> {
    const walks = new Map((await listWalks(db.query)).map((walk) => [walk.table_name, walk]));
    let left = false;
    for (const table of tables) {
      const found = walks.get(table.table);
      const isOurs = found?.generation === vault.reseal_generation;
      let walk = found && isOurs ? found : beginWalk(table.table, vault.reseal_generation, found);
      while (walk.done_ms === null) {
        const isSettled = clock.now() >= vault.rotate_ms + settleMs;
        const mustWait = walk.passes > 0 && walk.after_key === "" && !isSettled;
        if (mustWait || !mayGoOn()) {
          left = true;
          break;
        }
        walk = await goOn(table, walk, isSettled);
      }
    }
    return left;
  }

  async function goOn(table: SealedTable, walk: WalkRow, isSettled: boolean): Promise<WalkRow> {
    // Only a pass that began after the change had settled tells that nothing is left.
    const next = await walkOn({ db, keyring, table }, walk);
    if (next.passes === walk.passes) return next;
    const isDone = isSettled && next.found === 0;
    const now = clock.now();
    const ended: WalkRow = {
      ...next,
      found: 0,
      ...(isDone && { done_ms: now, strict_ms: walk.strict_ms ?? now }),
    };
    await db.tx(async (tx) => {
      await putWalk(tx, ended);
      if (isDone) await nextEpoch(tx);
    });
    return ended;
  }
}

/** Retires the keys of earlier generations; their organisations get others as they write. True when there are more. */
async function retireOld(db: Db, { generation }: VaultRow, mayGoOn: () => boolean): Promise<boolean> {
  while (await hasStale(db.query, generation)) {
    if (!mayGoOn()) return true;
    await db.tx(async (tx) => retireStale(tx, generation, await nextEpoch(tx), keysAtOnce));
  }
  return false;
}

/** Wraps by the master key in force what another one has wrapped. True when there are more. */
async function rewrapOld(db: Db, keyring: Keyring, vault: VaultRow, mayGoOn: () => boolean): Promise<boolean> {
  const { masters } = keyring;
  const inForce = masterOf(masters, vault.master_id);
  for (const master of masters.filter(({ id }) => id !== inForce.id)) {
    for (let wrapped = keysAtOnce; wrapped === keysAtOnce; ) {
      if (!mayGoOn()) return true;
      wrapped = await db.tx(async (tx) => {
        const rows = await wrappedBy(tx, master.id, keysAtOnce);
        for (const row of rows) {
          const name = nameOfKey(row);
          await rewrapKey(tx, row.key_id, inForce.id, wrap(inForce, name, unwrap(master, name, row.wrapped!)));
        }
        return rows.length;
      });
    }
  }
  return false;
}
