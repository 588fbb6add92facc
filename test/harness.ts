/** A real server on a real port, and clients generated from the protos, for one test. */
import { randomBytes } from "node:crypto";
import type { DescService, MessageInitShape } from "@bufbuild/protobuf";
import { type Client, Code, ConnectError, createClient, type Interceptor, type Transport } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";
import { pino } from "pino";
import { ErrorInfoSchema } from "../gen/google/rpc/error_details_pb.ts";
import { Role } from "../gen/moltwire/api/v1/access_pb.ts";
import { BatchService } from "../gen/moltwire/batch/v1/batch_service_pb.ts";
import { AgentService, type RegisterAgentRequestSchema } from "../gen/moltwire/bus/v1/agent_service_pb.ts";
import { ApprovalService } from "../gen/moltwire/bus/v1/approval_service_pb.ts";
import { BudgetService } from "../gen/moltwire/bus/v1/budget_service_pb.ts";
import { BusService } from "../gen/moltwire/bus/v1/bus_service_pb.ts";
import { ContractService } from "../gen/moltwire/bus/v1/contract_service_pb.ts";
import { CostService } from "../gen/moltwire/bus/v1/cost_service_pb.ts";
import { DeadLetterService } from "../gen/moltwire/bus/v1/dead_letter_service_pb.ts";
import { PolicyService } from "../gen/moltwire/bus/v1/policy_service_pb.ts";
import { TraceService } from "../gen/moltwire/bus/v1/trace_service_pb.ts";
import { DirectoryService } from "../gen/moltwire/directory/v1/directory_service_pb.ts";
import { BillingService } from "../gen/moltwire/exchange/v1/billing_service_pb.ts";
import { CatalogService } from "../gen/moltwire/exchange/v1/catalog_service_pb.ts";
import { MarketplaceService } from "../gen/moltwire/exchange/v1/marketplace_service_pb.ts";
import { ReviewService } from "../gen/moltwire/exchange/v1/review_service_pb.ts";
import { SubscriptionService } from "../gen/moltwire/exchange/v1/subscription_service_pb.ts";
import { ApiKeyService } from "../gen/moltwire/federation/v1/api_key_service_pb.ts";
import { GatewayService } from "../gen/moltwire/federation/v1/gateway_service_pb.ts";
import { GrantService } from "../gen/moltwire/federation/v1/grant_service_pb.ts";
import { NamespaceService } from "../gen/moltwire/federation/v1/namespace_service_pb.ts";
import { OrganizationService } from "../gen/moltwire/federation/v1/organization_service_pb.ts";
import { PeerGatewayService } from "../gen/moltwire/federation/v1/peer_gateway_service_pb.ts";
import { PeerService } from "../gen/moltwire/federation/v1/peer_service_pb.ts";
import { ScenarioService } from "../gen/moltwire/lab/v1/scenario_service_pb.ts";
import { MemoryService } from "../gen/moltwire/memory/v1/memory_service_pb.ts";
import { SharedMemoryService } from "../gen/moltwire/memory/v1/shared_memory_service_pb.ts";
import { AdminService } from "../gen/moltwire/ops/v1/admin_service_pb.ts";
import { ContactService } from "../gen/moltwire/ops/v1/contact_service_pb.ts";
import { EventService } from "../gen/moltwire/ops/v1/event_service_pb.ts";
import { MaintenanceService } from "../gen/moltwire/ops/v1/maintenance_service_pb.ts";
import { SessionService } from "../gen/moltwire/ops/v1/session_service_pb.ts";
import { StatusService } from "../gen/moltwire/ops/v1/status_service_pb.ts";
import { QueueService } from "../gen/moltwire/queue/v1/queue_service_pb.ts";
import { ScheduleService } from "../gen/moltwire/queue/v1/schedule_service_pb.ts";
import { RelayService } from "../gen/moltwire/relay/v1/relay_service_pb.ts";
import { TextService } from "../gen/moltwire/text/v1/text_service_pb.ts";
import { WebhookService } from "../gen/moltwire/webhook/v1/webhook_service_pb.ts";
import type { Clock } from "../src/clock.ts";
import { type Db, sql } from "../src/db/db.ts";
import { createServer, type Server, type ServerOptions } from "../src/server.ts";
import { parseMasterKey } from "../src/vault/master-key.ts";
import { balancer } from "./balancer.ts";
import { migratedDatabase, postgresUrl } from "./engines.ts";

