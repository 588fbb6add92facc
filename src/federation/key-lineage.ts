/** Keys that came from one another by rotation speak for the same party. */
import { type Queryable, sql } from "../db/db.ts";

/** More rotations than anybody makes within the life of what asks for a lineage. */
const maxRotations = 64;

/** The first key of a line of rotations: the same for all of its keys. A key that is not stored is its own. */
export async function firstKey(db: Queryable, keyId: string): Promise<string> {
  let id = keyId;
  for (let step = 0; step < maxRotations; step++) {
    const row = await db.one<{ rotated_from: string | null }>(
      sql`select rotated_from from api_key where key_id = ${id}`,
    );
    if (!row?.rotated_from) return id;
    id = row.rotated_from;
  }
  return id;
}

/** Whether a key, or one that it was rotated to, can still be used. */
export async function isLive(db: Queryable, keyId: string, now: number): Promise<boolean> {
  let id: string | undefined = keyId;
  for (let step = 0; id !== undefined && step < maxRotations; step++) {
    const live = await db.one(sql`
      select 1 as found from api_key k join organization o on o.org_id = k.org_id
      where k.key_id = ${id} and k.revoke_ms is null and (k.expire_ms is null or k.expire_ms > ${now}) and o.disabled = 0`);
    if (live) return true;
    const heir: { key_id: string } | undefined = await db.one<{ key_id: string }>(
      sql`select key_id from api_key where rotated_from = ${id} order by key_id desc limit 1`,
    );
    id = heir?.key_id;
  }
  return false;
}
