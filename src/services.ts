/** Every service, on one screen: who handles it, and by that which methods are not built yet. */
import type { DescMethod, DescService } from "@bufbuild/protobuf";
import type { ConnectRouter, ServiceImpl } from "@connectrpc/connect";
import { BatchService } from "../gen/moltwire/batch/v1/batch_service_pb.ts";
import { AgentService } from "../gen/moltwire/bus/v1/agent_service_pb.ts";
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
import type { App } from "./app.ts";
import { agentHandler } from "./bus/agent-handler.ts";
import { approvalHandler } from "./bus/approval/handler.ts";
import { budgetHandler } from "./bus/budget/budget-handler.ts";
import { contractHandler } from "./bus/contract-handler.ts";
import { costHandler } from "./bus/cost/cost-handler.ts";
import { deadLetterHandler } from "./bus/dead-letter/dead-letter-handler.ts";
import type { Dispatcher } from "./bus/dispatch.ts";
import { policyHandler } from "./bus/policy/policy-handler.ts";
import { serveHandler } from "./bus/serve/serve-handler.ts";
import { taskHandler } from "./bus/task-handler.ts";
import { traceHandler } from "./bus/trace-handler.ts";
import { passwordHandler } from "./console/password-handler.ts";
import { sessionHandler } from "./console/session-handler.ts";
import { directoryHandler } from "./directory/handler.ts";
import { billingHandler } from "./exchange/billing/handler.ts";
import { verifyHandler } from "./exchange/ledger/verify.ts";
import { catalogHandler } from "./exchange/listing/handler.ts";
import { marketplaceHandler } from "./exchange/market/handler.ts";
import { reviewHandler } from "./exchange/review/handler.ts";
import { subscriptionHandler } from "./exchange/subscription/handler.ts";
import { apiKeyHandler } from "./federation/api-key-handler.ts";
import { gatewayHandler } from "./federation/gateway/handler.ts";
import { grantHandler } from "./federation/grant/handler.ts";
import { namespaceHandler } from "./federation/namespace-handler.ts";
import { organizationHandler } from "./federation/organization-handler.ts";
import { peerGatewayHandler } from "./federation/peer/gateway-handler.ts";
import { peerHandler } from "./federation/peer/handler.ts";
import { scenarioHandler } from "./lab/handler.ts";
import type { Lab } from "./lab/lab.ts";
import { memoryHandler } from "./memory/handler.ts";
import { sharedMemoryHandler } from "./memory/shared-handler.ts";
import { adminHandler } from "./ops/admin-handler.ts";
import { backupHandler } from "./ops/backup-handler.ts";
import { contactHandler } from "./ops/contact-handler.ts";
import { eventHandler } from "./ops/event-handler.ts";
import { revealHandler } from "./ops/reveal-handler.ts";
import { statusHandler } from "./ops/status-handler.ts";
import { vaultHandler } from "./ops/vault-handler.ts";
import { queueHandler } from "./queue/handler.ts";
import { scheduleHandler } from "./queue/schedule/handler.ts";
import { relayHandler } from "./relay/handler.ts";
import type { Batch } from "./rpc/batch.ts";
import { sealedTables } from "./sealed-columns.ts";
import { textHandler } from "./text/handler.ts";
import { webhookHandler } from "./webhook/handler.ts";

/** The services this server lists. */
export const services: readonly DescService[] = [
  BusService,
  ContractService,
  AgentService,
  PolicyService,
  ApprovalService,
  BudgetService,
  DeadLetterService,
  TraceService,
  CostService,
  MemoryService,
  SharedMemoryService,
  QueueService,
  ScheduleService,
  RelayService,
  WebhookService,
  DirectoryService,
  BillingService,
  MarketplaceService,
  CatalogService,
  SubscriptionService,
  ReviewService,
  ScenarioService,
  TextService,
  OrganizationService,
  NamespaceService,
  GrantService,
  GatewayService,
  PeerService,
  PeerGatewayService,
  ApiKeyService,
  StatusService,
  ContactService,
  EventService,
  SessionService,
  AdminService,
  MaintenanceService,
  BatchService,
];

/** The routes of all services, and the methods that are in the contract and not built yet. */
export type Routes = { readonly mount: (router: ConnectRouter) => void; readonly unbuilt: ReadonlySet<DescMethod> };

export function routes(app: App, dispatcher: Dispatcher, lab: Lab, batch: Batch): Routes {
  const mounts: ((router: ConnectRouter) => void)[] = [];
  const unbuilt = new Set<DescMethod>();
  const serve = <S extends DescService>(service: S, built: Partial<ServiceImpl<S>>) => {
    mounts.push((router) => router.service(service, built));
    for (const method of service.methods) if (!(method.localName in built)) unbuilt.add(method);
  };
  const tasks = taskHandler(app, dispatcher);
  const approvals = approvalHandler(app, dispatcher);
  const deadLetters = deadLetterHandler(app, dispatcher);
  const memory = memoryHandler(app);
  const sharedMemory = sharedMemoryHandler(app);
  const queues = queueHandler(app);
  const schedules = scheduleHandler(app);
  const relay = relayHandler(app);
  const webhooks = webhookHandler(app);
  const shown = { tasks, approvals, deadLetters, memory, sharedMemory, queues, schedules, relay, webhooks };
  serve(BusService, { ...tasks, ...serveHandler(app, dispatcher) });
  serve(ContractService, contractHandler(app));
  serve(AgentService, agentHandler(app));
  serve(PolicyService, policyHandler(app));
  serve(ApprovalService, approvals);
  serve(BudgetService, budgetHandler(app));
  serve(DeadLetterService, deadLetters);
  serve(TraceService, traceHandler(app));
  serve(CostService, costHandler(app));
  serve(MemoryService, memory);
  serve(SharedMemoryService, sharedMemory);
  serve(QueueService, queues);
  serve(ScheduleService, schedules);
  serve(RelayService, relay);
  serve(WebhookService, webhooks);
  serve(DirectoryService, directoryHandler(app));
  serve(BillingService, billingHandler(app));
  serve(MarketplaceService, marketplaceHandler(app));
  serve(CatalogService, catalogHandler(app, dispatcher));
  serve(SubscriptionService, subscriptionHandler(app));
  serve(ReviewService, reviewHandler(app));
  serve(ScenarioService, scenarioHandler(app, lab));
  serve(TextService, textHandler(app));
  serve(OrganizationService, organizationHandler(app));
  serve(NamespaceService, namespaceHandler(app));
  serve(GrantService, grantHandler(app));
  serve(GatewayService, gatewayHandler(app, dispatcher));
  serve(PeerService, peerHandler(app));
  serve(PeerGatewayService, peerGatewayHandler(app, dispatcher));
  serve(ApiKeyService, apiKeyHandler(app));
  serve(StatusService, statusHandler(app, app.clock.now()));
  serve(ContactService, contactHandler(app));
  serve(EventService, eventHandler(app));
  serve(SessionService, sessionHandler(app));
  serve(AdminService, { ...adminHandler(app), ...revealHandler(app, shown) });
  serve(MaintenanceService, {
    ...vaultHandler(app, sealedTables),
    ...backupHandler(app),
    ...verifyHandler(app),
    ...passwordHandler(app),
  });
  serve(BatchService, batch.handler);
  const mount: Routes["mount"] = (router) => {
    for (const each of mounts) each(router);
  };
  return { mount, unbuilt };
}