/** MOLTWIRE_TEST_REPLICAS: so many servers, behind a balancer, are what a test on PostgreSQL speaks with; there are no others then. */
const replicas = Number(process.env.MOLTWIRE_TEST_REPLICAS || 1);

/** The engines there are on this machine: every area test runs on each. */
export const dialects: readonly ("sqlite" | "postgres")[] =
  replicas > 1 ? ["postgres"] : postgresUrl ? ["sqlite", "postgres"] : ["sqlite"];

export type Protocol = "connect" | "connect-json" | "grpc" | "grpc-web";

/** Clients of every service for one key. */
export type Clients = ReturnType<typeof clientsOf>;

export type World = {
  readonly url: string;
  readonly server: Server;
  /** The operator's key, and clients that use it. */
  readonly operatorKey: string;
  readonly operator: Clients;
  /** Clients with a key, or without one. */
  as(key: string | undefined, protocol?: Protocol, interceptors?: Interceptor[]): Clients;
  /** A client of one service. */
  client<S extends DescService>(service: S, key: string | undefined, protocol?: Protocol): Client<S>;
  /** A new organisation with an administrator's key. */
  org(name?: string): Promise<Org>;
  /** Waits until lists of events show all that was committed before: PostgreSQL holds it back while an older transaction of the whole cluster is open. */
  settled(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
};

export type Org = {
  readonly orgId: string;
  readonly adminKey: string;
  readonly admin: Clients;
  /** A new agent with a key of its own. */
  agent(init?: MessageInitShape<typeof RegisterAgentRequestSchema>): Promise<OrgAgent>;
};

export type OrgAgent = { readonly agentId: string; readonly key: string; readonly as: Clients };

/**
 * Starts a server on the engine, with a database of its own. Allows calls to loopback; sets no rate limit unless told. With a MOLTWIRE_MASTER_KEY in the environment
 * it encrypts at rest, so that any test can be run so.
 */
export async function start(dialect: "sqlite" | "postgres" = "sqlite", options: ServerOptions = {}): Promise<World> {
  const { MOLTWIRE_MASTER_KEY } = process.env;
  const { drainMs = 2_000 } = options;
  const database = dialect === "postgres" && !options.databaseUrl ? await migratedDatabase() : undefined;
  const settings: ServerOptions = {
    data: ":memory:",
    port: 0,
    rateLimit: 0,
    egressAllow: ["127.0.0.1"],
    drainMs,
    // Many at once on a slow machine are to be answered, not refused.
    databaseWaitMs: 120_000,
    // A reader that has stopped reading closes no connection, and the stop would wait for it.
    limits: { drainTimeoutMs: drainMs + 500, lingerTimeoutMs: 250 },
    log: pino({ level: "silent" }),
    ...(MOLTWIRE_MASTER_KEY && { masterKeys: [parseMasterKey(MOLTWIRE_MASTER_KEY)] }),
    ...(database && { databaseUrl: database.url }),
    ...options,
  };
  const server = await createServer(settings);
  const ownUrl = await server.listen();
  const crowd = dialect === "postgres" && replicas > 1 ? await others(settings, ownUrl) : undefined;
  const url = crowd?.url ?? ownUrl;
  const operatorKey = server.operatorKey ?? "";
  const as: World["as"] = (key, protocol = "connect", interceptors = []) =>
    clientsOf(transport(url, key, protocol, interceptors));
  const operator = as(operatorKey);
  return {
    url,
    server,
    operatorKey,
    operator,
    as,
    client: (service, key, protocol = "connect") => createClient(service, transport(url, key, protocol, [])),
    org: (name = unique("org")) => newOrg(operator, as, name),
    settled: () => settled(server.app.db),
    async [Symbol.asyncDispose]() {
      await Promise.all([crowd?.close(), server.close()]);
      await database?.drop();
    },
  };
}

/** The other replicas, and the balancer before all of them. */
async function others(settings: ServerOptions, firstUrl: string) {
  const servers = await Promise.all(Array.from({ length: replicas - 1 }, () => createServer(settings)));
  const urls = [firstUrl, ...(await Promise.all(servers.map((server) => server.listen())))];
  const front = await balancer(() => urls);
  return {
    url: front.url,
    async close() {
      await Promise.all(servers.map((server) => server.close()));
      await front[Symbol.asyncDispose]();
    },
  };
}

export function transport(
  url: string,
  key: string | undefined,
  protocol: Protocol,
  interceptors: Interceptor[] = [],
): Transport {
  const withKey: Interceptor = (next) => (request) => {
    if (key !== undefined) request.header.set("authorization", `Bearer ${key}`);
    return next(request);
  };
  const common = { baseUrl: url, interceptors: [withKey, ...interceptors] };
  switch (protocol) {
    case "connect":
      return createConnectTransport({ ...common, httpVersion: "2", useBinaryFormat: true });
    case "connect-json":
      return createConnectTransport({ ...common, httpVersion: "1.1", useBinaryFormat: false, useHttpGet: true });
    case "grpc":
      return createGrpcTransport(common);
    case "grpc-web":
      return createGrpcWebTransport({ ...common, httpVersion: "1.1" });
  }
}

/** Clients of a server that runs elsewhere. */
export const clientsAt = (url: string, key: string | undefined, protocol: Protocol = "connect"): Clients =>
  clientsOf(transport(url, key, protocol));

const clientsOf = (over: Transport) => ({
  batch: createClient(BatchService, over),
  bus: createClient(BusService, over),
  approvals: createClient(ApprovalService, over),
  contracts: createClient(ContractService, over),
  agents: createClient(AgentService, over),
  policies: createClient(PolicyService, over),
  traces: createClient(TraceService, over),
  deadLetters: createClient(DeadLetterService, over),
  budgets: createClient(BudgetService, over),
  costs: createClient(CostService, over),
  memory: createClient(MemoryService, over),
  sharedMemory: createClient(SharedMemoryService, over),
  organizations: createClient(OrganizationService, over),
  namespaces: createClient(NamespaceService, over),
  grants: createClient(GrantService, over),
  gateway: createClient(GatewayService, over),
  peers: createClient(PeerService, over),
  peerGateway: createClient(PeerGatewayService, over),
  keys: createClient(ApiKeyService, over),
  events: createClient(EventService, over),
  admin: createClient(AdminService, over),
  maintenance: createClient(MaintenanceService, over),
  sessions: createClient(SessionService, over),
  status: createClient(StatusService, over),
  text: createClient(TextService, over),
  contacts: createClient(ContactService, over),
  directory: createClient(DirectoryService, over),
  billing: createClient(BillingService, over),
  market: createClient(MarketplaceService, over),
  catalog: createClient(CatalogService, over),
  subscriptions: createClient(SubscriptionService, over),
  reviews: createClient(ReviewService, over),
  scenarios: createClient(ScenarioService, over),
  queues: createClient(QueueService, over),
  schedules: createClient(ScheduleService, over),
  relay: createClient(RelayService, over),
  webhooks: createClient(WebhookService, over),
});

/** A new organisation, wherever the server of these clients runs. */
export async function newOrg(operator: Clients, as: World["as"], name: string): Promise<Org> {
  const { organization } = await operator.organizations.createOrganization({ name });
  const { orgId } = organization!;
  const { secret: adminKey } = await operator.keys.createApiKey({ orgId, role: Role.ORG });
  const admin = as(adminKey);
  return {
    orgId,
    adminKey,
    admin,
    async agent(init = {}) {
      const { agent } = await admin.agents.registerAgent({ name: unique("agent"), ...init });
      const { agentId } = agent!;
      const { secret: key } = await admin.keys.createApiKey({ agentId });
      return { agentId, key, as: as(key) };
    },
  };
}

/** A name nothing else has. */
export const unique = (prefix: string): string => `${prefix}-${randomBytes(6).toString("hex")}`;

/** What a call failed with: its code, reason and metadata. Fails the test when it does not fail. */
export async function refusal(
  call: Promise<unknown>,
): Promise<{ code: string; reason: string; metadata: Record<string, string>; error: ConnectError }> {
  const error = await call.then(
    () => undefined,
    (thrown: unknown) => ConnectError.from(thrown),
  );
  if (!error) throw new Error("the call was expected to fail, and succeeded");
  const [info] = error.findDetails(ErrorInfoSchema);
  return { code: Code[error.code], reason: info?.reason ?? "", metadata: info?.metadata ?? {}, error };
}

async function settled({ query }: Db): Promise<void> {
  const { name, horizon } = query.dialect;
  if (name === "sqlite") return;
  const xid = (await query.one<{ xid: number }>(
    sql`select pg_snapshot_xmax(pg_current_snapshot())::text::bigint as xid`,
  ))!.xid;
  await eventually(async () => (await query.one<{ past: boolean }>(sql`select ${horizon} >= ${xid} as past`))!.past);
}

/** What a call comes to once the server has room for it: on a slow machine it refuses what has waited too long for a connection to the database. */
export async function untilTaken<T>(call: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await call();
    } catch (error) {
      if ((await refusal(Promise.reject(error))).reason !== "OVERLOADED") throw error;
    }
  }
}

