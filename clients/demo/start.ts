/** The demo's processes, each started as a step: the agents that do work, and the server that may reach them. */
import { randomBytes } from "node:crypto";
import { extname, join } from "node:path";
import type { children } from "./children.ts";
import { type Reviewer, reviewerOf } from "./reviewers.ts";
import type { RunStep } from "./steps.ts";

/** Who reviews, and whether it is the stand-in for a model. */
export type Who = Reviewer & { readonly standIn?: boolean };

/** What is up. */
export type Up = {
  readonly url: string;
  readonly operatorKey: string;
  readonly researcherUrl: string;
  readonly flakyUrl: string;
  readonly reviewer: Who;
};

type Processes = ReturnType<typeof children>;

/** By this name the first server may reach the second, whose port is not known when it starts; agents are named by address and port. */
const peerHost = "localhost";

const root = join(import.meta.dirname, "../..");
/** Of the programs: what is installed is built. */
const extension = extname(import.meta.filename);

/** Starts them all. `folder` is for the server's data; a port of 0 chooses a free one. */
export async function startAll(processes: Processes, folder: string, port: number, step: RunStep): Promise<Up> {
  const researcher = await step(
    "researcher",
    () => processes.start(agentStart("researcher", /listening on (http:\S+) with (.+)/)),
    ({ pid, ready }) => `process ${pid} at ${ready[1]} has read ${ready[2]}`,
  );
  const reviewer = reviewerOf(process.env) ?? (await startStandIn(processes, step));
  const flaky = await step(
    "flaky",
    () => processes.start(agentStart("flaky", /listening on (http:\S+)/)),
    ({ pid, ready }) => `process ${pid} at ${ready[1]}; it fails when it is told to`,
  );
  const [researcherUrl, flakyUrl] = [researcher.ready[1]!, flaky.ready[1]!];
  const operatorKey = randomBytes(32).toString("base64url");
  const reachable = [new URL(researcherUrl).host, new URL(flakyUrl).host, placeOf(reviewer), peerHost];
  const server = await step(
    "server",
    () => processes.start(serverStart({ name: "server", folder, port, operatorKey, reachable, reviewer })),
    ({ pid, ready }) => `process ${pid} at ${ready[1]}, with a new data folder`,
  );
  return { url: server.ready[1]!, operatorKey, researcherUrl, flakyUrl, reviewer };
}

/** The reviewer where the environment names none, with a key that only it and the bus know. */
async function startStandIn(processes: Processes, step: RunStep): Promise<Who> {
  const key = randomBytes(24).toString("base64url");
  const { ready } = await step(
    "reviewer",
    () => processes.start(agentStart("reviewer", /listening on (http:\S+) as (\S+)/, { REVIEWER_KEY: key })),
    ({ pid, ready }) =>
      `process ${pid} at ${ready[1]}: a stand-in for a model, since neither OPENAI_API_KEY nor OPENAI_BASE_URL is set`,
  );
  return { baseUrl: ready[1]!, model: ready[2]!, key: { case: "apiKey", value: key }, standIn: true };
}

const agentStart = (name: string, ready: RegExp, env: NodeJS.ProcessEnv = {}) => ({
  name,
  args: [join(import.meta.dirname, `${name}${extension}`)],
  env: { ...cleanEnv(), ...env },
  ready,
});

/** A second server, with nothing in it. */
export type Peer = {
  readonly url: string;
  /** Its address as the first server may reach it. */
  readonly peerUrl: string;
  readonly pid: number;
  readonly operatorKey: string;
};

/** Starts a second server, which may reach the first, and nothing else. `folder` is for its data. */
export async function startPeer(processes: Processes, folder: string, firstUrl: string): Promise<Peer> {
  const operatorKey = randomBytes(32).toString("base64url");
  const reachable = [new URL(firstUrl).host];
  const start = serverStart({ name: "second server", folder, port: 0, operatorKey, reachable });
  const { pid, ready } = await processes.start(start);
  const url = ready[1]!;
  return { url, peerUrl: `http://${peerHost}:${new URL(url).port}`, pid, operatorKey };
}

type Serving = {
  readonly name: string;
  readonly folder: string;
  readonly port: number;
  readonly operatorKey: string;
  readonly reachable: readonly string[];
  readonly reviewer?: Reviewer;
};

const serverStart = ({ name, folder, port, operatorKey, reachable, reviewer }: Serving) => ({
  name,
  args: [join(root, `src/main${extension}`), "--host", "127.0.0.1", "--port", String(port), "--data", folder],
  env: {
    ...cleanEnv(),
    MOLTWIRE_OPERATOR_KEY: operatorKey,
    MOLTWIRE_EGRESS_ALLOW: reachable.join(","),
    ...(reviewer?.key?.case === "apiKeyEnv" && {
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
