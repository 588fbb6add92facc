/** The whole wiring: storage, the app, the port, what a call passes on its way in, and what happens at the stop. */
import type { X509Certificate } from "node:crypto";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { type ConnectRouter, createContextValues } from "@connectrpc/connect";
import { codeToString } from "@connectrpc/connect/protocol-connect";
import { type FastifyError, fastify } from "fastify";
import { type Logger, pino } from "pino";
import { Health } from "../gen/grpc/health/v1/health_pb.ts";
import { AgentRuntimeService } from "../gen/moltwire/agent/v1/agent_runtime_service_pb.ts";
import { file_moltwire_api_v1_access } from "../gen/moltwire/api/v1/access_pb.ts";
import type { App } from "./app.ts";
import type { Adapters } from "./bus/adapter.ts";
import { customAdapters } from "./bus/adapters/custom.ts";
import { echoAdapter } from "./bus/adapters/echo.ts";
import { grpcAdapter } from "./bus/adapters/grpc.ts";
import { httpAdapter } from "./bus/adapters/http.ts";
import { openAiAdapter } from "./bus/adapters/openai.ts";
import { expireApprovals } from "./bus/approval/expire.ts";
import { createDispatcher, maxPerPlace } from "./bus/dispatch.ts";
import { endpointKeys } from "./bus/endpoint-key.ts";
import { createPolicies } from "./bus/policy/policies.ts";
import { createReadDecisions } from "./bus/policy/read-decisions.ts";
import { recoverStrays, recoverTasks } from "./bus/recover.ts";
import { schemaCache } from "./bus/schema/schema.ts";
import { sweepPulled } from "./bus/serve/sweep.ts";
import { tellAll } from "./bus/step-watch.ts";
import {
  type Credentials,
  keepCertificates,
  type Reloading,
  readCredentials,
  type TlsFiles,
  tlsFiles,
} from "./certificates.ts";
import { type Clock, systemClock } from "./clock.ts";
import { type Config, readConfig } from "./config.ts";
import { browserKey, browserOf } from "./console/browser.ts";
import { consolePages } from "./console/pages.ts";
import { sweepSessions } from "./console/session.ts";
import type { Db } from "./db/db.ts";
import { migrate, readMigrations } from "./db/migrate.ts";
import { openPostgres } from "./db/postgres.ts";
import { openSqlite } from "./db/sqlite.ts";
import { activity } from "./directory/activity.ts";
import { sweepInvites } from "./directory/register.ts";
import { openEgress } from "./egress/egress.ts";
import type { Resolve } from "./egress/resolve.ts";
import { Fault, toConnectError } from "./errors.ts";
import { servePayments } from "./exchange/billing/payment-callback.ts";
import { sweepFreeUse } from "./exchange/call/sweep.ts";
import { expireReserves, expireReservesMs } from "./exchange/ledger/expire.ts";
import { sweepMarket, sweepMarketMs } from "./exchange/market/sweep.ts";
import { renewMs, renewSubscriptions } from "./exchange/subscription/renew.ts";
import { sweepCrossings } from "./federation/gateway/old-crossings.ts";
import { ungrantedWalk } from "./federation/gateway/sweep.ts";
import { expireGrants } from "./federation/grant/expire.ts";
import { keyUse } from "./federation/key-use.ts";
import { peerAdapter } from "./federation/peer/adapter.ts";
import { removedWalk } from "./federation/peer/removed.ts";
import { sweepPeers } from "./federation/peer/sweep.ts";
import { type Ids, randomIds } from "./ids.ts";
import { createLab, recoverMs } from "./lab/lab.ts";
import { beginLife, defaultLeaseMs } from "./life.ts";
import { cleartextServer, type ListenLimits, type Port } from "./listen.ts";
import { removeDropped } from "./memory/drop.ts";
import { expireEntries, logWalk } from "./memory/sweep.ts";
import { auditMetrics, auditSealer, sealMs } from "./ops/audit-seal.ts";
import { createContactCourier } from "./ops/contact-courier.ts";
import { serveContactPage } from "./ops/contact-page.ts";
import { sweepContacts } from "./ops/contact-store.ts";
import { createMetrics, type Metrics } from "./ops/metrics.ts";
import { servePages } from "./ops/pages.ts";
import { queueMetrics } from "./ops/queue-metrics.ts";
import { serveReference } from "./ops/reference/serve.ts";
import { createRetention, retentionMs } from "./ops/retention.ts";
import { selfCheck } from "./ops/self-check.ts";
import { storageMetrics } from "./ops/storage-metrics.ts";
import { taskMetrics } from "./ops/task-metrics.ts";
import { every } from "./periodic.ts";
import { scheduleMetrics } from "./queue/schedule/metrics.ts";
import { forgetOldRuns, tick, tickMs } from "./queue/schedule/tick.ts";
import { sweepOldJobs, sweepQueues, sweepQueuesMs } from "./queue/sweep.ts";
import { removeDroppedGroups, removeDroppedLogs } from "./relay/drop.ts";
import { relayCounts } from "./relay/metrics.ts";
import { sweepPresence } from "./relay/presence.ts";
import { retentionWalk, sweepRelay } from "./relay/sweep.ts";
import { methodName } from "./rpc/access.ts";
import { bookStore, sweepBooks } from "./rpc/allotment-store.ts";
import { createBatch } from "./rpc/batch.ts";
import { clientAddress, clientAddressKey } from "./rpc/client-address.ts";
import { allowOrigins } from "./rpc/cors.ts";
import { signedCursors } from "./rpc/cursor.ts";
import { errorsInterceptor } from "./rpc/errors.ts";
import { gate, innerGate } from "./rpc/gate.ts";
import { createHealthState, healthRoutes } from "./rpc/health.ts";
import { sweepReplies } from "./rpc/idempotency.ts";
import { createLimiters, itemsInterceptor } from "./rpc/limits.ts";
import { mount } from "./rpc/mount.ts";
import { callEnded, observeInterceptor } from "./rpc/observe.ts";
import { largestAnswerBytes } from "./rpc/page.ts";
import { payloadInterceptor } from "./rpc/payloads.ts";
import { reflectionRoutes } from "./rpc/reflection.ts";
import { answerUnknownPaths, refuse } from "./rpc/refuse.ts";
import { sharedWindows } from "./rpc/shared-window.ts";
import { validateInterceptor, warmValidation } from "./rpc/validate.ts";
import { sealedTables } from "./sealed-columns.ts";
import { routes, services } from "./services.ts";
import { setUp } from "./setup.ts";
import { openTelemetry } from "./telemetry/open.ts";
import { spansOfTasks } from "./telemetry/task-spans.ts";
import { tlsServer } from "./tls-port.ts";
import { openVault } from "./vault/open.ts";
import { createUpkeep, upkeepMs } from "./vault/upkeep.ts";
import { createCourier, maxSending } from "./webhook/courier.ts";
import { removeDroppedWebhooks } from "./webhook/sweep.ts";

