import { join } from "node:path";
import { configDefaults, defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    globalSetup: ["test/temporary-folder.ts", "test/postgres-server.ts"],
    include: ["test/**/*.test.ts"],
    exclude: [...configDefaults.exclude, "test/long/**", "test/crash/**", "test/bench/**", "test/console/**"],
    // Processes, because better-sqlite3 is native code and some tests watch their own memory and sockets.
    pool: "forks",
    maxWorkers: 2,
    // For the many servers and commands that tests start as processes: compiled once, and not by each.
    env: { NODE_COMPILE_CACHE: join(import.meta.dirname, "node_modules/.cache/node-compile") },
    // Nothing takes a tenth of it, unless the machine is busy with something else.
    testTimeout: 120_000,
    hookTimeout: 120_000,
  },
});
