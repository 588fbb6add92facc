/** The tables `vault` and `vault_key`: whether this data is encrypted, and by which keys. */
import { type Queryable, sql, type Tx } from "../db/db.ts";

/** The one row of `vault`; see its migration. */
export type VaultRow = {
  readonly master_id: string;
  readonly check_value: Uint8Array;
  readonly epoch: number;
  readonly generation: number;
  readonly reseal_generation: number;
  readonly create_ms: number;
  /** When the last rotation began; before one, as `create_ms`. */
  readonly rotate_ms: number;
};

export const KeyState = { active: 1, retired: 2, dropped: 3 } as const;

/** An organisation's data key as it is stored; `wrapped` is null once it was dropped. */
export type KeyRow = {
  readonly org_id: string;
  readonly key_id: string;
  readonly state: number;
  readonly generation: number;
  readonly master_id: string;
  readonly wrapped: Uint8Array | null;
};

/** Rung after every server has to look at the keys again. */
export const vaultTopic = "vault";

const vaultColumns = sql`master_id, check_value, epoch, generation, reseal_generation, create_ms, rotate_ms`;
const keyColumns = sql`org_id, key_id, state, generation, master_id, wrapped`;

/** Undefined: nothing here is encrypted. */
export const findVault = (db: Queryable): Promise<VaultRow | undefined> =>
  db.one<VaultRow>(sql`select ${vaultColumns} from vault where one = 1`);

/** Says that from now on all is encrypted; 0 when another server was first. */
export const insertVault = (tx: Tx, masterId: string, check: Uint8Array, now: number): Promise<number> =>
  tx.run(sql`
    insert into vault (one, ${vaultColumns}) values (1, ${masterId}, ${check}, 1, 1, 0, ${now}, ${now}) on conflict do nothing`);

/** Whether anything was ever written here but what a start writes. */
export const isUntouched = async (db: Queryable): Promise<boolean> =>
  (await db.one(sql`select 1 as found from organization limit 1`)) === undefined;

/** Counts one more change that every server has to hear of, and tells them. Locks the row, so that such changes come one after another. */
export async function nextEpoch(tx: Tx): Promise<number> {
  const row = await tx.one<{ epoch: number }>(sql`update vault set epoch = epoch + 1 where one = 1 returning epoch`);
  if (!row) throw new Error("the row of the vault is gone");
  tx.ring(vaultTopic);
  return row.epoch;
}

/** Begins a new generation of data keys, wrapped by another master key. */
export const beginGeneration = (
  tx: Tx,
  masterId: string,
  check: Uint8Array,
  reseal: boolean,
  now: number,
): Promise<number> =>
  tx.run(sql`
    update vault set master_id = ${masterId}, check_value = ${check}, rotate_ms = ${now}, generation = generation + 1,
      reseal_generation = case when ${reseal ? 1 : 0} = 1 then generation + 1 else reseal_generation end where one = 1`);

/** The key that an organisation's new payloads are sealed with; by the unique index on active ones. */
export const activeKey = (db: Queryable, orgId: string): Promise<KeyRow | undefined> =>
  db.one<KeyRow>(sql`select ${keyColumns} from vault_key where org_id = ${orgId} and state = 1`);

/** Adds an active key; 0 when the organisation has one: on PostgreSQL it waits for the commit of whoever makes one just now. */
export const insertKey = (
  tx: Tx,
  key: Omit<KeyRow, "state" | "wrapped"> & { readonly wrapped: Uint8Array },
  now: number,
): Promise<number> =>
  tx.run(sql`
    insert into vault_key (${keyColumns}, seals, create_ms, epoch)
    values (${key.org_id}, ${key.key_id}, 1, ${key.generation}, ${key.master_id}, ${key.wrapped}, 0, ${now}, 0) on conflict do nothing`);

