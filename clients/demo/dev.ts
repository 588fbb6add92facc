/** `moltwire dev`: server, console and something to look at, in one process. */
import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { type Adapter, AttemptFault, createServer, type Server } from "../../src/server.ts";
import { exitCodes } from "../cli/exit-codes.ts";
import { note, paint, print, printJson } from "../cli/output.ts";
import { UsageError } from "../cli/settings.ts";
import { adapterName, type DevData, fillDev } from "./dev-data.ts";

/** The options of `moltwire dev`. */
export type DevOptions = {
  readonly port?: number;
  /** False with --no-console. */
  readonly console?: boolean;
  readonly json?: boolean;
};

const defaultPort = 6658;
const builder = join(import.meta.dirname, "../console/build.ts");

/** Runs until Ctrl-C or SIGTERM, and then nothing of it is left. Returns the exit code. */
export async function dev({
  port = defaultPort,
  console: withConsole = true,
  json = false,
}: DevOptions): Promise<number> {
  // Installed, it is there; in the project it is built of what has changed, as `npm start` does.
  if (withConsole && existsSync(builder))
    execFileSync(process.execPath, [builder, "--if-stale"], { stdio: ["ignore", 2, "inherit"] });
  const server = await createServer({
    host: "127.0.0.1",
    port,
    data: ":memory:",
    databaseUrl: undefined,
    logLevel: "warn",
    // Agents that somebody tries out run here, which a server refuses otherwise.
    egressAllow: ["127.0.0.1", "localhost"],
    adapters: { [adapterName]: work },
  });
  try {
    const url = await listen(server, port);
    const operatorKey = server.operatorKey!;
    const made = await fillDev(url, operatorKey);
    if (json) printJson({ url, data: ":memory:", operatorKey, ...made }, 0);
    else for (const line of renderDev(url, operatorKey, made)) print(line);
    note(`listening on ${url}`);
    await Promise.race([once(process, "SIGINT"), once(process, "SIGTERM")]);
    note("stopping; what was in it is gone");
  } finally {
    await server.close();
  }
  return exitCodes.ok;
}

async function listen(server: Server, port: number): Promise<string> {
  try {
    return await server.listen();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EADDRINUSE") throw error;
    throw new UsageError(`port ${port} is taken`, "stop what has it, or choose another with --port; 0 for any");
  }
}

/** What the demo's agents do. */
const work: Adapter = async (_endpoint, { contractId, input }) => {
  if (contractId === "greet") {
    const { name } = input as { readonly name: string };
    return { output: { greeting: `Hello, ${name}!` }, usage: { inputTokens: 3, outputTokens: 4, model: "dev-1" } };
  }
  if (contractId === "transfer")
    return { output: { done: true }, usage: { inputTokens: 1, outputTokens: 1, model: "dev-1" } };
  throw new AttemptFault("ADAPTER_ERROR", "failed", "the clerk fails at this, so that there is something to look at");
};

function renderDev(url: string, operatorKey: string, { orgKey, plannerKey }: DevData): string[] {
  return [
    `${paint("bold", "Moltwire, to try out")}  ${url}`,
    "",
    `  console        ${url}/  (sign in with a key)`,
    `  reference      ${url}/docs`,
    "  data           in memory: gone when this ends",
    "  in it          organisation demo: 3 agents, 3 contracts, tasks that were done, failed and wait for",
    "                 approval; memory, jobs, a schedule and messages",
    "",
    "  keys, made for this run and good for nothing else:",
    `  operator       ${operatorKey}`,
    `  administrator  ${orgKey}  (of demo)`,
    `  planner        ${plannerKey}  (an agent of demo)`,
    "",
    "  Off: encryption at rest and TLS. It listens on this machine alone, and may call agents on it. For more",
    "  than trying out: `moltwire server`.",
    "",
    "To copy:",
    `  export MOLTWIRE_URL=${url}`,
    `  export MOLTWIRE_API_KEY=${orgKey}`,
    `  npx moltwire submit greet '{"name":"you"}' --as planner`,
    "  npx moltwire task list",
    "  npx moltwire init my-agent",
    "",
  ];
}
