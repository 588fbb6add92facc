/** A server of its own in one of whose queues many jobs wait. */
import { join } from "node:path";
import { type Db, sql } from "../../src/db/db.ts";
import { openPostgres } from "../../src/db/postgres.ts";
import { openSqlite } from "../../src/db/sqlite.ts";
import { startServer } from "../crash/server-process.ts";
import { benchQueue } from "./cases.ts";
import { type Moltwire, serverSettings, startMoltwire } from "./targets.ts";

export type Backlog = Pick<Moltwire, "engine" | "process" | "port" | "agentKey"> & { readonly pending: number };

/** Starts it, stops it, puts the jobs into its database by one statement, and starts it again: to submit a million would take minutes. */
export async function startBacklog(engine: string, storage: Record<string, string>, pending: number): Promise<Backlog> {
  const first = await startMoltwire(engine, storage);
  await first.process.stop();
  const { MOLTWIRE_DATA: data, MOLTWIRE_DATABASE_URL: url } = storage;
  const db = url
    ? await openPostgres(url, { statementTimeoutMs: fillMs })
    : openSqlite({ file: join(data!, "moltwire.db") });
  await fill(db, pending);
  await db.close();
  const process = startServer({ ...storage, ...serverSettings });
  return { engine, process, port: Number(new URL(await process.ready).port), agentKey: first.agentKey, pending };
}

const fillMs = 300_000;

/** The number as the 32 digits of an id. */
const padded = ({ engine }: Db) => (engine === "sqlite" ? sql`printf('%032d', n)` : sql`lpad(n::text, 32, '0')`);

/** As SubmitJob leaves them, but for their payloads, and for the count of unfinished jobs, by which a million would be all there may be. */
async function fill(db: Db, pending: number): Promise<void> {
  const numbers =
    db.engine === "sqlite"
      ? sql`(with recursive n(n) as (select 1 union all select n + 1 from n where n < ${pending}) select n from n) numbers`
      : sql`generate_series(1::bigint, ${pending}::bigint) as numbers(n)`;
  await db.tx((tx) =>
    tx.run(sql`
      insert into queue_job (org_id, job_id, queue, state, priority, max_attempts, attempts, attempt_limit, redrives, backoff_ms, max_backoff_ms,
        unique_key, tags, submitter_agent_id, worker_agent_id, lease_token, lease_stream, lease_ms, cancel_requested, trace_id, span_id, schedule_id,
        create_ms, run_ms, ready_ms)
      select org_id, 'job_' || ${padded(db)}, ${benchQueue}, 2, 5, 5, 0, 5, 0, 1000, 1000,
        '', '{}', agent_id, '', '', '', 0, 0, '', '', '', 0, 0, 0
      from (select org_id, agent_id from agent where name = 'bench-0') as submitter, ${numbers}`),
  );
  await db.tx((tx) => tx.script("analyze"));
}