/** By its id alone, as a payload names it; by the index on ids. */
export const findKeyById = (db: Queryable, keyId: string): Promise<KeyRow | undefined> =>
  db.one<KeyRow>(sql`select ${keyColumns} from vault_key where key_id = ${keyId}`);

/** The keys whose state changed after an epoch; by the index on it. */
export const keysChangedAfter = (db: Queryable, epoch: number): Promise<KeyRow[]> =>
  db.all<KeyRow>(sql`select ${keyColumns} from vault_key where epoch > 0 and epoch > ${epoch} order by epoch, key_id`);

/** From now on an active key only opens. */
export const retireKey = (tx: Tx, keyId: string, epoch: number): Promise<number> =>
  tx.run(sql`update vault_key set state = 2, epoch = ${epoch} where key_id = ${keyId} and state = 1`);

/** Whether an active key is of an earlier generation; by the partial index on it. */
export const hasStale = async (db: Queryable, generation: number): Promise<boolean> =>
  (await db.one(sql`select 1 as found from vault_key where state = 1 and generation < ${generation} limit 1`)) !==
  undefined;

/** Retires a bounded number of active keys of earlier generations; by the partial index on their generation. */
export const retireStale = (tx: Tx, generation: number, epoch: number, limit: number): Promise<number> =>
  tx.run(sql`
    update vault_key set state = 2, epoch = ${epoch} where key_id in (
      select key_id from vault_key where state = 1 and generation < ${generation} order by generation, key_id limit ${limit})`);

/** Keys that another master key has wrapped than the given one; by the index on it. */
export const wrappedBy = (tx: Tx, masterId: string, limit: number): Promise<KeyRow[]> =>
  tx.all<KeyRow>(sql`
    select ${keyColumns} from vault_key where master_id = ${masterId} order by key_id limit ${limit} ${tx.dialect.forUpdate}`);

export const rewrapKey = (tx: Tx, keyId: string, masterId: string, wrapped: Uint8Array): Promise<number> =>
  tx.run(sql`
    update vault_key set master_id = ${masterId}, wrapped = ${wrapped} where key_id = ${keyId} and wrapped is not null`);

/** Drops all keys of an organisation; gives how many. What stays of each is its id, so that its payloads can be told from forged ones. */
export const dropKeys = (tx: Tx, orgId: string, epoch: number): Promise<number> =>
  tx.run(sql`
    update vault_key set state = 3, epoch = ${epoch}, master_id = '', wrapped = null where org_id = ${orgId} and state <> 3`);

/** Counts what a key has sealed; gives how much that is in all. */
export async function countSeals(tx: Tx, keyId: string, seals: number): Promise<number> {
  const row = await tx.one<{ seals: number }>(sql`
    update vault_key set seals = seals + ${seals} where key_id = ${keyId} returning seals`);
  return row?.seals ?? 0;
}

/** The master keys that have wrapped anything, without repetition. */
export const mastersInUse = async (db: Queryable): Promise<string[]> =>
  (await db.all<{ master_id: string }>(sql`select distinct master_id from vault_key where master_id <> ''`)).map(
    ({ master_id }) => master_id,
  );

export type KeyCounts = {
  readonly active: number;
  readonly retired: number;
  readonly dropped: number;
  /** Wrapped by another master key than the one in force. */
  readonly to_rewrap: number;
  /** Active, and of an earlier generation. */
  readonly to_replace: number;
};

/** Counts all keys, along the whole table: for an operator who asks. */
export async function countKeys(
  db: Queryable,
  { master_id, generation }: Pick<VaultRow, "master_id" | "generation">,
): Promise<KeyCounts> {
  const counts = await db.one<KeyCounts>(sql`
    select count(case when state = 1 then 1 end) as active, count(case when state = 2 then 1 end) as retired,
      count(case when state = 3 then 1 end) as dropped, count(case when master_id <> ${master_id} and state <> 3 then 1 end) as to_rewrap,
      count(case when state = 1 and generation < ${generation} then 1 end) as to_replace from vault_key`);
  return counts!;
}
