import { durationFromMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import type { StatusService } from "../../gen/moltwire/ops/v1/status_service_pb.ts";
import type { App } from "../app.ts";
import { type Queryable, sql } from "../db/db.ts";
import { holdsScope } from "../rpc/access.ts";
import { query } from "../rpc/query.ts";
import { version } from "../version.ts";

export const statusHandler = (app: App, startedMs: number): ServiceImpl<typeof StatusService> => ({
  getStatus: query(app, async (_req, { db, caller, now }) => {
    const healthy = !app.stopping.aborted && (await answers(app, db));
    const status = { version, healthy, time: timestampFromMs(now) };
    if (caller.role !== Role.OPERATOR || !holdsScope(caller.scopes, "status:read")) return status;
    const counts = await db.one<Counts>(countsOf);
    return {
      ...status,
      details: {
        engine: app.db.engine,
        schemaVersion: counts!.schema,
        uptime: durationFromMs(now - startedMs),
        encryptionAtRest: app.vault.encrypts,
        organizations: BigInt(counts!.organizations),
        agents: BigInt(counts!.agents),
        contracts: BigInt(counts!.contracts),
        openTasks: BigInt(counts!.open_tasks),
        openStreams: BigInt(app.metrics.openStreams()),
      },
    };
  }),
});

type Counts = {
  readonly schema: number;
  readonly organizations: number;
  readonly agents: number;
  readonly contracts: number;
  readonly open_tasks: number;
};

/** Whole-table counts of small tables, and of tasks along the partial index on open ones. */
const countsOf = sql`select (select max(version) from schema_version) as schema, (select count(*) from organization) as organizations,
  (select count(*) from agent) as agents, (select count(*) from contract) as contracts, (select count(*) from task where state < 4) as open_tasks`;

async function answers(app: App, db: Queryable): Promise<boolean> {
  try {
    await db.one(sql`select 1 as one`);
    return true;
  } catch (error) {
    app.log.error({ err: error }, "storage does not answer");
    return false;
  }
}
