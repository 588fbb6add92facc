/** Writes numbers as fast as it can and prints each one once its write is acknowledged. */
import { writeSync } from "node:fs";
import { sql } from "../../src/db/db.ts";
import { openSqlite } from "../../src/db/sqlite.ts";

const [, , file = "", first = "0"] = process.argv;
const db = openSqlite({ file });
await db.tx((tx) => tx.script("create table if not exists seen (n integer primary key, padding text) strict"));
const padding = "x".repeat(200);
let next = Number(first);
await Promise.all(
  Array.from({ length: 32 }, async () => {
    for (;;) {
      const n = next++;
      await db.tx((tx) => tx.run(sql`insert into seen values (${n}, ${padding})`));
      writeSync(1, `${n}\n`);
    }
  }),
);
