/** Idempotency keys: a repeated command answers what the first one answered, and has no second effect. */
import { createHash } from "node:crypto";
import {
  clone,
  create,
  type DescMessage,
  fromBinary,
  type Message,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { type ReflectMessage, reflect } from "@bufbuild/protobuf/reflect";
import type { App } from "../app.ts";
import { sql, type Tx } from "../db/db.ts";
import { badField, Fault } from "../errors.ts";
import type { Vault } from "../vault/sealed.ts";

/** What a key is good for: one organisation, one caller, one method. */
export type IdempotencyScope = {
  readonly orgId: string;
  readonly caller: string;
  readonly method: string;
  readonly key: string;
};

const maxKeyLength = 255;

/** How long a reply is kept. */
export const idempotencyKeptMs = 48 * 3_600_000;

/** The key a client sent, checked; undefined when it sent none. */
export function idempotencyKey(header: Headers): string | undefined {
  const key = header.get("idempotency-key");
  if (key === null) return undefined;
  if (!/^[\x21-\x7e]{1,255}$/.test(key))
    throw badField("idempotency-key", `1 to ${maxKeyLength} printable ASCII characters, no spaces`);
  return key;
}

/** SHA-256 of the request message with its maps in the order of their keys, in hexadecimal. */
export const requestDigest = <Desc extends DescMessage>(schema: Desc, request: MessageShape<Desc>): string =>
  createHash("sha256")
    .update(toBinary(schema, inKeyOrder(request)))
    .digest("hex");

/** The same message. Maps and JSON objects have no order, and clients in Go send them in another one each time. */
function inKeyOrder<T>(value: T): T {
  if (Array.isArray(value)) return value.map(inKeyOrder) as T;
  if (typeof value !== "object" || value === null || value instanceof Uint8Array) return value;
  const sorted = Object.create(Object.getPrototypeOf(value)) as object;
  for (const key of Object.keys(value).sort()) {
    // Not by assignment, which the key `__proto__` would turn into something else.
    Object.defineProperty(sorted, key, { value: inKeyOrder(value[key as keyof T]), enumerable: true });
  }
  return sorted as T;
}

/**
 * Takes the key for this request inside the command's transaction. Undefined: it is new, the command goes on and ends with {@link keepReply}.
 * Bytes: it was used before with the same request, and this is the reply. Throws IDEMPOTENCY_KEY_REUSED for another request.
 * On PostgreSQL a second caller waits at the insert for the first one's commit, so a command is never found half done.
 */
export async function takeKey(
  tx: Tx,
  scope: IdempotencyScope,
  digest: string,
  now: number,
): Promise<Uint8Array | undefined> {
  const { orgId, caller, method, key } = scope;
  const taken = await tx.run(sql`
    insert into idempotency (org_id, caller, method, key, request_sha256, create_ms) values (${orgId}, ${caller}, ${method}, ${key}, ${digest}, ${now})
    on conflict do nothing`);
  if (taken === 1) return undefined;
  const row = await tx.one<{ request_sha256: string; reply: Uint8Array | null }>(sql`
    select request_sha256, reply from idempotency where org_id = ${orgId} and caller = ${caller} and method = ${method} and key = ${key}`);
  if (row?.request_sha256 !== digest) {
    throw new Fault("IDEMPOTENCY_KEY_REUSED", "this idempotency key was used before with another request", {
      idempotency_key: key,
    });
  }
  if (!row.reply) throw new Fault("STILL_RUNNING", "the same command is still running", { idempotency_key: key });
  return row.reply;
}

/** Stores the reply with the effect, without the fields that the proto marks `debug_redact`. */
export async function keepReply<Desc extends DescMessage>(
  tx: Tx,
  vault: Vault,
  scope: IdempotencyScope,
  schema: Desc,
  reply: MessageShape<Desc>,
): Promise<void> {
  const { orgId, caller, method, key } = scope;
  const bytes = vault.seal(replyPlace(scope), toBinary(schema, withoutSecrets(schema, reply)));
  await tx.run(sql`
    update idempotency set reply = ${bytes} where org_id = ${orgId} and caller = ${caller} and method = ${method} and key = ${key}`);
}

/** Gives the key back: the command was refused and may be tried again with it. */
export async function dropKey(tx: Tx, { orgId, caller, method, key }: IdempotencyScope): Promise<void> {
  await tx.run(
    sql`delete from idempotency where org_id = ${orgId} and caller = ${caller} and method = ${method} and key = ${key}`,
  );
}

/** The stored reply as a message. */
export const storedReply = <Desc extends DescMessage>(
  vault: Vault,
  scope: IdempotencyScope,
  schema: Desc,
  bytes: Uint8Array,
): MessageShape<Desc> => fromBinary(schema, vault.open(replyPlace(scope), bytes));

const sweepBatch = 1_000;

/** Deletes the replies that are no longer kept, a bounded number at a time. */
export async function sweepReplies({ db, clock }: Pick<App, "db" | "clock">): Promise<void> {
  while ((await db.tx((tx) => deleteOldReplies(tx, clock.now(), sweepBatch))) === sweepBatch);
}

/** Deletes a bounded number of replies that are no longer kept; gives how many. */
async function deleteOldReplies(tx: Tx, now: number, limit: number): Promise<number> {
  return tx.run(sql`
    delete from idempotency where (org_id, caller, method, key) in (
      select org_id, caller, method, key from idempotency where create_ms < ${now - idempotencyKeptMs} order by create_ms limit ${limit})`);
}

/** Where a stored reply lies. */
export const replyPlace = ({ orgId, caller, method, key }: IdempotencyScope) => ({
  orgId,
  table: "idempotency",
  id: `${caller} ${method} ${key}`,
});

function withoutSecrets<Desc extends DescMessage>(schema: Desc, message: MessageShape<Desc>): MessageShape<Desc> {
  const copy = clone(schema, create(schema, message as never));
  redact(reflect(schema as DescMessage, copy as Message));
  return copy;
}

function redact(message: ReflectMessage): void {
  for (const field of message.fields) {
    if (field.proto.options?.debugRedact) message.clear(field);
    else if (field.fieldKind === "message" && message.isSet(field)) redact(message.get(field));
    else if (field.fieldKind === "list" && field.listKind === "message")
      for (const item of message.get(field)) redact(item as ReflectMessage);
  }
}
