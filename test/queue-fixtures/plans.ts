import { type Queryable, type Sql, sql } from "../../src/db/db.ts";

/** The plans of the statements that a function sends; what would change is not changed. */
export async function plansOf(db: Queryable, send: (db: never) => Promise<unknown>): Promise<string> {
  const sent: Sql[] = [];
  const recorder = {
    dialect: db.dialect,
    all: async (q: Sql) => [void sent.push(q)].slice(1),
    one: async (q: Sql) => void sent.push(q),
    run: async (q: Sql) => sent.push(q) * 0,
  };
  await send(recorder as never);
  const lines: string[] = [];
  for (const q of sent) {
    const plan = db.dialect.name === "sqlite" ? sql`explain query plan ${q}` : sql`explain ${q}`;
    for (const row of await db.all<Record<string, string>>(plan)) lines.push(row.detail ?? row["QUERY PLAN"] ?? "");
  }
  return lines.join("\n");
}
