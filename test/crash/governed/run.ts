/** One run: for each phase of a task a server is killed when one has come to it, again and again, on the same storage; then everything is looked at. */
import { setTimeout as sleep } from "node:timers/promises";
import { TaskState } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import { clientsAt, eventually } from "../../harness.ts";
import { type Random, random } from "../random.ts";
import { freePort, type ServerProcess, startServer } from "../server-process.ts";
import { ask, decide, repeatLost } from "./actions.ts";
import type { Book, Kind, Stage } from "./asks.ts";
import { type Phase, phases } from "./phases.ts";
import { circuitsOf, lookAround } from "./restart.ts";
import { type Organization, setUp } from "./set-up.ts";
import { type Findings, verify, verifyReserves } from "./verify.ts";
import { startWorkers, type Workers } from "./workers.ts";

export type RunOptions = {
  /** Where the server keeps its data: `MOLTWIRE_…` variables. */
  readonly storage: Record<string, string>;
  /** In each phase. */
  readonly kills: number;
  readonly seed: number;
  /** Called after every tenth kill, while no server runs. */
  readonly betweenLives?: () => void;
};

export type Result = Findings & {
  readonly book: Book;
  /** Kills at a phase that had come, by phase. */
  readonly killsByPhase: Readonly<Record<string, number>>;
  /** Approvals that waited through every later kill and were decided at the end. */
  readonly pendingToTheEnd: number;
  readonly arrivals: number;
  /** What the server exited with when it was told to stop, at last. */
  readonly exitCode: number | null;
};

const phaseMs = 30_000;
const quietMs = 90_000;
const background: readonly Kind[] = ["once", "repeat", "pull", "pull-repeat", "guarded", "guarded-repeat"];
/** Not a secret: the server is this test's own, on the loopback interface. */
const operatorKey = "crash-test-0123456789-abcdefghijklmnopqrstuvwxyz";

export async function governedRun({ storage, kills, seed, betweenLives }: RunOptions): Promise<Result> {
  const choose = random(seed);
  const book: Book = { asks: [], lost: 0, repeats: 0, surprises: [], checks: 0, allowance: 0 };
  const workers = await startWorkers(book);
  const settings = {
    ...storage,
    MOLTWIRE_PORT: String(await freePort()),
    MOLTWIRE_OPERATOR_KEY: operatorKey,
    MOLTWIRE_EGRESS_ALLOW: "127.0.0.1",
    MOLTWIRE_RATE_LIMIT: "0",
    MOLTWIRE_LOG_LEVEL: "warn",
  };
  let server: ServerProcess | undefined;
  let org: Organization | undefined;
  let circuits: unknown[] = [];
  const begin = async (signal = never): Promise<{ stage: Stage; org: Organization; pulling: Promise<void> }> => {
    server = startServer(settings);
    const url = await server.ready;
    const isFirst = !org;
    org ??= await setUp(url, operatorKey, workers.url);
    const stage = stageOf(url, org, { book, choose, workers });
    if (isFirst) circuits = await harm(stage, org);
    const pulling = workers.pull(stage.life, clientsAt(url, org.fetcherKey), signal);
    await lookAround(stage, org, circuits);
    return { stage, org, pulling };
  };
  const killsByPhase: Record<string, number> = {};
  try {
    const order = shuffled(
      Object.keys(phases).flatMap((name) => Array<string>(kills).fill(name)),
      choose,
    );
    for (const [index, name] of order.entries()) {
      const { stage, pulling } = await begin();
      const work = [pulling, ...atWork(stage)];
      if (await reached(phases[name]!, stage, name)) killsByPhase[name] = (killsByPhase[name] ?? 0) + 1;
      await sleep(choose.int(0, phases[name]!.spreadMs));
      stage.life.killed = true;
      await server!.kill();
      await Promise.all(work);
      if ((index + 1) % 10 === 0) betweenLives?.();
    }
    workers.hurry();
    const over = new AbortController();
    const { stage, org, pulling } = await begin(over.signal);
    await repeatLost(stage);
    await noOpenTasks(stage);
    const waiting = book.asks.filter(({ approvalId, verdict }) => approvalId && !verdict);
    const held = await verifyReserves(stage, waiting);
    await Promise.all(waiting.map((ask, i) => decide(stage, ask, i % 3 === 2 ? "deny" : "approve")));
    await noOpenTasks(stage);
    const findings = await verify(stage, org, workers);
    over.abort();
    await pulling;
    const exitCode = await server!.stop();
    return {
      ...findings,
      problems: [...held, ...findings.problems],
      book,
      killsByPhase,
      pendingToTheEnd: waiting.length,
      arrivals: [...workers.arrivals.values()].flat().length,
      exitCode,
    };
  } finally {
    await server?.kill();
    await workers.close();
  }
}

const never = new AbortController().signal;

function stageOf(url: string, org: Organization, of: { book: Book; choose: Random; workers: Workers }): Stage {
  return {
    ...of,
    life: { url, adminKey: org.adminKey, killed: false, onAnswer: () => {} },
    admin: clientsAt(url, org.adminKey),
    other: clientsAt(url, org.otherKey),
    caller: clientsAt(url, org.callerKey),
    frugal: clientsAt(url, org.frugalKey),
  };
}

/** Opens one circuit and lets the other agent fail once, before the first kill; gives how they stand. */
async function harm(stage: Stage, org: Organization): Promise<unknown[]> {
  for (const kind of ["tripping", "tripping", "bruising"] as const)
    await ask(stage, kind, ["fail"], { blocking: true });
  return circuitsOf(stage, org);
}

/** What goes on besides: what was lost is repeated, some of what waits is decided, and tasks of all kinds come. */
function atWork(stage: Stage): Promise<unknown>[] {
  const { book, choose } = stage;
  const waiting = book.asks.filter(({ approvalId, verdict }) => approvalId && !verdict);
  const decided = waiting.filter(() => choose.chance(0.15));
  return [
    repeatLost(stage),
    ...decided.map((ask) => decide(stage, ask, choose.chance(0.75) ? "approve" : "deny")),
    ...Array.from({ length: 4 }, () => ask(stage, choose.pick(background), ["slow"])),
    ...Array.from({ length: 4 }, () => ask(stage, choose.pick(["once", "repeat"]), ["slow"], { by: "frugal" })),
  ];
}

/** Whether the phase came; that it does not is told. */
async function reached({ reach }: Phase, stage: Stage, name: string): Promise<boolean> {
  const late = sleep(phaseMs, "late" as const, { ref: false });
  const came = await Promise.race([reach(stage), late]).catch((error: unknown) => String(error));
  if (came !== undefined) stage.book.surprises.push(`the phase "${name}" did not come: ${came}`);
  return came === undefined;
}

/** Waits until every task has ended that waits for nobody's approval; on PostgreSQL the lease of the server that was killed last has to run out first. */
async function noOpenTasks({ admin }: Stage): Promise<void> {
  const open = async (state: TaskState) => (await admin.bus.listTasks({ state, pageSize: 1 })).tasks.length;
  const quiet = async () => (await open(TaskState.SUBMITTED)) + (await open(TaskState.WORKING)) === 0;
  await eventually(quiet, quietMs).catch(() => {}); // those that are open are found and told
}

function shuffled<T>(list: readonly T[], choose: Random): T[] {
  const all = [...list];
  for (let i = all.length - 1; i > 0; i--) {
    const j = choose.int(0, i);
    [all[i], all[j]] = [all[j]!, all[i]!];
  }
  return all;
}
