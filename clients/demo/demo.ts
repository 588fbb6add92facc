/**
 * `npm run demo`: a real server, three agents and a question. The planner has the researcher outline, search and compose, and the
 * reviewer judge what came out, by the bus, in one trace that is watched live; the answer is made of the project's own documents.
 */
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { BusService } from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { StatusService } from "../../gen/moltwire/ops/v1/status_service_pb.ts";
import { connectClients } from "../cli/connect.ts";
import { exitCodes } from "../cli/exit-codes.ts";
import { columns, fit, paint, plain, print, span, wrap } from "../cli/output.ts";
import { UsageError } from "../cli/settings.ts";
import { readTrace, traceHeadline } from "../cli/trace.ts";
import { renderTree } from "../cli/trace-tree.ts";
import { checkQuotes, renderAnswer } from "./answer.ts";
import { children } from "./children.ts";
import { renderKept } from "./kept.ts";
import { compareTraces, openTail } from "./live.ts";
import { newTrace, plan } from "./planner.ts";
import { type Reviewer, reviewerOf } from "./reviewers.ts";
import { setUp } from "./setup.ts";
import { type RunStep, StepFailed, steps } from "./steps.ts";

/** The options of `demo`. */
export type DemoOptions = { readonly question?: string; readonly keep?: boolean; readonly port?: number };

const defaultQuestion = "What happens to an accepted task when the server crashes while an agent works on it?";
const maxQuestionChars = 500;
const maxTailMs = 5_000;
const taskCount = 4;
const maxLogChars = 500;
const signals = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
const root = join(import.meta.dirname, "../..");

/** Runs the demo. Whatever happens, its processes end with it. Returns the exit code: 1 if a step failed. */
export async function demo(options: DemoOptions): Promise<number> {
  const question = (options.question ?? defaultQuestion).trim();
  if (question === "" || question.length > maxQuestionChars) {
    throw new UsageError(`--question must have 1 to ${maxQuestionChars} characters`, "ask in a sentence or two");
  }
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
    await Promise.race([show(question, folder, processes, interruption.signal, options), interrupted]);
    return interruption.signal.aborted ? exitCodes.interrupted : exitCodes.ok;
  } catch (error) {
    if (!(error instanceof StepFailed)) throw error;
    if (interruption.signal.aborted) return exitCodes.interrupted;
    print(`\n${paint("red", `Failed at the step "${error.step}".`)}`);
    for (const { name, how } of processes.fallen()) {
      if (name !== error.step) print(`Note: the ${name} ended with ${how}.`);
    }
    if (error.reason === "INTERNAL") {
      for (const line of processes.lastLines("server").slice(-2)) print(`  server: ${fit(plain(line), maxLogChars)}`);
    }
    return exitCodes.failed;
  } finally {
    await processes.stop();
    removeData();
    process.off("exit", removeData);
    for (const signal of signals) process.off(signal, interrupt);
  }
}