export { type Adapter, type Adapters, type Answer, type Assignment, AttemptFault, type Usage } from "./bus/adapter.ts";

export type ServerOptions = Partial<Config> & {
  /**
   * By name: one of a built-in kind of endpoint (echo, http, grpc, openai, peer) takes its place; any other is reached by a CustomEndpoint with that
   * `adapter`.
   */
  readonly adapters?: Adapters;
  readonly clock?: Clock;
  readonly ids?: Ids;
  readonly log?: Logger;
  /** Replaces DNS, for tests. */
  readonly resolve?: Resolve;
  /** Limits of the port, for tests. */
  readonly limits?: Partial<ListenLimits>;
  /**
   * More services on the same port, behind the same gate, limits and interceptors. A method that declares no `(moltwire.api.v1.access)` is refused to
   * everybody.
   */
  readonly routes?: (router: ConnectRouter) => void;
  /** The largest message taken, for tests. Default 4 MiB. */
  readonly readMaxBytes?: number;
  /** How long one attempt to tell a webhook may take, for tests. Default 10 s. */
  readonly webhookTimeoutMs?: number;
  /** The folder of the built console. Default: that of this package. */
  readonly consoleFolder?: string;
  /** How long a call waits for a connection to PostgreSQL before it is refused as OVERLOADED. Default 10 s. */
  readonly databaseWaitMs?: number;
  /** How long a server that is gone keeps its tasks from the other replicas; each beats three times as often. Default 15 s. */
  readonly leaseMs?: number;
  /** How long the stop waits for tasks under way. Default 10 s. */
  readonly drainMs?: number;
  /** What happens when storage fails. Default: the process ends. */
  readonly onFatal?: (error: unknown) => void;
};

