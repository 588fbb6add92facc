import { durationFromMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import { TrustTier } from "../../gen/moltwire/bus/v1/agent_pb.ts";
import type { StatusService } from "../../gen/moltwire/ops/v1/status_service_pb.ts";
import type { App } from "../app.ts";
import { type Queryable, sql } from "../db/db.ts";
import { notFound } from "../errors.ts";
import { agentWallet } from "../exchange/ledger/account.ts";
import { availableOf, readStanding } from "../exchange/ledger/store.ts";
import { agentOf } from "../memory/owner.ts";
import { holdsScope } from "../rpc/access.ts";
import { query } from "../rpc/query.ts";
import { seesWholeOrg } from "../rpc/scope.ts";
import { version } from "../version.ts";
import { retentionDays } from "./retention.ts";
import { retentionKinds } from "./retention-store.ts";
import { slaReader } from "./sla.ts";
import { readStats } from "./stats-store.ts";

export function statusHandler(app: App, startedMs: number): ServiceImpl<typeof StatusService> {
  const readSla = slaReader();
  return {
    ...statusAndStats(app, startedMs),
    getSla: query(app, (_req, { db, now }) => readSla(db, now)),
  };
}

const tiers = Object.values(TrustTier).filter((tier) => typeof tier === "number" && tier !== TrustTier.UNSPECIFIED);

const statusAndStats = (
  app: App,
  startedMs: number,
): Pick<ServiceImpl<typeof StatusService>, "getStatus" | "getStats"> => ({
  getStatus: query(app, async (_req, { db, caller, now }) => {
    const healthy = !app.stopping.aborted && (await answers(app, db));
    const uptime = durationFromMs(now - startedMs);
    const status = { version, healthy, time: timestampFromMs(now), uptime, encryptionAtRest: app.vault.encrypts };
    if (caller.role !== Role.OPERATOR || !holdsScope(caller.scopes, "status:read")) return status;
    const counts = await db.one<Counts>(countsOf);
    return {
      ...status,
      details: {
        engine: app.db.engine,
        schemaVersion: counts!.schema,
        uptime,
        encryptionAtRest: app.vault.encrypts,
        organizations: BigInt(counts!.organizations),
        agents: BigInt(counts!.agents),
        contracts: BigInt(counts!.contracts),
        openTasks: BigInt(counts!.open_tasks),
        openStreams: BigInt(app.metrics.openStreams()),
        retention: retentionKinds.map((kind) => ({
          kind,
          days: retentionDays(app.config, kind),
          removed: BigInt(app.retention.removed(kind)),
        })),
        rateLimits: tiers.map((trustTier) => ({
          trustTier,
          requestsPerMinute: app.config.rateLimitTiers[trustTier] ?? app.config.rateLimit,
        })),
      },
    };
  }),

  getStats: query(app, async (req, { db, caller, orgId, now }) => {
    const agentId = agentOf(caller, req.agentId);
    const may = seesWholeOrg(caller) || agentId === caller.agentId;
    const row = may ? await readStats(db, orgId, agentId) : undefined;
    if (!row) throw notFound("agent", agentId);
    const pending = app.activity.pending(orgId, agentId);
    const standing = await readStanding(db, agentWallet(orgId, agentId), now);
    return {
      agentId,
      name: row.name,
      createTime: timestampFromMs(row.create_ms),
      ...(row.last_seen_ms > 0 && { lastSeenTime: timestampFromMs(row.last_seen_ms) }),
      requests: BigInt(row.requests + pending.requests),
      memoryKeys: BigInt(row.memory_keys),
      sharedMemoryKeys: BigInt(row.shared_keys),
      jobsSubmitted: BigInt(row.jobs + pending.jobs),
      tasksSubmitted: BigInt(row.tasks_submitted),
      tasksReceived: BigInt(row.tasks_received),
      collaborationsGiven: BigInt(row.given),
      collaborationsReceived: BigInt(row.ratings),
      reputation: row.reputation_milli / 1_000,
      messagesSent: BigInt(row.messages_sent + pending.messages),
      messagesReceived: BigInt(row.messages_received),
      webhooks: BigInt(row.webhooks),
      schedules: BigInt(row.schedules),
      creditsMicros: standing ? availableOf(standing) : 0n,
      marketplaceTasksPosted: BigInt(row.market_posted),
      marketplaceTasksWorked: BigInt(row.market_worked),
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
