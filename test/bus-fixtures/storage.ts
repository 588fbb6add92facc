import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { freshDatabase } from "../engines.ts";

/** Storage that outlives its servers. */
export async function storage(dialect: "sqlite" | "postgres") {
  const folder = mkdtempSync(join(tmpdir(), "moltwire-test-"));
  const database = dialect === "postgres" ? await freshDatabase() : undefined;
  return {
    folder,
    options: database ? { databaseUrl: database.url } : { data: folder },
    async [Symbol.asyncDispose]() {
      rmSync(folder, { recursive: true });
      await database?.drop();
    },
  };
}