/** Waits until something is so; fails after a minute, which a machine that others use too may need. */
export async function eventually<T>(
  look: () => Promise<T | undefined | false> | T | undefined | false,
  withinMs = 60_000,
): Promise<T> {
  const end = Date.now() + withinMs;
  for (;;) {
    const found = await look();
    if (found) return found;
    if (Date.now() > end) throw new Error("what was waited for did not come");
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** What comes of something while time goes on: on PostgreSQL a watcher may have to look a second time, when an older transaction of the cluster has ended. */
export async function asTimePasses<T>(clock: { advance(ms: number): void }, coming: Promise<T>): Promise<T> {
  let isOver = false;
  const over = () => {
    isOver = true;
  };
  coming.then(over, over);
  await eventually(() => {
    if (!isOver) clock.advance(1_000);
    return isOver;
  });
  return coming;
}

/** A clock that stands still until it is moved; timers fire as it passes them. */
export function fakeClock(startMs = Date.parse("2026-01-01T00:00:00Z")): Clock & { advance(ms: number): void } {
  let now = startMs;
  let timers: { readonly at: number; readonly run: () => void }[] = [];
  const after = (ms: number, run: () => void) => {
    const timer = { at: now + ms, run };
    timers.push(timer);
    return { cancel: () => void (timers = timers.filter((one) => one !== timer)) };
  };
  return {
    now: () => now,
    after,
    sleep: (ms, signal) =>
      new Promise((resolve, reject) => {
        if (signal.aborted) return reject(signal.reason);
        const timer = after(ms, resolve);
        signal.addEventListener(
          "abort",
          () => {
            timer.cancel();
            reject(signal.reason);
          },
          { once: true },
        );
      }),
    advance(ms) {
      const until = now + ms;
      for (;;) {
        const due = timers.filter(({ at }) => at <= until).toSorted((a, b) => a.at - b.at)[0];
        if (!due) break;
        timers = timers.filter((one) => one !== due);
        now = Math.max(now, due.at);
        due.run();
      }
      now = until;
    },
  };
}
