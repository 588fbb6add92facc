import type { Body, Db, Queryable, Tx } from "../db/db.ts";
import { KeyNeeded, type Keyring } from "./keyring.ts";
import { encryptedBy } from "./sealed.ts";

/**
 * The same database, for everybody who seals and opens: with the rows of every read come the data keys that they name, read in the same transaction or just after, so that
 * whoever sees a payload can open it, on whichever server it was written; and a transaction that seals for an organisation whose key is not at hand gets the key
 * and begins again.
 */
export function sealingDb(db: Db, keyring: Keyring): Db {
  const reading = (from: Queryable): Pick<Queryable, "all" | "one"> => ({
    async all<Row>(...[q]: Parameters<Queryable["all"]>) {
      const rows = await from.all<Row>(q);
      let missing: string[] | undefined;
      for (const row of rows) missing = missingOf(keyring, row, missing);
      if (missing) await keyring.bring(from, missing);
      return rows;
    },
    async one<Row>(...[q]: Parameters<Queryable["one"]>) {
      const row = await from.one<Row>(q);
      const missing = row && missingOf(keyring, row, undefined);
      if (missing) await keyring.bring(from, missing);
      return row;
    },
  });
  const inside = (tx: Tx): Tx => ({
    ...reading(tx),
    dialect: tx.dialect,
    run: (q) => tx.run(q),
    ring: (topic) => tx.ring(topic),
    afterCommit: (tell) => tx.afterCommit(tell),
    script: (text) => tx.script(text),
  });
  return {
    engine: db.engine,
    query: { dialect: db.query.dialect, ...reading(db.query) },
    tx: (body) => withKeys(db, keyring, (tx) => body(inside(tx))),
    listen: (topics, signal) => db.listen(topics, signal),
    load: () => db.load(),
    close: () => db.close(),
  };
}

/** How often one transaction may ask for one organisation's key: a key can be rotated away again before the body comes to use it. */
const maxTries = 5;

/** Runs the body until it has all keys that it needs. */
async function withKeys<T>(db: Db, keyring: Keyring, body: Body<T>): Promise<T> {
  let tries: Map<string, number> | undefined;
  for (;;) {
    try {
      return await db.tx(body);
    } catch (error) {
      if (!(error instanceof KeyNeeded)) throw error;
      tries ??= new Map();
      const tried = (tries.get(error.orgId) ?? 0) + 1;
      if (tried > maxTries) throw error;
      tries.set(error.orgId, tried);
      await keyring.ensure(error.orgId);
    }
  }
}

function missingOf(keyring: Keyring, row: unknown, missing: string[] | undefined): string[] | undefined {
  let found = missing;
  for (const column in row as Record<string, unknown>) {
    const value = (row as Record<string, unknown>)[column];
    if (!(value instanceof Uint8Array)) continue;
    const keyId = encryptedBy(value);
    if (keyId === undefined || keyring.known(keyId) || found?.includes(keyId)) continue;
    found = [...(found ?? []), keyId];
  }
  return found;
}
