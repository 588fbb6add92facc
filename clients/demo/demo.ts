/**
 * `npm run demo`: a real server, a few agents, and what the bus promises shown by scenarios that check it over the wire, one line each; then an
 * answer made of the project's own documents, and the trace of the tasks that made it.
 */
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { stripVTControlCharacters } from "node:util";
import { StatusService } from "../../gen/moltwire/ops/v1/status_service_pb.ts";
import { connectClients } from "../cli/connect.ts";
import { exitCodes } from "../cli/exit-codes.ts";
import { columns, fit, note, paint, plain, print, printJson, span, wrap } from "../cli/output.ts";
import { UsageError } from "../cli/settings.ts";
import { children } from "./children.ts";
import { contracts } from "./contracts.ts";
import { keptJson, renderKept } from "./kept.ts";
import { ledgerText, proveLedger } from "./ledger.ts";
import { chooseScenarios, type Numbered } from "./scenarios/list.ts";
import type { Outcome, World } from "./scenarios/scenario.ts";
import { setUp } from "./setup.ts";
import { startAll, startPeer } from "./start.ts";
import { type RunStep, StepFailed, steps } from "./steps.ts";

/** The options of `demo`. */
export type DemoOptions = {
  readonly question?: string;
  /** The number or the name of the only one to run. */
  readonly scenario?: string;
  readonly keep?: boolean;
  readonly port?: number;
  /** A line of JSON for each step, and for the end. */
  readonly json?: boolean;
};

const defaultQuestion = "What happens to an accepted task when the server crashes while an agent works on it?";
const maxQuestionChars = 500;
const maxLogChars = 500;
const signals = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
const root = join(import.meta.dirname, "../..");

/** Runs the demo. Whatever happens, its processes end with it. Returns the exit code: 1 if a step or a scenario failed. */
export async function demo(options: DemoOptions): Promise<number> {
  const question = (options.question ?? defaultQuestion).trim();
  if (question === "" || question.length > maxQuestionChars) {
    throw new UsageError(`--question must have 1 to ${maxQuestionChars} characters`, "ask in a sentence or two");
  }
  const chosen = chooseScenarios(options.scenario);
  const folder = mkdtempSync(join(tmpdir(), "moltwire-demo-"));
  const processes = children();
  const removeData = () => {
    if (!options.keep) rmSync(folder, { recursive: true, force: true });
  };
  // For an end that nothing below sees, as when the reader of the output has gone.
  process.once("exit", removeData);
  const interruption = new AbortController();
  const interrupt = () => interruption.abort();
  // "on", so that a second Ctrl-C does not leave before the processes have ended.
  for (const signal of signals) process.on(signal, interrupt);
  const interrupted = once(interruption.signal, "abort");
  try {
    const shown = show({ question, chosen, folder, processes, signal: interruption.signal, options });
    const failed = await Promise.race([shown, interrupted.then(() => 0)]);
    if (interruption.signal.aborted) return exitCodes.interrupted;
    if (failed > 0) tellFallen(processes, options.json ? note : print);
    return failed > 0 ? exitCodes.failed : exitCodes.ok;
  } catch (error) {
    if (!(error instanceof StepFailed)) throw error;
    if (interruption.signal.aborted) return exitCodes.interrupted;
    // With --json the step's own line has said so; what more there is to say is none of it.
    const say = options.json ? note : print;
    if (!options.json) print(`\n${paint("red", `Failed at the step "${error.step}".`)}`);
    tellFallen(processes, say, error.step);
    if (error.reason === "INTERNAL") {
      for (const line of processes.lastLines("server").slice(-2)) say(`  server: ${fit(plain(line), maxLogChars)}`);
    }
    return exitCodes.failed;
  } finally {
    await processes.stop();
    removeData();
    process.off("exit", removeData);
    for (const signal of signals) process.off(signal, interrupt);
  }
}

/** Says which processes ended by themselves, but for the one that has been spoken of. */
function tellFallen(processes: Processes, say: (line: string) => void, but?: string): void {
  for (const { name, how } of processes.fallen()) if (name !== but) say(`Note: the ${name} ended with ${how}.`);
}

type Processes = ReturnType<typeof children>;