export type Server = {
  /** Opens the port; gives the URL. */
  listen(): Promise<string>;
  /** Stops: takes nothing new, finishes unary calls, ends streams with their cursor, lets tasks end or go, closes storage. */
  close(): Promise<void>;
  /** The key of the operator, at the first start of a database and if none was given; then never again. */
  readonly operatorKey: string | undefined;
  readonly homeOrgId: string;
  /** The certificate the port began with; undefined in cleartext. */
  readonly certificate: X509Certificate | undefined;
  /** Reads the certificate's files again now; see `keepCertificates`. Nothing in cleartext. */
  reloadCertificate(): Promise<void>;
  readonly app: App;
};

const mib = 1_048_576;
const defaultDrainMs = 10_000;
const keyUseMs = 30_000;
const sweepMs = 60_000;
const giveBackMs = 1_000;
/** More often than once a minute, so that none is missed. */
const checkMs = 20_000;
const approvalMs = 5_000;
/** Half of the time in which the end of a grant binds what is under way. */
const grantMs = 500;
/** As short as the shortest lease that Serve gives. */
const pulledMs = 1_000;
const expiryMs = 500;
const memoryLogMs = 10_000;
const relayLogMs = 10_000;
const certificateMs = 60_000;
/** What the last spans have when the tasks took all of the time to stop. */
const minFlushMs = 1_000;

