/** One run: a server is started and killed, again and again, on the same storage, while clients are at work; then everything is looked at. */
import { setTimeout as sleep } from "node:timers/promises";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { createClient } from "@connectrpc/connect";
import { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import { AgentService } from "../../gen/moltwire/bus/v1/agent_service_pb.ts";
import { ContractService } from "../../gen/moltwire/bus/v1/contract_service_pb.ts";
import { TaskState } from "../../gen/moltwire/bus/v1/task_pb.ts";
import { ApiKeyService } from "../../gen/moltwire/federation/v1/api_key_service_pb.ts";
import { OrganizationService } from "../../gen/moltwire/federation/v1/organization_service_pb.ts";
import { eventually, transport } from "../harness.ts";
import { type Agent, startAgent } from "./agent.ts";
import { openFollower, readLog } from "./follower.ts";
import { type Ledger, openLedger } from "./ledger.ts";
import { type Random, random } from "./random.ts";
import { freePort, type ServerProcess, startServer } from "./server-process.ts";
import { type Findings, inParallel, pages, verifyTasks } from "./verify.ts";
import { attempt, connections, type Life, register, runClient, send } from "./workload.ts";

export type RunOptions = {
  /** Where the server keeps its data: `MOLTWIRE_…` variables. */
  readonly storage: Record<string, string>;
  readonly kills: number;
  readonly seed: number;
  /** Called after every tenth kill, while no server runs. */
  readonly betweenLives?: () => void;
};

export type Result = Findings & {
  readonly kills: number;
  readonly ledger: Ledger;
  /** Kills before the server listened; the others came while clients were at work. */
  readonly killedStarting: number;
  /** Acknowledged: submits, agents, keys, contracts, cancelations. */
  readonly acknowledged: number;
  /** What the reader saw who came back after every kill, and what the log holds. */
  readonly followed: readonly string[];
  readonly log: readonly string[];
  /** What the server exited with when it was told to stop, at last. */
  readonly exitCode: number | null;
};

const clients = 6;
/** A server is killed after so many answers at most, and after so long at most. */
const maxAnswers = 100;
const longestLifeMs = 5_000;
const quietMs = 60_000;
/** Not a secret: the server is this test's own, on the loopback interface. */
const operatorKey = "crash-test-0123456789-abcdefghijklmnopqrstuvwxyz";

export async function crashRun({ storage, kills, seed, betweenLives }: RunOptions): Promise<Result> {
  const choose = random(seed);
  const ledger = openLedger();
  const follower = openFollower();
  const agent = await startAgent();
  const settings = {
    ...storage,
    MOLTWIRE_PORT: String(await freePort()),
    MOLTWIRE_OPERATOR_KEY: operatorKey,
    MOLTWIRE_EGRESS_ALLOW: "127.0.0.1",
    MOLTWIRE_RATE_LIMIT: "0",
    MOLTWIRE_LOG_LEVEL: "warn",
  };
  let server: ServerProcess | undefined;
  let adminKey = "";
  let killedStarting = 0;
  const begin = async (onAnswer = () => {}): Promise<Life> => {
    server = startServer(settings);
    const url = await server.ready;
    adminKey ||= await setUp(url, agent);
    return { url, adminKey, killed: false, onAnswer };
  };
  try {
    for (let kill = 1; kill <= kills; kill++) {
      if (kill > 1 && choose.chance(0.12)) {
        killedStarting++;
        server = startServer(settings);
        await sleep(choose.int(50, 700));
        await server.kill();
      } else {
        const enough = countDown(choose.int(0, maxAnswers));
        const life = await begin(enough.count);
        await spotCheck(life, ledger, choose);
        const work = [follower.follow(life, ledger, new AbortController().signal), repeatLost(life, ledger)];
        for (let i = 0; i < clients; i++) work.push(runClient(life, ledger, random(choose.int(0, 2 ** 31))));
        await Promise.race([enough.reached, sleep(longestLifeMs)]);
        await sleep(choose.int(0, 50)); // to come upon the server at any point of its work
        life.killed = true;
        await server!.kill();
        await Promise.all(work);
      }
      if (kill % 10 === 0) betweenLives?.();
    }
    const life = await begin();
    const over = new AbortController();
    const following = follower.follow(life, ledger, over.signal);
    // Repeats would wait for tasks that never end; those are found and told below.
    if (await noOpenTasks(life)) await repeatAll(life, ledger);
    await noOpenTasks(life);
    const findings = await verifyTasks(life, ledger, agent);
    findings.problems.push(...(await missingRegistrations(life, ledger)));
    const log = await readLog(life, findings.traceEvents);
    await eventually(() => follower.seen.length >= log.length, quietMs).catch(() => {});
    over.abort();
    await following;
    const exitCode = await server!.stop();
    const canceled = ledger.submits.filter(({ cancelAcknowledged }) => cancelAcknowledged).length;
    const submitted = ledger.submits.filter(({ taskId }) => taskId).length;
    return {
      ...findings,
      kills,
      ledger,
      killedStarting,
      acknowledged: submitted + ledger.agents.size + ledger.keys.size + ledger.contracts.size + canceled,
      followed: follower.seen,
      log,
      exitCode,
    };
  } finally {
    await server?.kill();
    await agent.close();
  }
}

/** Resolves `reached` when it was counted so often. */
function countDown(from: number): { count: () => void; reached: Promise<void> } {
  const { promise: reached, resolve } = Promise.withResolvers<void>();
  let left = from;
  const count = () => {
    if (--left <= 0) resolve();
  };
  if (left === 0) resolve();
  return { count, reached };
}

/** An organisation with an echo, an agent over HTTP, and the contracts of the run; gives the administrator's key. */
async function setUp(url: string, agent: Agent): Promise<string> {
  const operator = transport(url, operatorKey, "connect");
  const { organization } = await createClient(OrganizationService, operator).createOrganization({ name: "crash" });
  const orgId = organization!.orgId;
  const { secret } = await createClient(ApiKeyService, operator).createApiKey({ orgId, role: Role.ORG });
  const admin = transport(url, secret, "connect");
  const agents = createClient(AgentService, admin);
  const contracts = createClient(ContractService, admin);
  await agents.registerAgent({
    name: "echo",
    capabilities: ["echo"],
    endpoint: { kind: { case: "echo", value: {} } },
  });
  await agents.registerAgent({
    name: "worker",
    capabilities: ["work"],
    endpoint: { kind: { case: "http", value: { url: agent.url } } },
    // It fails as it is told, and is called all the same.
    breaker: { disabled: true },
  });
  const common = {
    version: "1.0.0",
    timeout: durationFromMs(1_500),
    retryPolicy: { maxRetries: 2, backoff: durationFromMs(50) },
  };
  await contracts.registerContract({ ...common, contractId: "echo", repeatable: true });
  await contracts.registerContract({ ...common, contractId: "repeat", capability: "work", repeatable: true });
  await contracts.registerContract({ ...common, contractId: "once", capability: "work", repeatable: false });
  return secret;
}

/** A few of the things that were acknowledged in earlier lives are there. */
async function spotCheck(life: Life, ledger: Ledger, choose: Random): Promise<void> {
  const { bus, agents, contracts } = connections(life, "connect");
  const some = <T>(all: readonly T[]) => (all.length === 0 ? [] : [all.at(-1)!, choose.pick(all), choose.pick(all)]);
  const look = (call: () => Promise<unknown>) => attempt(life, ledger, async () => void (await call()));
  for (const { taskId } of some(ledger.submits.filter(({ taskId }) => taskId)))
    await look(() => bus(life.adminKey).getTask({ taskId: taskId! }));
  for (const agentId of some([...ledger.agents.keys()])) await look(() => agents.getAgent({ agentId }));
  for (const secret of some([...ledger.keys.keys()])) await look(() => bus(secret).listTasks({ pageSize: 1 }));
  for (const contractId of some([...ledger.contracts])) await look(() => contracts.getContract({ contractId }));
}

/** What was sent under an idempotency key and never answered is sent again; so the client learns what became of it. */
async function repeatLost(life: Life, ledger: Ledger): Promise<void> {
  const submits = ledger.submits.filter(({ idempotencyKey, taskId }) => idempotencyKey && !taskId);
  const registrations = ledger.registrations.filter(({ id }) => !id);
  await repeat(life, ledger, submits, registrations);
}

/** Everything that was ever sent under an idempotency key is sent again. */
const repeatAll = (life: Life, ledger: Ledger): Promise<void> =>
  repeat(
    life,
    ledger,
    ledger.submits.filter(({ idempotencyKey }) => idempotencyKey),
    ledger.registrations,
  );

async function repeat(
  life: Life,
  ledger: Ledger,
  submits: Ledger["submits"],
  registrations: Ledger["registrations"],
): Promise<void> {
  const to = connections(life, "connect");
  const counted = (call: () => Promise<void>) =>
    attempt(life, ledger, async () => {
      await call();
      ledger.repeats++;
    });
  await inParallel(submits, (submit) => counted(() => send(to, ledger, submit)));
  await inParallel(registrations, (registration) => counted(() => register(to, ledger, registration)));
}

/** Waits until every task there is has ended; on PostgreSQL the lease of the server that was killed last has to run out first. */
async function noOpenTasks(life: Life): Promise<boolean> {
  const bus = connections(life, "connect").bus(life.adminKey);
  const open = async (state: TaskState) => (await bus.listTasks({ state, pageSize: 1 })).tasks.length;
  const quiet = async () => (await open(TaskState.SUBMITTED)) + (await open(TaskState.WORKING)) === 0;
  return eventually(quiet, quietMs).catch(() => false);
}

/** What of the agents, keys and contracts that were acknowledged is not there, or cannot be used. */
async function missingRegistrations(life: Life, ledger: Ledger): Promise<string[]> {
  const { agents, contracts, bus } = connections(life, "connect");
  const allAgents = await pages(async (pageToken) => {
    const page = await agents.listAgents({ pageSize: 250, pageToken });
    return { items: page.agents, next: page.nextPageToken };
  });
  const allContracts = await pages(async (pageToken) => {
    const page = await contracts.listContracts({ pageSize: 250, pageToken });
    return { items: page.contracts, next: page.nextPageToken };
  });
  const names = new Map(allAgents.map(({ agentId, name }) => [agentId, name]));
  const known = new Set(allContracts.map(({ contractId }) => contractId));
  const missing: string[] = [];
  for (const [id, name] of ledger.agents) if (names.get(id) !== name) missing.push(`agent ${name} is missing`);
  for (const id of ledger.contracts) if (!known.has(id)) missing.push(`contract ${id} is missing`);
  await inParallel([...ledger.keys], async ([secret, agentId]) => {
    await bus(secret)
      .listTasks({ pageSize: 1 })
      .catch((error: unknown) => missing.push(`the key of ${agentId} cannot be used: ${error}`));
  });
  return missing;
}
