import { randomUUID } from "node:crypto";
import { fileURLToPath } from "node:url";
import pg from "pg";
import { inject } from "vitest";
import type { Db, Dialect } from "../src/db/db.ts";
import { migrate, readMigrations } from "../src/db/migrate.ts";
import { openPostgres } from "../src/db/postgres.ts";
import { openSqlite } from "../src/db/sqlite.ts";

export type Setup = { readonly db: Db; [Symbol.asyncDispose](): Promise<void> };

export type EngineOptions = {
  /** A folder of migrations to run; without one the database is empty. */
  readonly migrations?: URL;
  /** How long PostgreSQL lets a body wait for something other than its tx. */
  readonly idleInTxMs?: number;
};

export type Engine = {
  readonly name: Dialect["name"];
  /** A fresh database for one test. */
  readonly open: (options?: EngineOptions) => Promise<Setup>;
};

const server = inject("postgres");

/** The PostgreSQL server of this run, if there is one. */
export const postgresUrl: string | undefined = "url" in server ? server.url : undefined;

const sqlite: Engine = {
  name: "sqlite",
  async open({ migrations } = {}) {
    const db = openSqlite({ ephemeral: true });
    if (migrations) await migrate(db, readMigrations(fileURLToPath(migrations), "sqlite"));
    return { db, [Symbol.asyncDispose]: () => db.close() };
  },
};

const postgres: Engine = {
  name: "postgres",
  async open({ migrations, idleInTxMs = 5_000 } = {}) {
    const { url, drop } = await freshDatabase();
    const db = await openPostgres(url, { idleInTxMs });
    if (migrations) await migrate(db, readMigrations(fileURLToPath(migrations), "postgres"));
    return {
      db,
      async [Symbol.asyncDispose]() {
        await db.close();
        await drop();
      },
    };
  },
};

/** Every engine there is on this machine: a suite that runs on each proves that they behave alike. */
export const engines: readonly Engine[] = postgresUrl ? [sqlite, postgres] : [sqlite];

/** A PostgreSQL database of a test's own, and how to be rid of it. */
export type OwnDatabase = { readonly url: string; readonly drop: () => Promise<void> };

/** An empty one. Only where there is a `postgresUrl`. */
export const freshDatabase = (): Promise<OwnDatabase> => createDatabase("");

/** One that has the server's schema, as if a server had been started on it before. Only where there is a `postgresUrl`. */
export const migratedDatabase = (): Promise<OwnDatabase> =>
  createDatabase("template" in server ? `template ${server.template}` : "");

async function createDatabase(how: string): Promise<OwnDatabase> {
  const name = `test_${randomUUID().replaceAll("-", "")}`;
  await asAdmin(`create database ${name} ${how}`);
  const url = new URL(postgresUrl!);
  url.pathname = `/${name}`;
  return { url: url.href, drop: () => asAdmin(`drop database ${name} with (force)`) };
}

async function asAdmin(text: string): Promise<void> {
  const client = new pg.Client({ connectionString: postgresUrl });
  await client.connect();
  await client.query(text);
  await client.end();
}