async function show(
  question: string,
  folder: string,
  processes: ReturnType<typeof children>,
  signal: AbortSignal,
  options: DemoOptions,
): Promise<void> {
  const width = Math.min(100, columns());
  const began = performance.now();
  let url = "the server";
  const step = steps(width, () => url, signal);

  const researcher = await step(
    "researcher",
    () =>
      processes.start({
        name: "researcher",
        args: [join(import.meta.dirname, "researcher.ts")],
        env: cleanEnv(),
        ready: /listening on (http:\S+) with (.+)/,
      }),
    ({ pid, ready }) => `process ${pid} at ${ready[1]} has read ${ready[2]}`,
  );
  const researcherUrl = researcher.ready[1]!;
  const reviewer: Who = reviewerOf(process.env) ?? (await startStandIn(processes, step));
  const operatorKey = randomBytes(32).toString("base64url");
  const server = await step(
    "server",
    () => processes.start(serverStart(folder, options.port ?? 0, operatorKey, new URL(researcherUrl), reviewer)),
    ({ pid, ready }) => `process ${pid} at ${ready[1]}, with a new data folder`,
  );
  url = server.ready[1]!;
  const operator = connectClients({ url, key: operatorKey });
  const made = await setUp(operator, url, { researcherUrl, reviewer }, step);

  const planner = connectClients({ url, key: made.plannerKey });
  const { traceId, traceparent } = newTrace();
  const tail = await step(
    "live trace",
    () => openTail(planner, traceId),
    () => "TailTraces is open before the first task",
  );
  try {
    const { composed, review } = await plan(planner(BusService), traceparent, question, step);
    await step(
      "quotes",
      async () => checkQuotes(root, composed.quotes),
      () => "each sentence stands in its file, at its line",
    );
    const { trace, events } = await step(
      "trace",
      async () => {
        const live = await tail.completed(taskCount, maxTailMs);
        const read = await readTrace(planner, "", traceId);
        compareTraces(live, read.events);
        return read;
      },
      ({ events }) => `${events.length} steps came live, the same and in the same order as GetTrace reads them`,
    );
    const { details } = await operator(StatusService).getStatus({});

    print(`\n${paint("bold", question)}\n`);
    for (const line of renderAnswer(composed.quotes, width)) print(line);
    print(`
The reviewer says: ${review.verdict}.`);
    for (const line of wrap(plain(review.summary), width - 2)) print(`  ${line}`);
    const standIn = reviewer.standIn ? ", a stand-in that ranks sentences" : "";
    print(`    ${paint("cyan", reviewer.model)}  ${paint("dim", `${reviewer.baseUrl}${standIn}`)}`);
    print(`\n${traceHeadline(trace, events.length)}`);
    for (const line of renderTree(events, { width, names: made.names })) print(line);
    print(`\nAll in ${span(performance.now() - began)}.`);
    const off = [...(details?.encryptionAtRest ? [] : ["encryption at rest"]), "TLS"];
    print(
      `Off in this demo: ${off.join(" and ")}. Its keys are its own, and its data is ${options.keep ? "kept" : "deleted now"}.`,
    );
  } finally {
    tail.close();
  }
  if (options.keep) {
    for (const line of renderKept({ url, folder, operatorKey, made, traceId, question })) print(line);
    await step(
      "up",
      async () => {
        await processes.anyEnd();
        throw new Error(
          processes
            .fallen()
            .map(({ name, how }) => `the ${name} ended with ${how}`)
            .join("; "),
        );
      },
      () => "",
    );
  }
}

type Who = Reviewer & { readonly standIn?: boolean };

/** The reviewer where the environment names none, with a key that only it and the bus know. */
async function startStandIn(processes: ReturnType<typeof children>, step: RunStep): Promise<Who> {
  const key = randomBytes(24).toString("base64url");
  const { ready } = await step(
    "reviewer",
    () =>
      processes.start({
        name: "reviewer",
        args: [join(import.meta.dirname, "reviewer.ts")],
        env: { ...cleanEnv(), REVIEWER_KEY: key },
        ready: /listening on (http:\S+) as (\S+)/,
      }),
    ({ pid, ready }) =>
      `process ${pid} at ${ready[1]}: a stand-in for a model, since neither OPENAI_API_KEY nor OPENAI_BASE_URL is set`,
  );
  return { baseUrl: ready[1]!, model: ready[2]!, key: { case: "apiKey", value: key }, standIn: true };
}

const serverStart = (folder: string, port: number, operatorKey: string, researcher: URL, reviewer: Reviewer) => ({
  name: "server",
  args: [join(root, "src/main.ts"), "--host", "127.0.0.1", "--port", String(port), "--data", folder],
  env: {
    ...cleanEnv(),
    MOLTWIRE_OPERATOR_KEY: operatorKey,
    MOLTWIRE_EGRESS_ALLOW: `${researcher.host},${placeOf(reviewer)}`,
    ...(reviewer.key?.case === "apiKeyEnv" && {
      MOLTWIRE_ADAPTER_KEYS: `${reviewer.key.value}@${new URL(reviewer.baseUrl).origin}`,
    }),
  },
  ready: /listening on (http:[^\s"',]+)/,
});

/** As the list of what may be reached although private has it. */
function placeOf({ baseUrl }: Reviewer): string {
  const { hostname, port, protocol } = new URL(baseUrl);
  return `${hostname}:${port || (protocol === "https:" ? 443 : 80)}`;
}

/** The environment without settings of another server: the demo must not touch its database. */
const cleanEnv = (): NodeJS.ProcessEnv =>
  Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("MOLTWIRE_")));
