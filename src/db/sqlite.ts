import Database from "better-sqlite3";
import { bindable } from "./bind.ts";
import { claimFile, type DataFile, temporaryFile } from "./data-file.ts";
import { Bells, ClosedError, type Db, type Dialect, empty, type Queryable, type Sql, sql, type Tx } from "./db.ts";
import { groupCommit } from "./group-commit.ts";
import { StatementCache } from "./statement-cache.ts";
import { nested, TxState } from "./tx-state.ts";

export type SqliteOptions = {
  /** The data file; needed unless ephemeral. Beside it are made `-wal`, `-shm` and `-lock`. */
  readonly file?: string;
  /** Data in a private temporary folder, without fsync, gone at close. Implied by the file ":memory:". */
  readonly ephemeral?: boolean;
  /** Whether what is deleted or replaced is written over in the file, and not only given free. Default: no, which writes less. */
  readonly erases?: boolean;
  /** Called when a commit failed: the process must exit, for nobody knows what the disk holds. Default: it does. */
  readonly onFatal?: (error: unknown) => void;
  /** The most transactions behind one fsync. Default 256. */
  readonly maxBatch?: number;
  /** No transaction of a batch begins after this long; the others take the next one. Default 10. */
  readonly maxBatchMs?: number;
  /** The most transactions waiting; more are refused with OverloadedError. Default 10,000. */
  readonly maxQueue?: number;
  /** Told of each batch its size and how long it held the event loop, for metrics. Must not throw. */
  readonly onBatch?: (batch: { readonly size: number; readonly ms: number }) => void;
};

const dialect: Dialect = {
  name: "sqlite",
  skipLocked: empty,
  forUpdate: empty,
  xid: sql`0`,
  horizon: sql`9223372036854775807`,
};
const maxStatements = 1_000;
/** Pages: a checkpoint each 64 MB. At the default of 1,000 they own the slowest percent of commits. */
const checkpointPages = 16_000;
/** How long another program, such as a shell with an open transaction, may hold the file before a batch is refused. */
const busyTimeoutMs = 1_000;

/** One file, one writer connection with group commit, one read-only connection beside it. */
export function openSqlite(options: SqliteOptions): Db {
  const { file, ephemeral = file === ":memory:", erases = false, onFatal = exit, onBatch = () => {} } = options;
  const { maxBatch = 256, maxBatchMs = 10, maxQueue = 10_000 } = options;
  const data = claim(file, ephemeral);
  const { writer, reader } = openConnections(data, { ephemeral, erases });
  const bells = new Bells();
  const write = executor(writer);
  const read = executor(reader);
  const group = groupCommit({
    writer,
    openTx: () => {
      const state = new TxState();
      return { state, tx: new SqliteTx(write, state) };
    },
    onCommitted: (state) => {
      bells.ring(state.topics);
      state.tellCommitted();
    },
    ...{ onFatal, onBatch, maxBatch, maxBatchMs, maxQueue },
  });
  const readable = (): Executor => {
    if (group.isInside()) throw nested();
    if (!reader.open) throw new ClosedError("the database is closed");
    return read;
  };
  let closing: Promise<void> | undefined;

  return {
    engine: "sqlite",
    query: {
      dialect,
      all: async (q: Sql) => readable().all(q),
      one: async (q: Sql) => readable().one(q),
    } as Queryable,
    tx: group.submit,
    listen: (topics, signal) => bells.add(topics, signal),
    load: () => ({ waiting: group.waiting(), file: data.path }),
    close: () => (closing ??= group.close().then(() => closeConnections(data, reader, writer))),
  };
}

class SqliteTx implements Tx {
  readonly dialect = dialect;
  readonly #writer: Executor;
  readonly #state: TxState;

  constructor(writer: Executor, state: TxState) {
    this.#writer = writer;
    this.#state = state;
  }

  async all<R>(q: Sql): Promise<R[]> {
    return this.#guard(() => this.#writer.all(q) as R[]);
  }

  async one<R>(q: Sql): Promise<R | undefined> {
    return this.#guard(() => this.#writer.one(q) as R | undefined);
  }

  async run(q: Sql): Promise<number> {
    return this.#guard(() => this.#writer.run(q));
  }

  async script(text: string): Promise<void> {
    this.#guard(() => this.#writer.script(text));
  }