/** Opens storage, brings its schema forward, and builds the server; `listen` opens the port. */
export async function createServer(options: ServerOptions = {}): Promise<Server> {
  const {
    adapters = {},
    clock = systemClock(),
    ids = randomIds(),
    limits,
    resolve,
    routes: moreRoutes,
    webhookTimeoutMs,
    readMaxBytes = 4 * mib,
    consoleFolder,
    databaseWaitMs,
    drainMs = defaultDrainMs,
    leaseMs = defaultLeaseMs,
    onFatal,
    ...given
  } = options;
  const config: Config = { ...readConfig([], {}), ...given };
  const log = options.log ?? pino({ level: config.logLevel }, pino.destination({ dest: 2, sync: false }));
  // First of all: a wrong pair should touch nothing.
  const files = tlsFiles(config);
  const tls = files && { files, current: await readCredentials(files, clock.now()) };
  const metrics = createMetrics(log);
  const storage = await openStorage(config, metrics, onFatal, databaseWaitMs);
  const opened = await openVault({
    db: storage,
    masters: config.masterKeys,
    tables: sealedTables,
    ids,
    clock,
    log,
  }).catch(async (error: unknown) => {
    await storage.close();
    throw error;
  });
  const { db, vault, keyring } = opened;
  const setup = await setUp({ db, ids, clock, operatorKeyGiven: config.operatorKeyDigest !== undefined });
  const egress = openEgress({
    allow: config.egressAllow,
    maxConnectionsPerOrigin: maxPerPlace,
    onResult: metrics.outgoing,
    ...(resolve && { resolve }),
  });
  const webhookEgress = openEgress({
    allow: config.egressAllow,
    insecureHttp: "allow-listed",
    // Who sends has places of its own; a request that waited for another here would be counted as failed.
    maxConnectionsPerOrigin: maxSending,
    onResult: metrics.outgoing,
    ...(resolve && { resolve }),
  });
  const serverId = ids.next("srv");
  // A file has one process; replicas over PostgreSQL share their limits.
  const shared = db.engine === "postgres" ? sharedWindows((kind) => bookStore(db, kind), clock, serverId) : undefined;
  const telemetry = await openTelemetry(config, serverId, { clock, ids, log, metrics });
  storageMetrics(metrics, db);
  queueMetrics(metrics, db, clock);
  const stopping = new AbortController();
  const ending = new AbortController();
  const app: App = {
    config,
    db,
    clock,
    ids,
    egress,
    webhookEgress,
    vault,
    keyring,
    cursors: signedCursors(setup.cursorSecret),
    keyUse: keyUse(db, log),
    limiters: createLimiters(config.rateLimit, config.rateLimitTiers, clock, shared?.window),
    activity: activity(db, log),
    adapters: {
      echo: echoAdapter,
      http: httpAdapter(egress),
      grpc: grpcAdapter(egress),
      peer: peerAdapter(() => app),
      openai: openAiAdapter(egress, endpointKeys(db, vault, config.adapterKeys, process.env)),
      ...customAdapters(adapters, clock),
    },
    schemas: schemaCache(1_000),
    policies: createPolicies(),
    readDecisions: createReadDecisions(metrics),
    metrics,
    relayCounts: relayCounts(metrics),
    retention: createRetention({ config, db, clock, serverId, stopping: stopping.signal }, metrics),
    telemetry,
    stepsCommitted: tellAll(log, [taskMetrics(metrics, db), ...(telemetry ? [spansOfTasks(telemetry)] : [])]),
    log,
    serverId,
    homeOrgId: setup.homeOrgId,
    stopping: stopping.signal,
    ending: ending.signal,
  };
  const life = await beginLife(app, leaseMs);
  const dispatcher = createDispatcher(app);
  const courier = createCourier(app, webhookTimeoutMs);
  const contactCourier = createContactCourier(app, resolve);
  const health = createHealthState(services.map(({ typeName }) => typeName));

  const lab = createLab(app);
  const batch = createBatch(app);
  const served = routes(app, dispatcher, lab, batch);
  const { port, certificates } = openPort(app, limits, tls);
  const http = fastify({
    serverFactory: port.serverFactory,
    forceCloseConnections: "idle",
    return503OnClosing: false,
    trustProxy: config.trustedProxies.length > 0 && [...config.trustedProxies],
  });
  http.setErrorHandler((error: FastifyError, request, reply) => {
    if (error.statusCode !== undefined && error.statusCode < 500) return reply.send(error);
    log.error({ err: error, url: request.url }, "a page failed");
    return refuse(reply, request, toConnectError(new Fault("INTERNAL", "internal fault; the server's log tells more")));
  });
  allowOrigins(http, config.corsOrigins);
  answerUnknownPaths(http, (code, tookMs) => metrics.rpc("unknown", codeToString(code), "", tookMs / 1_000));
  servePages(http, app, services, consolePages(http, ids, consoleFolder));
  serveReference(http);
  serveContactPage(http, app, app.limiters);
  servePayments(http, app);
  const inside = {
    gate: gate(app, served.unbuilt),
    interceptors: [
      observeInterceptor(app),
      errorsInterceptor(app),
      validateInterceptor(),
      itemsInterceptor(app.limiters),
      payloadInterceptor(),
    ],
    readMaxBytes,
    writeMaxBytes: largestAnswerBytes,
  };
  lab.open({ ...inside, routes: served.mount });
  batch.open({
    services,
    routes: served.mount,
    gate: innerGate(app, served.unbuilt),
    interceptors: inside.interceptors,
  });
  mount(http, {
    ...inside,
    routes: (router) => {
      served.mount(router);
      healthRoutes(health)(router);
      reflectionRoutes([...services, Health], [file_moltwire_api_v1_access, AgentRuntimeService.file])(router);
      moreRoutes?.(router);
    },
    contextValues: (request) =>
      createContextValues().set(clientAddressKey, clientAddress(request)).set(browserKey, browserOf(request)),
    shutdownSignal: stopping.signal,
    onFailure: ({ error, method }) =>
      log.error({ err: error, method: method.name }, "a call failed outside its handler"),
    onUnreadable: ({ method, values }, error) => callEnded(app, method, values, error),
    onUngated: (method, code, tookMs) => metrics.rpc(methodName(method), code, "", tookMs / 1_000),
  });

  const scheduling = scheduleMetrics(metrics);
  const following = opened.follow(stopping.signal);
  const walkLogs = logWalk(app);
  const walkRelayLogs = retentionWalk(app);
  const endUngranted = ungrantedWalk(app);
  const check = selfCheck(app);
  const work = [
    every(app, leaseMs / 3, "lease", async () => {
      if (await life.beat()) await recoverTasks(app, dispatcher);
    }),
    every(app, keyUseMs, "key use", () => app.keyUse.flush()),
    every(app, keyUseMs, "activity", () => app.activity.flush()),
    every(app, sweepMs, "strays", async () => void (await recoverStrays(app, dispatcher))),
    every(app, sweepMs, "sweep", () => sweepReplies(app)),
    ...(shared
      ? [
          every(app, giveBackMs, "allotted requests", () => shared.giveBack()),
          every(app, sweepMs, "counted requests", () => sweepBooks(db, clock.now())),
        ]
      : []),
    every(app, sweepMs, "invites", () => sweepInvites(app)),
    every(app, sweepMs, "peers", () => sweepPeers(app)),
    every(app, sweepMs, "contacts", () => sweepContacts(app)),
    every(app, sealMs, "audit", auditSealer(app, auditMetrics(metrics, app))),
    every(app, retentionMs, "retention", app.retention.round),
    every(app, sweepMs, "sessions", () => sweepSessions(app)),
    every(app, checkMs, "self-check", check),
    every(app, sweepQueuesMs, "queues", () => sweepQueues(app)),
    every(app, tickMs, "schedules", () => tick(app, scheduling)),
    every(app, sweepMs, "old runs", () => forgetOldRuns(app)),
    every(app, sweepMs, "old jobs", () => sweepOldJobs(app)),
    every(app, approvalMs, "approvals", async () => void (await expireApprovals(app))),
    every(app, grantMs, "grants", async () => {
      await expireGrants(app);
      return endUngranted();
    }),
    every(app, grantMs, "removed peers", removedWalk(app)),
    every(app, sweepMs, "old requests across organisations", () => sweepCrossings(app)),
    every(app, recoverMs, "lab", () => lab.recover()),
    every(app, sweepMs, "free requests", () => sweepFreeUse(app)),
    every(app, expireReservesMs, "ledger reserves", () => expireReserves(app)),
    every(app, sweepMarketMs, "marketplace", () => sweepMarket(app)),
    every(app, renewMs, "subscriptions", () => renewSubscriptions(app)),
    every(app, pulledMs, "pulled tasks", async () => void (await sweepPulled(app, dispatcher))),
    every(app, expiryMs, "memory expiry", async () => void (await expireEntries(app))),
    every(app, memoryLogMs, "memory logs", async () => void (await walkLogs())),
    every(app, memoryLogMs, "dropped memories", async () => void (await removeDropped(app))),
    ...(keyring
      ? [
          every(
            app,
            upkeepMs,
            "vault",
            createUpkeep({ ...app, keyring, tables: sealedTables, stopping: stopping.signal }),
          ),
        ]
      : []),
    every(app, expiryMs, "messages", () => sweepRelay(app)),
    every(app, relayLogMs, "message logs", async () => void (await walkRelayLogs())),
    every(app, relayLogMs, "dropped messages", async () => void (await removeDroppedLogs(app))),
    every(app, relayLogMs, "dropped groups", () => removeDroppedGroups(app)),
    every(app, relayLogMs, "presence", async () => void (await sweepPresence(app))),
    every(app, memoryLogMs, "dropped webhooks", () => removeDroppedWebhooks(app)),
    every(app, sweepMs, "old deliveries", courier.sweep),
    ...(certificates ? [every(app, certificateMs, "certificates", certificates.check)] : []),
  ];

  let closing: Promise<void> | undefined;
  const close = async () => {
    health.shutDown();
    const drainedMs = performance.now() + drainMs;
    stopping.abort(toConnectError(new Fault("SHUTTING_DOWN", "the server is stopping")));
    const closed = http.close();
    await Promise.all([dispatcher.drain(drainMs), courier.drain(drainMs), lab.drain(drainMs)]);
    ending.abort(new Fault("SHUTTING_DOWN", "the server has stopped; the task goes on when it is back"));
    await closed;
    await courier.ended();
    await contactCourier.ended();
    await Promise.all([...work, ...(certificates ? [certificates] : [])].map((job) => job.stop()));
    await app.keyUse.flush();
    await app.activity.flush();
    await following;
    await keyring?.close();
    await life.end().catch((error: unknown) => log.warn({ err: error }, "the lease was not given back: it runs out"));
    // What is not given back in time counts for 5 s more.
    const givenBack = shared
      ?.giveBack(true)
      .catch((error: unknown) => log.warn({ err: error }, "allotted requests were not given back"));
    await Promise.race([givenBack, setTimeout(1_000, undefined, { ref: false })]);
    await egress.close();
    await webhookEgress.close();
    await db.close();
    await telemetry?.close(Math.max(minFlushMs, drainedMs - performance.now()));
    log.flush();
  };
  return {
    async listen() {
      const url = await http.listen({ host: config.host, port: config.port });
      // Not before: a start that fails for its port must not have begun anybody's work.
      await recoverTasks(app, dispatcher);
      await lab.recover();
      await courier.begin();
      contactCourier.begin();
      await check().catch((error: unknown) => log.error({ err: error }, "the first self-check failed"));
      warmValidation(services);
      // Fastify does not know what its port speaks.
      return tls ? url.replace(/^http:/, "https:") : url;
    },
    close: () => (closing ??= close()),
    operatorKey: setup.operatorKey,
    homeOrgId: setup.homeOrgId,
    certificate: tls?.current.certificate,
    reloadCertificate: async () => certificates?.reload(),
    app,
  };
}

