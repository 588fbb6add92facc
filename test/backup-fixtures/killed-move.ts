/** A process that migrates seven rows at a time and is killed after so many transactions. Its argument is JSON. */
import { fileURLToPath } from "node:url";
import { readMigrations } from "../../src/db/migrate.ts";
import { type Move, move } from "../../src/ops/move.ts";

const { from, to, puts } = JSON.parse(process.argv[2]!) as Pick<Move, "from" | "to"> & { puts: number };
let told = 0;
await move({
  ...{ from, to, nowMs: Date.now, batchRows: 7 },
  migrations: (engine) => readMigrations(fileURLToPath(new URL("../../src/db/migrations", import.meta.url)), engine),
  tell: () => {
    if (++told === puts) process.kill(process.pid, "SIGKILL");
  },
});
