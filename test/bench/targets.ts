/** The servers under measurement, and a way to see afterwards whether what they acknowledged was done. */
import { join } from "node:path";
import { type Client, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import { AgentService } from "../../gen/moltwire/bus/v1/agent_service_pb.ts";
import { BusService } from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { ContractService } from "../../gen/moltwire/bus/v1/contract_service_pb.ts";
import { TaskState } from "../../gen/moltwire/bus/v1/task_pb.ts";
import { ApiKeyService } from "../../gen/moltwire/federation/v1/api_key_service_pb.ts";
import { MemoryService } from "../../gen/moltwire/memory/v1/memory_service_pb.ts";
import { QueueService } from "../../gen/moltwire/queue/v1/queue_service_pb.ts";
import { type ServerProcess, startProgram, startServer } from "../crash/server-process.ts";

/** The largest number of callers; each has an agent of its own to change. */
export const maxCallers = 64;

export type Target = { readonly process: Pick<ServerProcess, "pid" | "kill">; readonly port: number };

export type Moltwire = Target & {
  readonly process: ServerProcess;
  readonly engine: string;
  /** Of an agent, and of the administrator of its organisation. */
  readonly agentKey: string;
  readonly adminKey: string;
  readonly agentIds: readonly string[];
  /** How often agents were changed, by their revisions. */
  changes(): Promise<number>;
  /** How many writes the agents' memories have had, by their revisions. */
  writes(): Promise<number>;
  /** How many tasks there are, and how many of them are completed. */
  tasks(): Promise<{ all: number; completed: number }>;
  /** How many jobs were completed. */
  completedJobs(): Promise<number>;
};

/** Not a secret: the server is the bench's own, on the loopback interface. */
export const operatorKey = "bench-0123456789-abcdefghijklmnopqrstuvwxyz";

export const serverSettings = { MOLTWIRE_PORT: "0", MOLTWIRE_OPERATOR_KEY: operatorKey, MOLTWIRE_RATE_LIMIT: "0" };

/** The baseline with its own data file. */
export async function startBaseline(
  folder: string,
): Promise<Target & { acknowledged(): Promise<number>; written(): Promise<number> }> {
  const schema = ["0001-foundation", "0009-memory"].map((name) =>
    join(import.meta.dirname, `../../src/db/migrations/${name}.sqlite.sql`),
  );
  const process = startProgram([join(import.meta.dirname, "baseline.ts"), join(folder, "baseline.db"), ...schema]);
  const url = await process.ready;
  return {
    process,
    port: Number(new URL(url).port),
    acknowledged: async () => Number(await (await fetch(`${url}/acknowledged`)).text()),
    written: async () => Number(await (await fetch(`${url}/written`)).text()),
  };
}

/** The server as `npm start` has it, with an organisation, its agents and the echo. */
export async function startMoltwire(engine: string, storage: Record<string, string>): Promise<Moltwire> {
  const process = startServer({ ...storage, ...serverSettings });
  const url = await process.ready;
  const operator = createClient(ApiKeyService, transport(url, operatorKey));
  const { secret: adminKey } = await operator.createApiKey({ role: Role.ORG });
  const admin = transport(url, adminKey);
  const agents = createClient(AgentService, admin);
  const agentIds: string[] = [];
  for (let i = 0; i < maxCallers; i++) {
    const { agent } = await agents.registerAgent({ name: `bench-${i}` });
    agentIds.push(agent!.agentId);
  }
  const { secret: agentKey } = await createClient(ApiKeyService, admin).createApiKey({ agentId: agentIds[0]! });
  await createClient(ContractService, admin).getContract({ contractId: "echo", version: "1.0.0" });
  return {
    engine,
    process,
    port: Number(new URL(url).port),
    agentKey,
    adminKey,
    agentIds,
    changes: () => countChanges(agents, agentIds),
    writes: () => countWrites(createClient(MemoryService, admin), agentIds),
    tasks: () => countTasks(createClient(BusService, admin)),
    async completedJobs() {
      const { queues } = await createClient(QueueService, admin).getQueueStats({});
      return queues.reduce((sum, { lastHour }) => sum + Number(lastHour!.completed), 0);
    },
  };
}

export function transport(baseUrl: string, key: string) {
  const withKey = (next: (request: never) => Promise<never>) => (request: { header: Headers }) => {
    request.header.set("authorization", `Bearer ${key}`);
    return next(request as never);
  };
  return createConnectTransport({ baseUrl, httpVersion: "1.1", interceptors: [withKey as never] });
}

async function countChanges(agents: Client<typeof AgentService>, agentIds: readonly string[]): Promise<number> {
  let changes = 0;
  for (const agentId of agentIds) changes += Number((await agents.getAgent({ agentId })).agent!.revision) - 1;
  return changes;
}

async function countWrites(memory: Client<typeof MemoryService>, agentIds: readonly string[]): Promise<number> {
  let writes = 0;
  for (const agentId of agentIds) writes += Number((await memory.listEntries({ agentId })).revision);
  return writes;
}

export async function countTasks(bus: Client<typeof BusService>): Promise<{ all: number; completed: number }> {
  let all = 0;
  let completed = 0;
  let pageToken = "";
  do {
    const page = await bus.listTasks({ pageSize: 250, pageToken });
    all += page.tasks.length;
    completed += page.tasks.filter(({ state }) => state === TaskState.COMPLETED).length;
    pageToken = page.nextPageToken;
  } while (pageToken !== "");
  return { all, completed };
}
