/** Who this server is to others: what it calls itself, and the keys it signs with. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ServerIdentitySchema } from "../../../gen/moltwire/federation/v1/peer_pb.ts";
import type { App } from "../../app.ts";
import { type Queryable, sql, type Tx } from "../../db/db.ts";
import { lockOrganization } from "../organization-store.ts";
import { keyBytes, keyIdOf, keyText, newPrivateKey, publicHalf, type SigningKey, signingKeyOf } from "./key.ts";

type KeyRow = {
  readonly org_id: string;
  readonly generation: number;
  readonly key_id: string;
  readonly public_key: string;
  readonly private_key: Uint8Array;
  readonly active_ms: number;
  readonly create_ms: number;
};

const columns = sql`org_id, generation, key_id, public_key, private_key, active_ms, create_ms`;

/** What this server calls itself: the id of the operator's organisation, which every replica has and no other server. */
export const audienceOf = (app: Pick<App, "homeOrgId">): string => app.homeOrgId;

/** Where a private key lies. */
export const privateKeyPlace = (orgId: string, generation: number) => ({
  orgId,
  table: "server_key",
  id: String(generation),
});

/** Newest first: at most two, that which signs and the one that will. */
export const serverKeys = (db: Queryable, orgId: string): Promise<KeyRow[]> =>
  db.all<KeyRow>(sql`select ${columns} from server_key where org_id = ${orgId} order by generation desc limit 4`);

/** The newest that has begun. */
const active = (rows: readonly KeyRow[], now: number): KeyRow | undefined =>
  rows.find(({ active_ms }) => active_ms <= now);

/** Makes a key; 0 when there is one of this generation. */
function insertKey(
  tx: Tx,
  app: Pick<App, "vault" | "ids" | "homeOrgId">,
  generation: number,
  at: { readonly activeMs: number; readonly now: number },
): Promise<number> {
  const orgId = app.homeOrgId;
  const privateKey = newPrivateKey(app.ids);
  const publicKey = publicHalf(privateKey);
  const sealed = app.vault.seal(privateKeyPlace(orgId, generation), privateKey);
  return tx.run(sql`
    insert into server_key (${columns})
    values (${orgId}, ${generation}, ${keyIdOf(publicKey)}, ${keyText(publicKey)}, ${sealed}, ${at.activeMs}, ${at.now}) on conflict do nothing`);
}

/** Makes the first key, unless there is one. */
export async function ensureKey(tx: Tx, app: App, now: number): Promise<void> {
  if ((await serverKeys(tx, app.homeOrgId)).length === 0) await insertKey(tx, app, 1, { activeMs: now, now });
}

/** The key to sign with now; the first one is made when it is asked for. */
export async function signingKey(app: App): Promise<SigningKey> {
  const now = app.clock.now();
  let row = active(await serverKeys(app.db.query, app.homeOrgId), now);
  if (!row) {
    await app.db.tx((tx) => ensureKey(tx, app, now));
    row = active(await serverKeys(app.db.query, app.homeOrgId), now)!;
  }
  return signingKeyOf(app.vault.open(privateKeyPlace(row.org_id, row.generation), row.private_key));
}

/** A new key, which signs when the overlap is over; of the others the one stays that signs until then. */
export async function rotateKey(tx: Tx, app: App, overlapMs: number, now: number): Promise<void> {
  // One rotation at a time.
  await lockOrganization(tx, app.homeOrgId);
  const rows = await serverKeys(tx, app.homeOrgId);
  const signs = overlapMs > 0 ? active(rows, now) : undefined;
  const generation = (rows[0]?.generation ?? 0) + 1;
  await tx.run(sql`delete from server_key where org_id = ${app.homeOrgId} and generation <> ${signs?.generation ?? 0}`);
  await insertKey(tx, app, generation, { activeMs: signs ? now + overlapMs : now, now });
}

/** Whether it is a key of this server. */
export const isOwnKey = async (db: Queryable, app: Pick<App, "homeOrgId">, publicKey: Uint8Array): Promise<boolean> =>
  (await serverKeys(db, app.homeOrgId)).some(({ key_id }) => key_id === keyIdOf(publicKey));

/** As the operators of other servers are told it. A key that is about to be followed by another signs until that one does. */
export async function identityOf(
  db: Queryable,
  app: Pick<App, "homeOrgId">,
): Promise<MessageInitShape<typeof ServerIdentitySchema>> {
  const rows = await serverKeys(db, app.homeOrgId);
  return {
    audience: audienceOf(app),
    keys: rows.map((row, n) => ({
      keyId: row.key_id,
      publicKey: keyBytes(row.public_key),
      activeTime: timestampFromMs(row.active_ms),
      ...(n > 0 && { expireTime: timestampFromMs(rows[n - 1]!.active_ms) }),
    })),
  };
}
