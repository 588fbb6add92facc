/** Every service, on one screen: who handles it, and (by `withUnbuilt`) which methods still answer UNIMPLEMENTED. */
import type { DescService } from "@bufbuild/protobuf";
import type { ConnectRouter } from "@connectrpc/connect";
import { AgentService } from "../gen/moltwire/bus/v1/agent_service_pb.ts";
import { ApprovalService } from "../gen/moltwire/bus/v1/approval_service_pb.ts";
import { BudgetService } from "../gen/moltwire/bus/v1/budget_service_pb.ts";
import { BusService } from "../gen/moltwire/bus/v1/bus_service_pb.ts";
import { ContractService } from "../gen/moltwire/bus/v1/contract_service_pb.ts";
import { CostService } from "../gen/moltwire/bus/v1/cost_service_pb.ts";
import { DeadLetterService } from "../gen/moltwire/bus/v1/dead_letter_service_pb.ts";
import { PolicyService } from "../gen/moltwire/bus/v1/policy_service_pb.ts";
import { TraceService } from "../gen/moltwire/bus/v1/trace_service_pb.ts";
import { ApiKeyService } from "../gen/moltwire/federation/v1/api_key_service_pb.ts";
import { OrganizationService } from "../gen/moltwire/federation/v1/organization_service_pb.ts";
import { AdminService } from "../gen/moltwire/ops/v1/admin_service_pb.ts";
import { EventService } from "../gen/moltwire/ops/v1/event_service_pb.ts";
import { StatusService } from "../gen/moltwire/ops/v1/status_service_pb.ts";
import type { App } from "./app.ts";
import { agentHandler } from "./bus/agent-handler.ts";
import { contractHandler } from "./bus/contract-handler.ts";
import type { Dispatcher } from "./bus/dispatch.ts";
import { taskHandler } from "./bus/task-handler.ts";
import { traceHandler } from "./bus/trace-handler.ts";
import { apiKeyHandler } from "./federation/api-key-handler.ts";
import { organizationHandler } from "./federation/organization-handler.ts";
import { adminHandler } from "./ops/admin-handler.ts";
import { eventHandler } from "./ops/event-handler.ts";
import { statusHandler } from "./ops/status-handler.ts";
import { withUnbuilt } from "./rpc/unbuilt.ts";

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
  OrganizationService,
  ApiKeyService,
  StatusService,
  EventService,
  AdminService,
];

export function routes(app: App, dispatcher: Dispatcher): (router: ConnectRouter) => void {
  const startedMs = app.clock.now();
  return (router) => {
    router.service(BusService, withUnbuilt(BusService, taskHandler(app, dispatcher)));
    router.service(ContractService, contractHandler(app));
    router.service(AgentService, agentHandler(app));
    router.service(PolicyService, withUnbuilt(PolicyService, {}));
    router.service(ApprovalService, withUnbuilt(ApprovalService, {}));
    router.service(BudgetService, withUnbuilt(BudgetService, {}));
    router.service(DeadLetterService, withUnbuilt(DeadLetterService, {}));
    router.service(TraceService, traceHandler(app));
    router.service(CostService, withUnbuilt(CostService, {}));
    router.service(OrganizationService, organizationHandler(app));
    router.service(ApiKeyService, apiKeyHandler(app));
    router.service(StatusService, statusHandler(app, startedMs));
    router.service(EventService, eventHandler(app));
    router.service(AdminService, adminHandler(app));
  };
}
