import { join } from "node:path";
import { defineConfig } from "vitest/config";

/** Area tests that ask nothing but what any client could, so that it does not matter which of several servers answers. */
const areas = ["approvals", "memory", "queue", "relay", "replicas"];

export default defineConfig({
  test: {
    root: join(import.meta.dirname, "../.."),
    globalSetup: ["test/temporary-folder.ts", "test/postgres-server.ts"],
    include: areas.map((area) => `test/${area}.test.ts`),
    pool: "forks",
    maxWorkers: 2,
    env: { MOLTWIRE_TEST_REPLICAS: "3" },
    testTimeout: 120_000,
    hookTimeout: 120_000,
  },
});