type Show = {
  readonly question: string;
  readonly chosen: readonly Numbered[];
  readonly folder: string;
  readonly processes: Processes;
  readonly signal: AbortSignal;
  readonly options: DemoOptions;
};

/** Starts everything, runs the scenarios and prints what came of them. Returns how many failed. */
async function show({ question, chosen, folder, processes, signal, options }: Show): Promise<number> {
  const width = Math.min(100, columns());
  const began = performance.now();
  let url = "the server";
  const json = options.json === true;
  const step = steps({ width, url: () => url, signal, json });
  const up = await startAll(processes, folder, options.port ?? 0, step);
  url = up.url;
  const operator = connectClients({ url, key: up.operatorKey });
  const made = await step(
    "organisation",
    () => setUp(operator, url, up),
    ({ orgId, agentIds }) => `${orgId} has ${contracts.length} contracts and ${Object.keys(agentIds).length} agents`,
  );
  const admin = connectClients({ url, key: made.orgKey });
  const planner = connectClients({ url, key: made.plannerKey });
  if (!json) print();
  const outcomes = await runScenarios(
    chosen,
    {
      ...{ ...up, operator, admin, planner, made, root, question, width },
      startPeer: () => startPeer(processes, join(folder, "second"), up.url),
    },
    step,
    signal,
  );
  if (!json) print();
  await step("ledger", () => proveLedger(operator), ledgerText);
  const { details } = await operator(StatusService).getStatus({});
  const off = [...(details?.encryptionAtRest ? [] : ["encryption at rest"]), "TLS"];
  const end = { chosen, outcomes, tookMs: performance.now() - began, off, kept: options.keep === true };
  if (json) printJson(endJson(end), 0);
  else for (const line of renderEnd(end, width)) print(line);
  if (options.keep) {
    const { traceId } = outcomes.findLast(({ lines }) => lines) ?? outcomes.at(-1) ?? {};
    const kept = { url, folder, operatorKey: up.operatorKey, made, traceId, question };
    if (json) printJson(keptJson(kept), 0);
    else for (const line of renderKept(kept)) print(line);
    await step(
      "up",
      async () => {
        await processes.anyEnd();
        throw new Error("a process that should stay up has ended");
      },
      () => "",
    );
  }
  return chosen.length - outcomes.length;
}

type End = {
  readonly chosen: readonly Numbered[];
  /** Of those that held. */
  readonly outcomes: readonly Outcome[];
  readonly tookMs: number;
  /** What the demo does without. */
  readonly off: readonly string[];
  readonly kept: boolean;
};

/** What scenarios had to show, and how many held. */
function renderEnd({ chosen, outcomes, tookMs, off, kept }: End, width: number): string[] {
  const failed = chosen.length - outcomes.length;
  const held = failed === 0 ? `All ${chosen.length} held` : paint("red", `${failed} of ${chosen.length} failed`);
  const without = `Off in this demo: ${off.join(" and ")}. Its keys are its own, and its data is ${kept ? "kept" : "deleted now"}.`;
  return [
    ...outcomes.flatMap(({ lines = [] }) => lines),
    `\n${chosen.length === 1 && failed === 0 ? "It held" : held}, in ${span(tookMs)}.`,
    ...wrap(without, width),
  ];
}

const endJson = ({ chosen, outcomes, tookMs, off, kept }: End) => ({
  scenarios: chosen.length,
  failed: chosen.length - outcomes.length,
  tookMs: Math.round(tookMs),
  off,
  kept,
  traceIds: outcomes.map(({ traceId }) => traceId),
  shown: outcomes.flatMap(({ lines = [] }) => lines.map(stripVTControlCharacters)),
});

/** Runs them one after the other, also after one that fails, and answers what came of those that held. */
async function runScenarios(
  chosen: readonly Numbered[],
  world: World,
  step: RunStep,
  signal: AbortSignal,
): Promise<Outcome[]> {
  const outcomes: Outcome[] = [];
  for (const { number, name, run } of chosen) {
    try {
      outcomes.push(
        await step(
          `${number} ${name}`,
          () => run(world),
          ({ proof }) => proof,
        ),
      );
    } catch (error) {
      if (!(error instanceof StepFailed) || signal.aborted) throw error;
    }
  }
  return outcomes;
}
