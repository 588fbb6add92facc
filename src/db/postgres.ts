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
  UnavailableError,
} from "./db.ts";
import { openPostgresBells } from "./postgres-bells.ts";
import { type PostgresTx, postgresTx } from "./postgres-tx.ts";
import {
  asLost,
  destroy,
  isAnswer,
  isContention,
  isStalePlan,
  isTooSlow,
  LostError,
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
  /** How long one statement may take; then {@link OverloadedError}. Migrations are exempt. Default 30,000. */
  readonly statementTimeoutMs?: number;
  /** How often a server that says nothing is asked whether it is there, and how long it may take to answer. Default 5,000. */
  readonly heartbeatMs?: number;
  /** The most transactions, and the most reads, waiting for a connection; more are refused. Default 10,000. */
  readonly maxQueue?: number;
  /** How long a transaction, or a read, waits for a connection, or for a row that others hold, before it is refused. Default 10,000. */
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
/** How long a server may take to say good-bye. */
const farewellMs = 2_000;

/**
 * A database on a PostgreSQL server, 13 or newer, by its `postgres://` address. Rejects, in words for who started the
 * program and without the password, if the address is wrong or the server cannot be reached or used.
 */
export async function openPostgres(address: string, options: PostgresOptions = {}): Promise<Db> {
  const { maxConnections = 10, idleInTxMs = 5_000, statementTimeoutMs = 30_000 } = options;
  const { heartbeatMs = 5_000, maxQueue = 10_000, maxWaitMs = 10_000 } = options;
  const bells = new Bells();
  const connections = new Set<pg.PoolClient>();
  const idle = new Set<pg.PoolClient>();
  const waiting = new Set<(error: Error) => void>();
  const hangUp = () => connections.forEach(destroy);
  // Whoever waits for an answer of a server that is gone, or for a connection to it, would wait long.
  const onAway = () => {
    hangUp();
    for (const refuse of waiting) refuse(new LostError("the database is away"));
    waiting.clear();
  };
  // The network that dropped one connection in silence may have dropped the others, and each would be found out only by waiting for it.
  const onBack = () => idle.forEach(destroy);
  const ear = await openChecked(address, (connect) =>
    openPostgresBells(connect, { bells, heartbeatMs, onAway, onBack }),
  );
  const openPool = (settings: Record<string, string | number>): pg.Pool => {
    const { connect } = readTarget(address, { ...settings, statement_timeout: statementTimeoutMs });
    const limits = { max: maxConnections, idleTimeoutMillis: 60_000, connectionTimeoutMillis: maxWaitMs };
    const pool = new pg.Pool({
      ...connect,
      ...limits,
      query_timeout: statementTimeoutMs + silenceMs,
      verify: refuseStandby,
    } as pg.PoolConfig);
    // A connection that breaks while lent out reports it here as well as to its query; unheard, it would
    // end the process.
    pool.on("connect", (client) => {
      client.on("error", () => {});
      connections.add(client);
      client.once("end", () => {
        connections.delete(client);
        idle.delete(client);
      });
    });
    pool.on("acquire", (client) => idle.delete(client));
    pool.on("release", (error, client) => {
      if (!error) idle.add(client);
    });
    pool.on("error", () => {});
    return pool;
  };
  const writers = openPool({ idle_in_transaction_session_timeout: idleInTxMs, lock_timeout: maxWaitMs });
  const readers = openPool({ default_transaction_read_only: "on" });
  const inside = new AsyncLocalStorage<{ open: boolean }>();
  const running = new Set<Promise<unknown>>();
  let closing: Promise<void> | undefined;

  /** Lets work begin if it may, and lets close wait for it. */
  async function admit<T>(pool: pg.Pool, work: () => Promise<T>): Promise<T> {
    if (inside.getStore()?.open) throw nested();
    if (closing) throw new ClosedError("the database is closed");
    if (ear.isAway()) throw new UnavailableError("the database is away");
    if (pool.waitingCount >= maxQueue) throw new OverloadedError(`${maxQueue} callers are waiting for a connection`);
    const result = work();
    running.add(result);
    try {
      return await result;
    } finally {
      running.delete(result);
    }
  }

  async function retrying<T>(work: () => Promise<T>): Promise<T> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await work();
      } catch (error) {
        // Each connection may hold the stale plan once, or lead to a server that takes no writes any more.
        const limit = isStalePlan(error) || error instanceof LostError ? maxAttempts + maxConnections : maxAttempts;
        if (isTooSlow(error)) throw new OverloadedError(reasonOf(error), { cause: error });
        if (error instanceof LostError && (attempt >= limit || closing || ear.isAway()))
          throw new UnavailableError(`the database is away: ${reasonOf(error.cause)}`, { cause: error });
        if (attempt >= limit && isContention(error)) throw new OverloadedError(reasonOf(error), { cause: error });
        if (attempt >= limit || !mayTryAgain(error)) throw error;
        await sleep(Math.random() * 2 ** Math.min(attempt, maxAttempts));
      }
    }
  }

  /** A connection, unless the database goes away meanwhile. */
  async function lend(pool: pg.Pool): Promise<pg.PoolClient> {
    const { promise, resolve, reject } = Promise.withResolvers<pg.PoolClient>();
    waiting.add(reject);
    pool.connect().then((client) => {
      if (waiting.has(reject)) resolve(client);
      else giveBack(client, false); // refused meanwhile
    }, reject);
    try {
      return await promise;
    } catch (cause) {
      if (cause instanceof LostError) throw cause;
      if (pool.totalCount < pool.options.max) throw asLost(cause); // the server did not take another connection
      throw new OverloadedError("no connection to the database came free", { cause });
    } finally {
      waiting.delete(reject);
    }
  }

  async function attemptTx<T>(body: Body<T>): Promise<T> {
    const client = await lend(writers);
    let broken = true;
    try {
      await begin(client);
      const own = postgresTx(client, dialect);
      const value = await runBody(client, own, body);
      const tell = () => {
        bells.ring(own.state.topics);
        ear.notify(own.state.topics);
      };
      await commit(client).catch((error: unknown) => {
        if (error instanceof OutcomeUnknownError) tell(); // a ring for nothing does no harm
        throw error;
      });
      broken = false;
      tell();
      own.state.tellCommitted();
      return value;
    } catch (error) {
      const isOfUse = !isStalePlan(error) && !(error instanceof OutcomeUnknownError) && !(error instanceof LostError);
      if (isOfUse) broken = !(await rollBack(client));
      throw error;
    } finally {
      giveBack(client, broken);
    }
  }

  async function runBody<T>(client: pg.PoolClient, { tx, state, idle }: PostgresTx, body: Body<T>): Promise<T> {
    const scope = { open: true };
    // The server ends a transaction left idle too long; its body may be waiting for something that never comes.
    const lost = Promise.withResolvers<never>();
    const onError = (error: Error) => lost.reject(wasIdle(error) ? waitedElsewhere(error) : asLost(error));
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
    const config = prepared(q);
    const client = await lend(readers);
    let broken = false;
    try {
      return await client.query(config);
    } catch (error) {
      broken = !isAnswer(error) || isStalePlan(error);
      throw isAnswer(error) ? error : asLost(error);
    } finally {
      giveBack(client, broken);
    }
  }

  const query = (q: Sql) => admit(readers, () => retrying(() => read(q)));
  return {
    engine: "postgres",
    query: {
      dialect,
      all: async (q: Sql) => (await query(q)).rows,
      one: async (q: Sql) => (await query(q)).rows[0],
    } as Queryable,
    tx: (body) => admit(writers, () => retrying(() => attemptTx(body))),
    listen: (topics, signal) => bells.add(topics, signal),
    load: () => ({ waiting: writers.waitingCount, pools: { writers: loadOf(writers), readers: loadOf(readers) } }),
    close: () =>
      (closing ??= (async () => {
        await Promise.allSettled(running);
        await ear.close();
        const silent = setTimeout(hangUp, farewellMs);
        await Promise.all([writers.end(), readers.end()]);
        clearTimeout(silent);
      })()),
  };
}

const loadOf = (pool: pg.Pool): PoolLoad => ({
  used: pool.totalCount - pool.idleCount,
  idle: pool.idleCount,
  waiting: pool.waitingCount,
  limit: pool.options.max,
});

/** Nothing of it is committed, and another try may succeed. */
const mayTryAgain = (error: unknown): boolean =>
  isContention(error) || isStalePlan(error) || error instanceof LostError;

/** Makes a new connection refuse to be one to a standby, which would show what was, and not what is. */
function refuseStandby(client: pg.PoolClient, done: (error?: Error) => void): void {
  client
    .query<{ standby: number }>("select pg_is_in_recovery() as standby")
    .then(
      ({ rows }) => done(rows[0]!.standby ? new Error("this server is a standby and takes no writes") : undefined),
      done,
    );
}

function giveBack(client: pg.PoolClient, broken: boolean): void {
  if (broken) destroy(client);
  client.release(broken);
}

async function begin(client: pg.PoolClient): Promise<void> {
  try {
    await client.query("begin isolation level read committed");
  } catch (cause) {
    throw asLost(cause);
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

async function openChecked<T>(address: string, open: (connect: pg.ClientConfig) => Promise<T>): Promise<T> {
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
    return await open(connect);
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
