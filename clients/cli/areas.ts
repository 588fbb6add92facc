/** Under which command the methods of a service are. Those that no command was written for get one made from their descriptors. */
import type { DescService } from "@bufbuild/protobuf";
import { BatchService } from "../../gen/moltwire/batch/v1/batch_service_pb.ts";
import { AgentService } from "../../gen/moltwire/bus/v1/agent_service_pb.ts";
import { ApprovalService } from "../../gen/moltwire/bus/v1/approval_service_pb.ts";
import { BudgetService } from "../../gen/moltwire/bus/v1/budget_service_pb.ts";
import { BusService } from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { ContractService } from "../../gen/moltwire/bus/v1/contract_service_pb.ts";
import { CostService } from "../../gen/moltwire/bus/v1/cost_service_pb.ts";
import { DeadLetterService } from "../../gen/moltwire/bus/v1/dead_letter_service_pb.ts";
import { PolicyService } from "../../gen/moltwire/bus/v1/policy_service_pb.ts";
import { TraceService } from "../../gen/moltwire/bus/v1/trace_service_pb.ts";
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
import { PeerGatewayService } from "../../gen/moltwire/federation/v1/peer_gateway_service_pb.ts";
import { PeerService } from "../../gen/moltwire/federation/v1/peer_service_pb.ts";
import { ScenarioService } from "../../gen/moltwire/lab/v1/scenario_service_pb.ts";
import { MemoryService } from "../../gen/moltwire/memory/v1/memory_service_pb.ts";
import { SharedMemoryService } from "../../gen/moltwire/memory/v1/shared_memory_service_pb.ts";
import { AdminService } from "../../gen/moltwire/ops/v1/admin_service_pb.ts";
import { ContactService } from "../../gen/moltwire/ops/v1/contact_service_pb.ts";
import { EventService } from "../../gen/moltwire/ops/v1/event_service_pb.ts";
import { MaintenanceService } from "../../gen/moltwire/ops/v1/maintenance_service_pb.ts";
import { SessionService } from "../../gen/moltwire/ops/v1/session_service_pb.ts";
import { StatusService } from "../../gen/moltwire/ops/v1/status_service_pb.ts";
import { QueueService } from "../../gen/moltwire/queue/v1/queue_service_pb.ts";
import { ScheduleService } from "../../gen/moltwire/queue/v1/schedule_service_pb.ts";
import { RelayService } from "../../gen/moltwire/relay/v1/relay_service_pb.ts";
import { TextService } from "../../gen/moltwire/text/v1/text_service_pb.ts";
import { WebhookService } from "../../gen/moltwire/webhook/v1/webhook_service_pb.ts";

/** A service, and where its commands are. */
export type Area = {
  /** Under which command. */
  readonly noun: string;
  readonly service: DescService;
  /** What the noun is about, so that it is not said again: `memory get` is GetEntry. */
  readonly things: readonly string[];
  /** What --help says of the noun, where no command was written for it. */
  readonly about: string;
};

const area = (noun: string, service: DescService, things: readonly string[] = [], about = ""): Area => ({
  noun,
  service,
  things,
  about,
});

/** Every service, as --help groups its noun; a noun that has commands of its own stands where those are. */
export const areas: Readonly<Record<string, readonly Area[]>> = {
  "Work:": [area("task", BusService, ["Task"]), area("trace", TraceService, ["Trace", "Traces"])],
  "What agents share:": [
    area("memory", MemoryService, ["Entry", "Entries"], "what an agent remembers: values under keys, in namespaces"),
    area(
      "shared-memory",
      SharedMemoryService,
      ["SharedEntry", "SharedEntries"],
      "what agents remember together, in namespaces that they share",
    ),
    area("queue", QueueService, ["Job", "Jobs"], "jobs that wait for workers"),
    area("schedule", ScheduleService, ["Schedule", "Schedules"], "jobs at times that come again"),
    area("relay", RelayService, ["Message", "Messages"], "messages from agent to agent, and channels"),
    area("webhook", WebhookService, ["Webhook", "Webhooks"], "URLs that are told of events"),
    area("directory", DirectoryService, ["Agents"], "how agents join, and find one another"),
    area("text", TextService, [], "small work on a text"),
    area("batch", BatchService, [], "many calls in one"),
  ],
  "What may be done, and what was not:": [
    area("policy", PolicyService, ["Policy", "Policies"], "policies in Cedar, and what they decided"),
    area("approval", ApprovalService, ["Approval", "Approvals"], "tasks that wait for somebody to decide"),
    area("budget", BudgetService, ["Budget", "Budgets"], "limits to what tasks may use"),
    area("cost", CostService, [], "what work used, and what that cost"),
    area(
      "dead-letter",
      DeadLetterService,
      ["DeadLetter", "DeadLetters"],
      "tasks that failed for good, until somebody settles them or has them tried again",
    ),
  ],
  "Parties and what they agreed on:": [
    area("agent", AgentService, ["Agent"]),
    area("contract", ContractService, ["Contract"]),
    area("org", OrganizationService, ["Organization"]),
    area(
      "namespace",
      NamespaceService,
      ["Namespace", "Namespaces"],
      "names that contracts of an organisation begin with",
    ),
    area("grant", GrantService, ["Grant"]),
    area("gateway", GatewayService),
    area("peer", PeerService, ["Peer"]),
    area("peer-gateway", PeerGatewayService, [], "the door by which other servers come in; for them"),
    area("key", ApiKeyService, ["ApiKey"]),
  ],
  "Credits, and what they buy:": [
    area("billing", BillingService),
    area("listing", CatalogService, ["Listing"]),
    area("subscription", SubscriptionService, ["Subscription"]),
    area("review", ReviewService, ["Review"]),
    area("market", MarketplaceService, ["Task"]),
  ],
  "Running it:": [
    area("ops", StatusService, [], "how busy the server is, and how it has kept its promises"),
    area("event", EventService, ["Events"], "what has happened, in order"),
    area("contact", ContactService, ["Contact", "Contacts"], "what people write to the operator"),
    area("session", SessionService, ["Session"], "signing in, as the console does"),
    area("admin", AdminService),
    area("admin", MaintenanceService),
    area("lab", ScenarioService, ["Scenario"]),
  ],
};
