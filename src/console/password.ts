/** The operator's password: how it is hashed and tried, and where it is kept. */
import { argon2, createHash, timingSafeEqual } from "node:crypto";
import { promisify } from "node:util";
import { type Queryable, sql, type Tx } from "../db/db.ts";
import { Fault } from "../errors.ts";
import type { Ids } from "../ids.ts";

/** What sessions made with the password have in place of a key's id. */
export const passwordKeyId = "key_password";

/** OWASP's least for argon2id: 19 MiB, 2 passes, 1 lane (https://cheatsheetseries.owasp.org, Password Storage). */
const cost = { memory: 19_456, passes: 2, parallelism: 1, tagLength: 32 };
const saltBytes = 16;
const mostWaiting = 16;
const settingName = "admin_password";

const hashed = promisify(argon2);

/** A password as it is stored, in the form of PHC strings: `$argon2id$v=19$m=…,t=…,p=…$salt$hash`. */
export async function hashPassword(password: string, ids: Pick<Ids, "bytes">): Promise<string> {
  const salt = Buffer.from(ids.bytes(saltBytes));
  const tag = await derive(password, salt, cost);
  const { memory, passes, parallelism } = cost;
  return `$argon2id$v=19$m=${memory},t=${passes},p=${parallelism}$${unpadded(salt)}$${unpadded(tag)}`;
}

const form = /^\$argon2id\$v=19\$m=(\d+),t=(\d+),p=(\d+)\$([A-Za-z0-9+/]+)\$([A-Za-z0-9+/]+)$/;

/** Whether it is the password that was stored so. */
export async function isPassword(password: string, stored: string): Promise<boolean> {
  const [, memory, passes, parallelism, salt = "", tag = ""] = form.exec(stored) ?? [];
  if (!memory) throw new Error(`the setting ${settingName} is no argon2id hash`);
  const expected = Buffer.from(tag, "base64");
  const found = await derive(password, Buffer.from(salt, "base64"), {
    memory: Number(memory),
    passes: Number(passes),
    parallelism: Number(parallelism),
    tagLength: expected.length,
  });
  return timingSafeEqual(found, expected);
}

/** NFKC, so that it does not matter how a keyboard composes a letter. */
const derive = (password: string, nonce: Buffer, costs: typeof cost): Promise<Buffer> =>
  inTurn(() => hashed("argon2id", { message: password.normalize("NFKC"), nonce, ...costs }));

let last: Promise<unknown> = Promise.resolve();
let waiting = 0;

/** One hash at a time for the process, as each takes 19 MiB and a core: a flood of passwords must not stop other work. OVERLOADED when too many wait. */
async function inTurn<T>(work: () => Promise<T>): Promise<T> {
  if (waiting >= mostWaiting)
    throw new Fault("OVERLOADED", "too many passwords are being tried at once", {}, { retryAfterMs: 1_000 });
  waiting++;
  const turn = last.then(work).finally(() => waiting--);
  last = turn.catch(() => {});
  return turn;
}

const unpadded = (bytes: Buffer): string => bytes.toString("base64").replace(/=+$/, "");

/** The password as it is stored; undefined while none is set. */
export async function findPassword(db: Queryable): Promise<string | undefined> {
  const row = await db.one<{ value: Uint8Array }>(sql`select value from setting where name = ${settingName}`);
  return row && Buffer.from(row.value).toString();
}

/** Sets or replaces it; `stored` is of {@link hashPassword}. */
export const putPassword = (tx: Tx, stored: string): Promise<number> =>
  tx.run(sql`
    insert into setting (name, value) values (${settingName}, ${Buffer.from(stored)}) on conflict (name) do update set value = excluded.value`);

/** What a session keeps of what it was made from, and of its token: SHA-256, in hexadecimal. */
export const digestOf = (text: string): string => createHash("sha256").update(text).digest("hex");
