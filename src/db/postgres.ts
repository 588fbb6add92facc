import { AsyncLocalStorage } from "node:async_hooks";
import { setTimeout as sleep } from "node:timers/promises";
import pg from "pg";
import {
  Bells,
  type Body,
  ClosedError,
  type Db,
  type Dialect,
  MisuseError,
  OutcomeUnknownError,
  OverloadedError,
  type PoolLoad,
  type Queryable,
  type Sql,
  sql,
} from "./db.ts";
import { openPostgresBells } from "./postgres-bells.ts";
import { type PostgresTx, postgresTx } from "./postgres-tx.ts";
import {
  isAnswer,
  isContention,
  isLost,
  isStalePlan,
  prepared,
  readTarget,
  reasonOf,
  wasIdle,
} from "./postgres-wire.ts";
import { nested, waitedElsewhere } from "./tx-state.ts";

export type PostgresOptions = {
  /** Connections for transactions; as many again for reads, and one for bells. Default 10. */
  readonly maxConnections?: number;
  /** How long a body may leave its transaction idle before the server ends it. Default 5,000. */
  readonly idleInTxMs?: number;
  /** How long one statement may take. Migrations are exempt. Default 30,000. */
  readonly statementTimeoutMs?: number;
  /** The most transactions, and the most reads, waiting for a connection; more are refused. Default 10,000. */
  readonly maxQueue?: number;
  /** How long a transaction, or a read, waits for a connection before it is refused. Default 10,000. */
  readonly maxWaitMs?: number;
};

const dialect: Dialect = {
  name: "postgres",
  skipLocked: sql`for update skip locked`,
  forUpdate: sql`for update`,
  xid: sql`pg_current_xact_id()::text::bigint`,
  horizon: sql`pg_snapshot_xmin(pg_current_snapshot())::text::bigint`,
};
const minServerVersion = 130_000;
const maxAttempts = 8;
/** The server ends a slow statement itself; if not even that is heard, the connection is given up this much later. */
const silenceMs = 5_000;

/**
 * A database on a PostgreSQL server, 13 or newer, by its `postgres://` address. Rejects, in words for who started the
 * program and without the password, if the address is wrong or the server cannot be reached or used.
 */
export async function openPostgres(address: string, options: PostgresOptions = {}): Promise<Db> {
  const { maxConnections = 10, idleInTxMs = 5_000, statementTimeoutMs = 30_000 } = options;
  const { maxQueue = 10_000, maxWaitMs = 10_000 } = options;
  const bells = new Bells();
  const ear = await openChecked(address, bells);
  const openPool = (settings: Record<string, string | number>): pg.Pool => {
    const { connect } = readTarget(address, { ...settings, statement_timeout: statementTimeoutMs });
    const limits = { max: maxConnections, idleTimeoutMillis: 60_000, connectionTimeoutMillis: maxWaitMs };
    const pool = new pg.Pool({ ...connect, ...limits, query_timeout: statementTimeoutMs + silenceMs });
    // A connection that breaks while lent out reports it here as well as to its query; unheard, it would
    // end the process.
    pool.on("connect", (client) => client.on("error", () => {}));
    pool.on("error", () => {});
    return pool;
  };
  const writers = openPool({ idle_in_transaction_session_timeout: idleInTxMs });
  const readers = openPool({ default_transaction_read_only: "on" });
  const inside = new AsyncLocalStorage<{ open: boolean }>();
  const running = new Set<Promise<unknown>>();
  let closing: Promise<void> | undefined;

  /** Lets work begin if it may, and lets close wait for it. */
  async function admit<T>(pool: pg.Pool, work: () => Promise<T>): Promise<T> {
    if (inside.getStore()?.open) throw nested();
    if (closing) throw new ClosedError("the database is closed");
    if (pool.waitingCount >= maxQueue) throw new OverloadedError(`${maxQueue} callers are waiting for a connection`);
    const result = work();
    running.add(result);
    try {
      return await result;
    } finally {
      running.delete(result);
    }
  }

  async function retrying<T>(isTransient: (error: unknown) => boolean, work: () => Promise<T>): Promise<T> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await work();
      } catch (error) {
        // Each connection may hold the stale plan once.
        const limit = isStalePlan(error) ? maxAttempts + maxConnections : maxAttempts;
        if (attempt >= limit || !isTransient(error)) throw error instanceof NotBegun ? error.cause : error;
        await sleep(Math.random() * 2 ** Math.min(attempt, maxAttempts));
      }
    }
  }

  async function attemptTx<T>(body: Body<T>): Promise<T> {
    const client = await lend(writers);
    let broken = true;
    try {
      await begin(client);
      const own = postgresTx(client, dialect);
      const value = await runBody(client, own, body);
      await commit(client);
      broken = false;
      bells.ring(own.state.topics);
      ear.notify(own.state.topics);
      own.state.tellCommitted();
      return value;
    } catch (error) {
      if (!isStalePlan(error) && !(error instanceof OutcomeUnknownError)) broken = !(await rollBack(client));
      throw error;
    } finally {
      client.release(broken);
    }
  }

  async function runBody<T>(client: pg.PoolClient, { tx, state, idle }: PostgresTx, body: Body<T>): Promise<T> {
    const scope = { open: true };
    // The server ends a transaction left idle too long; its body may be waiting for something that never comes.
    const lost = Promise.withResolvers<never>();
    const onError = (error: Error) => lost.reject(wasIdle(error) ? waitedElsewhere(error) : error);
    client.once("error", onError);
    try {
      const value = await Promise.race([inside.run(scope, body, tx), lost.promise]);
      await idle();
      state.assertCommittable();
      return value;
    } finally {
      client.off("error", onError);
      scope.open = false;
      state.close();
      await idle();
    }
  }

  async function read(q: Sql): Promise<pg.QueryResult> {
    const client = await lend(readers);
    let broken = false;
    try {
      return await client.query(prepared(q));
    } catch (error) {
      broken = !isAnswer(error) || isStalePlan(error);
      throw error;
    } finally {
      client.release(broken);
    }
  }

  const query = (q: Sql) => admit(readers, () => retrying(mayReadAgain, () => read(q)));
  return {
    engine: "postgres",
    query: {
      dialect,
      all: async (q: Sql) => (await query(q)).rows,
      one: async (q: Sql) => (await query(q)).rows[0],
    } as Queryable,
    tx: (body) => admit(writers, () => retrying(mayRunAgain, () => attemptTx(body))),
    listen: (topics, signal) => bells.add(topics, signal),
    load: () => ({ waiting: writers.waitingCount, pools: { writers: loadOf(writers), readers: loadOf(readers) } }),
    close: () =>
      (closing ??= (async () => {
        await Promise.allSettled(running);
        await ear.close();
        await Promise.all([writers.end(), readers.end()]);
      })()),
  };
}

