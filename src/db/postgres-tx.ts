import type pg from "pg";
import type { Dialect, Sql, Tx } from "./db.ts";
import { asLost, prepared } from "./postgres-wire.ts";
import { TxState } from "./tx-state.ts";

/** A transaction on one connection, what is known of it, and a promise of the end of the statement it has sent last. */
export type PostgresTx = { readonly tx: Tx; readonly state: TxState; readonly idle: () => Promise<unknown> };

/** A migration may rewrite a table; the driver knows no "for ever". */
const maxScriptMs = 2 ** 31 - 1;

/** Gives a connection on which a transaction has begun the verbs of one. */
export function postgresTx(client: pg.PoolClient, dialect: Dialect): PostgresTx {
  const state = new TxState();
  // One statement at a time, so that a body may use Promise.all, as it may on SQLite.
  let last: Promise<unknown> = Promise.resolve();
  const send = (statement: () => pg.QueryConfig): Promise<pg.QueryResult> => {
    const turn = last.then(async () => {
      state.assertUsable();
      try {
        const config = statement();
        return await client.query(config).catch((error: unknown) => {
          throw asLost(error);
        });
      } catch (error) {
        state.fail(error);
        throw error;
      }
    });
    last = turn.catch(() => {});
    return turn;
  };
  const query = (q: Sql) => send(() => prepared(q));
  const tx = {
    dialect,
    all: async (q: Sql) => (await query(q)).rows,
    one: async (q: Sql) => (await query(q)).rows[0],
    run: async (q: Sql) => (await query(q)).rowCount ?? 0,
    ring: (topic: string) => state.ring(topic),
    afterCommit: (tell: () => void) => state.afterCommit(tell),
    async script(text: string) {
      await send(() => ({ text, query_timeout: maxScriptMs }) as pg.QueryConfig);
    },
  };
  return { tx: tx as Tx, state, idle: () => last };
}
