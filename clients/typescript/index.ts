/** The client of a Moltwire server: every service, typed, the areas with what is said often in one word, and an error class for each reason. */
import type { DescService } from "@bufbuild/protobuf";
import type { Client } from "@connectrpc/connect";
import { BatchService } from "../../gen/moltwire/batch/v1/batch_service_pb.ts";
import { AgentService } from "../../gen/moltwire/bus/v1/agent_service_pb.ts";
import { ApprovalService } from "../../gen/moltwire/bus/v1/approval_service_pb.ts";
import { BudgetService } from "../../gen/moltwire/bus/v1/budget_service_pb.ts";
import { ContractService } from "../../gen/moltwire/bus/v1/contract_service_pb.ts";
import { CostService } from "../../gen/moltwire/bus/v1/cost_service_pb.ts";
import { DeadLetterService } from "../../gen/moltwire/bus/v1/dead_letter_service_pb.ts";
import { PolicyService } from "../../gen/moltwire/bus/v1/policy_service_pb.ts";
import { DirectoryService } from "../../gen/moltwire/directory/v1/directory_service_pb.ts";
import { BillingService } from "../../gen/moltwire/exchange/v1/billing_service_pb.ts";
import { CatalogService } from "../../gen/moltwire/exchange/v1/catalog_service_pb.ts";
import { MarketplaceService } from "../../gen/moltwire/exchange/v1/marketplace_service_pb.ts";
import { ReviewService } from "../../gen/moltwire/exchange/v1/review_service_pb.ts";
import { SubscriptionService } from "../../gen/moltwire/exchange/v1/subscription_service_pb.ts";
import { ApiKeyService } from "../../gen/moltwire/federation/v1/api_key_service_pb.ts";
import { GatewayService } from "../../gen/moltwire/federation/v1/gateway_service_pb.ts";
import { GrantService } from "../../gen/moltwire/federation/v1/grant_service_pb.ts";
import { NamespaceService } from "../../gen/moltwire/federation/v1/namespace_service_pb.ts";
import { OrganizationService } from "../../gen/moltwire/federation/v1/organization_service_pb.ts";
import { PeerService } from "../../gen/moltwire/federation/v1/peer_service_pb.ts";
import { ScenarioService } from "../../gen/moltwire/lab/v1/scenario_service_pb.ts";
import { SharedMemoryService } from "../../gen/moltwire/memory/v1/shared_memory_service_pb.ts";
import { AdminService } from "../../gen/moltwire/ops/v1/admin_service_pb.ts";
import { ContactService } from "../../gen/moltwire/ops/v1/contact_service_pb.ts";
import { MaintenanceService } from "../../gen/moltwire/ops/v1/maintenance_service_pb.ts";
import { SessionService } from "../../gen/moltwire/ops/v1/session_service_pb.ts";
import { StatusService } from "../../gen/moltwire/ops/v1/status_service_pb.ts";
import { ScheduleService } from "../../gen/moltwire/queue/v1/schedule_service_pb.ts";
import { TextService } from "../../gen/moltwire/text/v1/text_service_pb.ts";
import { WebhookService } from "../../gen/moltwire/webhook/v1/webhook_service_pb.ts";
import { busOf } from "./bus.ts";
import { type ConnectOptions, clientOf, open } from "./connection.ts";
import { eventsOf, tracesOf } from "./feeds.ts";
import { memoryOf } from "./memory.ts";
import { queueOf } from "./queue.ts";
import { relayOf } from "./relay.ts";
import type { ServeOptions } from "./serve.ts";
import type { Handler } from "./work.ts";

export { type BusArea, busOf, type SubmitOptions } from "./bus.ts";
export { type Connection, type ConnectOptions, clientOf, open } from "./connection.ts";
export { MoltwireError, Unreachable } from "./error.ts";
export { type EventArea, eventsOf, type TraceArea, tracesOf } from "./feeds.ts";
export type { JobHandler, JobInHand, WorkOptions } from "./jobs.ts";
export { TaskError } from "./lease.ts";
export { type EntryPlace, type MemoryArea, memoryOf, type SetOptions } from "./memory.ts";
export { type Content, contentOf, jsonOf, jsonValue, payloadOf } from "./payload.ts";
export { type QueueArea, queueOf, type SubmitJobOptions } from "./queue.ts";
export * from "./reason-errors.ts";
export { type Recipient, type RelayArea, relayOf, type SendOptions, type SubscribeOptions } from "./relay.ts";
export type { ServeOptions } from "./serve.ts";
export type { TraceApi } from "./trace.ts";
export type { Handler, TaskInHand } from "./work.ts";

/** Clients of a server for one key. */
export type Moltwire = ReturnType<typeof connect>;

/**
 * Clients of every service over one connection, which is opened at the first call and again whenever it breaks.
 *
 * Commands have an idempotency key, one for all attempts; a call is sent again only where its error says so. Feeds go on over lost connections. What fails, fails with the class of
 * its reason. Each of these can be had alone, so that a page loads no other: `memoryOf(open({ url, apiKey }))`.
 *
 * @example
 * ```ts
 * import { BudgetExceeded, CircuitOpen, connect } from "@moltwire/client";
 *
 * const mw = connect({ url, apiKey, timeoutMs: 10_000 });
 * try {
 *   await mw.bus.call("shout", { text: "hello" }, { labels: { why: "example" } });
 * } catch (error) {
 *   if (error instanceof BudgetExceeded) console.log(error.usage, "of", error.limit, error.unit, "until", error.resetTime);
 *   else if (error instanceof CircuitOpen) console.log(error.agentId, error.failureCount, error.retryAt);
 *   else throw error;
 * }
 * ```
 */
export function connect(options: ConnectOptions = {}) {
  const connection = open(options);
  const of = <S extends DescService>(service: S): Client<S> => clientOf(connection, service);
  const bus = busOf(connection);
  return {
    bus,
    memory: memoryOf(connection),
    queue: queueOf(connection),
    relay: relayOf(connection),
    events: eventsOf(connection),
    traces: tracesOf(connection),
    admin: of(AdminService),
    agents: of(AgentService),
    approvals: of(ApprovalService),
    billing: of(BillingService),
    budgets: of(BudgetService),
    catalog: of(CatalogService),
    contacts: of(ContactService),
    contracts: of(ContractService),
    costs: of(CostService),
    deadLetters: of(DeadLetterService),
    directory: of(DirectoryService),
    gateway: of(GatewayService),
    grants: of(GrantService),
    keys: of(ApiKeyService),
    maintenance: of(MaintenanceService),
    market: of(MarketplaceService),
    namespaces: of(NamespaceService),
    organizations: of(OrganizationService),
    peers: of(PeerService),
    policies: of(PolicyService),
    reviews: of(ReviewService),
    scenarios: of(ScenarioService),
    schedules: of(ScheduleService),
    sessions: of(SessionService),
    sharedMemory: of(SharedMemoryService),
    status: of(StatusService),
    subscriptions: of(SubscriptionService),
    text: of(TextService),
    batch: of(BatchService),
    webhooks: of(WebhookService),
    /** The same as `bus.serve`. */
    serve: (handler: Handler, options: ServeOptions = {}): Promise<void> => bus.serve(handler, options),
  };
}
