import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { freshDatabase, migratedDatabase } from "../engines.ts";

/** Storage that outlives its servers. */
export const storage = (dialect: "sqlite" | "postgres") => storageOn(dialect, migratedDatabase);

/** Storage in which there is nothing at all yet: what a backup can be restored into. */
export const emptyStorage = (dialect: "sqlite" | "postgres") => storageOn(dialect, freshDatabase);

async function storageOn(dialect: "sqlite" | "postgres", newDatabase: typeof freshDatabase) {
  const folder = mkdtempSync(join(tmpdir(), "moltwire-test-"));
  const database = dialect === "postgres" ? await newDatabase() : undefined;
  return {
    folder,
    options: database ? { databaseUrl: database.url } : { data: folder },
    async [Symbol.asyncDispose]() {
      rmSync(folder, { recursive: true });
      await database?.drop();
    },
  };
}