const loadOf = (pool: pg.Pool): PoolLoad => ({
  used: pool.totalCount - pool.idleCount,
  idle: pool.idleCount,
  waiting: pool.waitingCount,
  limit: pool.options.max,
});

/** The connection was dead before the transaction had begun: another one will do. */
class NotBegun extends Error {}

const mayRunAgain = (error: unknown): boolean => isContention(error) || isStalePlan(error) || error instanceof NotBegun;

const mayReadAgain = (error: unknown): boolean => isContention(error) || isStalePlan(error) || isLost(error);

async function lend(pool: pg.Pool): Promise<pg.PoolClient> {
  try {
    return await pool.connect();
  } catch (cause) {
    if (pool.totalCount < pool.options.max) throw cause; // the server did not take another connection
    throw new OverloadedError("no connection to the database came free", { cause });
  }
}

async function begin(client: pg.PoolClient): Promise<void> {
  try {
    await client.query("begin isolation level read committed");
  } catch (cause) {
    throw isLost(cause) ? new NotBegun("not begun", { cause }) : cause;
  }
}

async function commit(client: pg.PoolClient): Promise<void> {
  // COMMIT where there is no transaction is only a warning.
  if (client.getTransactionStatus() !== "T") throw new MisuseError("the body has ended its own transaction");
  let command: string;
  try {
    ({ command } = await client.query("commit"));
  } catch (cause) {
    if (isAnswer(cause)) throw cause;
    throw new OutcomeUnknownError("the connection was lost during a commit", { cause });
  }
  // COMMIT of a transaction in which a statement failed answers ROLLBACK, and is not an error.
  if (command !== "COMMIT") throw new MisuseError("this transaction has failed");
}

/** False if the connection is of no more use. */
async function rollBack(client: pg.PoolClient): Promise<boolean> {
  try {
    await client.query("rollback");
    return true;
  } catch {
    return false;
  }
}

async function openChecked(address: string, bells: Bells) {
  const { connect, shown } = readTarget(address, { synchronous_commit: "off" });
  const refuse = (reason: string, cause?: unknown) => new Error(`PostgreSQL at ${shown}: ${reason}`, { cause });
  const client = new pg.Client(connect);
  client.on("error", () => {});
  try {
    await client.connect();
    const { rows } = await client.query<ServerFacts>(factsText);
    const { version, encoding, standby } = rows[0]!;
    if (version < minServerVersion) throw new Error("version 13 or newer is needed");
    if (encoding !== "UTF8") throw new Error(`the database has the encoding ${encoding}, and UTF8 is needed`);
    if (standby) throw new Error("this server is a standby and takes no writes");
    return await openPostgresBells(connect, bells);
  } catch (cause) {
    throw refuse(reasonOf(cause), cause);
  } finally {
    await client.end().catch(() => {});
  }
}

type ServerFacts = { version: number; encoding: string; standby: number };
const factsText =
  "select current_setting('server_version_num')::bigint as version, current_setting('server_encoding') as encoding, " +
  "pg_is_in_recovery() as standby";
