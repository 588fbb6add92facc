/** An organisation in which everything that governs is on, and how much of the processor time for a task there Cedar has. */
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { createClient } from "@connectrpc/connect";
import { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import { AgentService } from "../../gen/moltwire/bus/v1/agent_service_pb.ts";
import { BudgetPeriod, BudgetScope } from "../../gen/moltwire/bus/v1/budget_pb.ts";
import { BudgetService } from "../../gen/moltwire/bus/v1/budget_service_pb.ts";
import { BusService } from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { ContractService } from "../../gen/moltwire/bus/v1/contract_service_pb.ts";
import { CostService } from "../../gen/moltwire/bus/v1/cost_service_pb.ts";
import { PolicyService } from "../../gen/moltwire/bus/v1/policy_service_pb.ts";
import { ApiKeyService } from "../../gen/moltwire/federation/v1/api_key_service_pb.ts";
import { OrganizationService } from "../../gen/moltwire/federation/v1/organization_service_pb.ts";
import { governedCase } from "./cases.ts";
import type { Loader } from "./loader.ts";
import { countTasks, type Moltwire, operatorKey, startMoltwire, type Target, transport } from "./targets.ts";

export type Governed = Target & {
  readonly engine: string;
  readonly callerKeys: readonly string[];
  /** How many tasks there are, and how many of them are completed. */
  tasks(): Promise<{ all: number; completed: number }>;
};

const callers = 8;
const policies = 10;
/** What the contract needs: the policies are asked for it too. */
const tool = "ledger";
/** Never reached: what is measured is that it is counted. */
const ample = 1_000_000_000_000n;

/** Adds the organisation: policies, some of which do not concern the call; budgets of each agent and of the organisation; rates; a contract with an estimate and a tool. */
export async function govern({
  engine,
  process,
  port,
}: Pick<Moltwire, "engine" | "process" | "port">): Promise<Governed> {
  const url = `http://127.0.0.1:${port}`;
  const operator = transport(url, operatorKey);
  const { organization } = await createClient(OrganizationService, operator).createOrganization({ name: "governed" });
  const { orgId } = organization!;
  const { secret } = await createClient(ApiKeyService, operator).createApiKey({ orgId, role: Role.ORG });
  const admin = transport(url, secret);
  const agents = createClient(AgentService, admin);
  await agents.registerAgent({
    name: "echo",
    capabilities: ["governed"],
    allowedTools: [tool],
    endpoint: { kind: { case: "echo", value: {} } },
  });
  const contract = { contractId: "governed", version: "1.0.0", estimatedTokens: 100n, requiredTools: [tool] };
  await createClient(ContractService, admin).registerContract(contract);
  for (let n = 0; n < policies; n++) {
    const cedarText = `forbid (principal, action == Action::"invoke", resource) when { principal == Agent::"nobody-${n}" };`;
    await createClient(PolicyService, admin).putPolicy({ policyId: `bench-${n}`, cedarText });
  }
  await createClient(CostService, admin).setRates({
    rates: [{ inputPer1000TokensMicros: 5n, outputPer1000TokensMicros: 15n }],
  });
  const budgets = createClient(BudgetService, admin);
  for (const [scope, subjectId] of [
    [BudgetScope.AGENT, "*"],
    [BudgetScope.ORG, ""],
  ] as const)
    await budgets.setBudget({
      scope,
      subjectId,
      period: BudgetPeriod.DAY,
      limitTokens: ample,
      limitCreditsMicros: ample,
    });
  const callerKeys: string[] = [];
  for (let n = 0; n < callers; n++) {
    const { agent } = await agents.registerAgent({ name: `caller-${n}` });
    callerKeys.push((await createClient(ApiKeyService, admin).createApiKey({ agentId: agent!.agentId })).secret);
  }
  return { engine, process, port, callerKeys, tasks: () => countTasks(createClient(BusService, admin)) };
}

type Profile = {
  readonly nodes: readonly {
    readonly id: number;
    readonly callFrame: { readonly functionName: string; readonly url: string };
    readonly children?: readonly number[];
  }[];
  readonly samples: readonly number[];
  readonly timeDeltas: readonly number[];
};

/**
 * The share of a server's processor time that its calls into Cedar have, by V8's own sampling: a server of its own is profiled under this load, because the profiler
 * costs time too.
 */
export async function measureCedarShare(
  loader: Loader,
  folder: string,
  measureMs: number,
  atOnce: number,
): Promise<number> {
  const data = mkdtempSync(join(folder, "profiled-"));
  const options = `--cpu-prof --cpu-prof-dir=${data}`;
  const server = await startMoltwire("SQLite", { MOLTWIRE_DATA: join(data, "data"), NODE_OPTIONS: options });
  const { templates, idPrefix } = governedCase(await govern(server), atOnce);
  await loader.measure({ port: server.port, speaks: "http", templates, idPrefix, measureMs });
  await server.process.stop();
  const name = readdirSync(data).find((one) => one.endsWith(".cpuprofile"));
  if (!name) throw new Error("the profiled server left no profile");
  const share = shareOf(JSON.parse(readFileSync(join(data, name), "utf8")) as Profile);
  rmSync(data, { recursive: true });
  return share;
}

/** Of the time of a profile that is not idle, the part below a function of the package. */
function shareOf({ nodes, samples, timeDeltas }: Profile): number {
  const byId = new Map(nodes.map((node) => [node.id, node]));
  const isIdle = new Set(
    nodes.filter(({ callFrame }) => /^\((idle|program)\)$/.test(callFrame.functionName)).map(({ id }) => id),
  );
  const inside = new Set<number>();
  const visit = (id: number, within: boolean): void => {
    const node = byId.get(id)!;
    const here = within || node.callFrame.url.includes("/cedar-wasm/");
    if (here) inside.add(id);
    for (const child of node.children ?? []) visit(child, here);
  };
  visit(nodes[0]!.id, false);
  let [all, cedar] = [0, 0];
  for (const [n, id] of samples.entries()) {
    if (isIdle.has(id)) continue;
    all += timeDeltas[n]!;
    if (inside.has(id)) cedar += timeDeltas[n]!;
  }
  return cedar / all;
}
