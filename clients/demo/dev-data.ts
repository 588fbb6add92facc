/** What a server of `moltwire dev` begins with, made over the wire: an organisation, agents, contracts, and something of each area to look at. */
import { fromJson, type JsonValue } from "@bufbuild/protobuf";
import { durationFromMs, ValueSchema } from "@bufbuild/protobuf/wkt";
import { AgentService } from "../../gen/moltwire/bus/v1/agent_service_pb.ts";
import { BusService } from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { ContractService } from "../../gen/moltwire/bus/v1/contract_service_pb.ts";
import { MemoryService } from "../../gen/moltwire/memory/v1/memory_service_pb.ts";
import { QueueService } from "../../gen/moltwire/queue/v1/queue_service_pb.ts";
import { ScheduleService } from "../../gen/moltwire/queue/v1/schedule_service_pb.ts";
import { RelayService } from "../../gen/moltwire/relay/v1/relay_service_pb.ts";
import { connectClients } from "../cli/connect.ts";
import { addCaller, addOrganization } from "./setup.ts";

/** The adapter that does the work of the demo's agents, inside the server. */
export const adapterName = "dev";

/** Who was made, with the keys that speak for them. */
export type DevData = { readonly orgId: string; readonly orgKey: string; readonly plannerKey: string };

/** Fills a server that has nothing yet. */
export async function fillDev(url: string, operatorKey: string): Promise<DevData> {
  const { orgId, orgKey } = await addOrganization(connectClients({ url, key: operatorKey }), "demo", "Demo");
  const admin = connectClients({ url, key: orgKey });
  const inputSchema = { type: "object", required: ["name"], properties: { name: { type: "string" } } };
  const contracts = admin(ContractService);
  await contracts.registerContract({ contractId: "greet", version: "1.0.0", inputSchema });
  await contracts.registerContract({ contractId: "transfer", version: "1.0.0", approvalRequired: true });
  await contracts.registerContract({ contractId: "fail", version: "1.0.0" });
  const endpoint = { kind: { case: "custom", value: { adapter: adapterName } } } as const;
  const agents = admin(AgentService);
  await agents.registerAgent({
    name: "greeter",
    description: "Greets whom it is told to.",
    capabilities: ["greet"],
    endpoint,
  });
  await agents.registerAgent({
    name: "clerk",
    description: "Transfers, when somebody has approved; and fails at the rest.",
    capabilities: ["transfer", "fail"],
    endpoint,
  });
  const planner = await addCaller(admin, "planner", "Asks others to do the work.");
  await fillAreas(url, planner.key, planner.agentId);
  return { orgId, orgKey, plannerKey: planner.key };
}

async function fillAreas(url: string, key: string, plannerId: string): Promise<void> {
  const planner = connectClients({ url, key });
  const bus = planner(BusService);
  for (const name of ["Ada", "Grace"]) await bus.submitTask({ contractId: "greet", input: value({ name }) });
  await bus.submitTask({ contractId: "fail" });
  await bus.submitTask({ contractId: "transfer", input: value({ amount: 10 }), returnImmediately: true });
  await planner(MemoryService).setEntry({
    write: { key: "plan", value: content({ next: "greet the others" }), tags: ["demo"] },
  });
  for (const page of [1, 2])
    await planner(QueueService).submitJob({ job: { queue: "pages", payload: content({ page }) } });
  await planner(ScheduleService).createSchedule({
    settings: {
      name: "each morning",
      timing: { cron: "0 9 * * *", timeZone: "Europe/Berlin" },
      job: { queue: "pages", payload: content("report") },
      jitter: durationFromMs(0),
    },
  });
  const relay = planner(RelayService);
  await relay.createChannel({ name: "news" });
  await relay.send({ to: { case: "toChannel", value: "news" }, payload: content("The demo is up.") });
  await relay.send({ to: { case: "toAgentId", value: plannerId }, payload: content("A note to myself.") });
}

const value = (json: JsonValue) => fromJson(ValueSchema, json);

const content = (json: JsonValue) => ({ kind: { case: "json" as const, value: value(json) } });