type Tls = { readonly files: TlsFiles; readonly current: Credentials };

/** The port, over TLS if there is a certificate, and what keeps that up to date. */
function openPort(
  { clock, config, log }: App,
  limits: Partial<ListenLimits> | undefined,
  tls: Tls | undefined,
): { port: Port; certificates?: Reloading } {
  if (!tls) return { port: cleartextServer(limits) };
  const onRefused = (error: Error, client: string | undefined) =>
    log.debug({ err: error, client }, "a TLS handshake failed");
  const clientCertificates = tls.files.clientCa !== undefined && config.tlsClientAuth;
  const port = tlsServer({ context: tls.current.context, clientCertificates, onRefused }, limits);
  return { port, certificates: keepCertificates({ ...tls, use: ({ context }) => port.use(context), clock, log }) };
}

async function openStorage(
  config: Config,
  metrics: Metrics,
  onFatal: ((error: unknown) => void) | undefined,
  databaseWaitMs: number | undefined,
): Promise<Db> {
  const db = await openEngine(config, metrics, onFatal, databaseWaitMs);
  try {
    await migrate(db, readMigrations(join(import.meta.dirname, "db/migrations"), db.engine));
    return db;
  } catch (error) {
    await db.close();
    throw error;
  }
}

function openEngine(
  { databaseUrl, data, masterKeys }: Config,
  metrics: Metrics,
  onFatal: ((error: unknown) => void) | undefined,
  databaseWaitMs: number | undefined,
): Promise<Db> | Db {
  if (databaseUrl) return openPostgres(databaseUrl, databaseWaitMs ? { maxWaitMs: databaseWaitMs } : {});
  // Else what was sealed in its place would go on lying in the clear in what the file has free.
  const erases = masterKeys.length > 0;
  const common = { erases, onBatch: metrics.commit, ...(onFatal && { onFatal }) };
  if (data === ":memory:") return openSqlite({ ephemeral: true, ...common });
  mkdirSync(data, { recursive: true, mode: 0o700 });
  return openSqlite({ file: join(data, "moltwire.db"), ...common });
}