  ring(topic: string): void {
    this.#state.ring(topic);
  }

  afterCommit(tell: () => void): void {
    this.#state.afterCommit(tell);
  }

  #guard<T>(work: () => T): T {
    this.#state.assertUsable();
    try {
      return work();
    } catch (error) {
      this.#state.fail(error);
      throw error;
    }
  }
}

type Executor = ReturnType<typeof executor>;
type Row = Record<string, unknown>;

/**
 * SQLite looks at the value bound to a bare `limit ?`, and in a statement of several tables to that of `= ?`, as it plans, and so parses and plans the statement
 * anew each time another is bound: 4 to 10 µs more for the smallest of them, a fifth of the SQL of a task. Of an expression it knows no value. Statements of one
 * table keep their `= ?`, for a value may be what makes a partial index fit.
 */
function planOnce(text: string): string {
  const limited = text.replace(/\blimit \?/g, "limit ?+0");
  return /\b(join|exists)\b/.test(limited) ? limited.replace(/ = \?/g, " = +?") : limited;
}

/** The verbs over one connection, each statement prepared once. A statement may be sent with any verb. */
function executor(db: Database.Database) {
  const statements = new StatementCache<Database.Statement<unknown[], Row>>(maxStatements);
  const make = (text: string) => {
    const statement = db.prepare<unknown[], Row>(planOnce(text));
    return statement.reader ? statement.safeIntegers(true) : statement;
  };
  const all = (q: Sql): Row[] => {
    const statement = statements.get(q.sql, make);
    const values = q.values.map(toSqlite);
    if (statement.reader) return statement.all(values).map(fromSqlite);
    statement.run(values);
    return [];
  };
  return {
    all,
    one: (q: Sql): Row | undefined => {
      const statement = statements.get(q.sql, make);
      if (!statement.reader) return all(q)[0];
      const row = statement.get(q.values.map(toSqlite));
      return row && fromSqlite(row);
    },
    run: (q: Sql): number => {
      const statement = statements.get(q.sql, make);
      return statement.reader ? all(q).length : statement.run(q.values.map(toSqlite)).changes;
    },
    script: (text: string): void => void db.exec(text),
  };
}

/** better-sqlite3 binds every number as a REAL, which shows in text and JSON (`'n' || 1` is `n1.0`). */
function toSqlite(value: unknown): unknown {
  const bound = bindable(value);
  return Number.isInteger(bound) ? BigInt(bound as number) : bound;
}

/** Integers as number where that is exact; without safeIntegers the others would be rounded silently. */
function fromSqlite(row: Row): Row {
  for (const column in row) {
    const value = row[column];
    if (typeof value === "bigint") {
      if (BigInt.asIntN(54, value) === value) row[column] = Number(value);
    } else if (value instanceof Uint8Array) {
      row[column] = new Uint8Array(value.buffer, value.byteOffset, value.byteLength); // it was a Buffer
    }
  }
  return row;
}

function claim(file: string | undefined, ephemeral: boolean): DataFile {
  if (ephemeral) return temporaryFile();
  if (!file) throw new Error("a data file is needed");
  return claimFile(file);
}

function openConnections(data: DataFile, { ephemeral, erases }: { ephemeral: boolean; erases: boolean }) {
  try {
    const writer = new Database(data.path, { timeout: busyTimeoutMs });
    writer.pragma("journal_mode = wal");
    // The default of WAL is `normal`, which loses acknowledged commits on a power cut.
    writer.pragma(`synchronous = ${ephemeral ? "off" : "full"}`);
    writer.pragma("foreign_keys = on");
    writer.pragma(`secure_delete = ${erases ? "on" : "off"}`);
    writer.pragma(`wal_autocheckpoint = ${checkpointPages}`);
    return { writer, reader: new Database(data.path, { readonly: true, timeout: busyTimeoutMs }) };
  } catch (cause) {
    data.release();
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new Error(`The data file ${data.path} cannot be opened: ${reason}.`, { cause });
  }
}

function closeConnections(data: DataFile, reader: Database.Database, writer: Database.Database): void {
  try {
    reader.close();
    writer.close(); // the last connection to go moves the log into the data file
  } finally {
    data.release();
  }
}

function exit(error: unknown): never {
  console.error("storage failed:", error);
  process.exit(1);
}
