import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { Code, ConnectError } from "@connectrpc/connect";
import { beforeAll, describe, expect, test } from "vitest";
import { connect, type Moltwire } from "../../clients/typescript/index.ts";
import { generateGo, goTools } from "../../scripts/clients/go.ts";
import { generatePython, pythonTools } from "../../scripts/clients/python.ts";
import { run } from "../../scripts/clients/tools.ts";
import { Fault, toConnectError } from "../../src/errors.ts";
import { balancer } from "../balancer.ts";
import { type ServerProcess, serverProcess } from "../bus-fixtures/process.ts";
import { faultyServer } from "../client-fixtures/faulty.ts";
import { wireTo } from "../client-fixtures/proxy.ts";
import { freePort } from "../crash/server-process.ts";
import { migratedDatabase, postgresUrl } from "../engines.ts";
import { eventually } from "../harness.ts";

const root = join(import.meta.dirname, "../..");
const operatorKey = "kR7w2Qz9XvB4nT6mLp3sYf8hJd5gCa1e";
/** Tools are fetched, code is generated and compiled, on a machine that does other things too. */
const maxMs = 900_000;

type Case = { readonly case: string; readonly wants?: string; readonly saw: unknown };
const cases = JSON.parse(readFileSync(join(root, "clients/conformance/cases.json"), "utf8")) as readonly Case[];

const fault = (reason: string, retryAfterMs?: number) =>
  toConnectError(new Fault(reason as never, "as told", {}, retryAfterMs === undefined ? {} : { retryAfterMs }));
/** What the faulty server answers first, and how often it is asked for each. */
const faults: readonly (readonly [ConnectError, number])[] = [
  [fault("OVERLOADED", 20), 2],
  [fault("STILL_RUNNING"), 2],
  [fault("SHUTTING_DOWN"), 2],
  [fault("OUTCOME_UNKNOWN"), 2],
  [new ConnectError("gone", Code.Unavailable), 2],
  [fault("RATE_LIMITED", 60_000), 1],
  [fault("NOT_FOUND"), 1],
  [fault("INTERNAL"), 1],
];

/** Two replicas behind a balancer, or one server where there is no PostgreSQL, as processes of their own; and an agent that pulls. */
async function server() {
  const folder = mkdtempSync(join(tmpdir(), "moltwire-clients-"));
  const database = postgresUrl === undefined ? undefined : await migratedDatabase();
  const where = database ? ["--database-url", database.url] : ["--data", folder];
  const ports = await Promise.all(Array.from({ length: database ? 2 : 1 }, freePort));
  const start = (port: number) => {
    const args = [...where, "--port", String(port), "--rate-limit", "0", "--log-level", "silent"];
    return serverProcess(join(root, "src/main.ts"), args, { MOLTWIRE_OPERATOR_KEY: operatorKey });
  };
  const replicas: ServerProcess[] = [];
  for (const port of ports) replicas.push(await start(port));
  const front = await balancer(() => ports.map((port) => `http://127.0.0.1:${port}`));
  const { url } = front;
  const { agents, contracts, keys, organizations } = connect({ url, apiKey: operatorKey });
  const { organization } = await organizations.createOrganization({ name: "clients" });
  const { orgId } = organization!;
  const contractId = "shout";
  await contracts.registerContract({ orgId, contractId, version: "1.0.0", repeatable: true });
  const endpoint = { kind: { case: "pull", value: {} } } as const;
  const { agent } = await agents.registerAgent({ orgId, name: "a", capabilities: [contractId], endpoint });
  const { agentId } = agent!;
  const { secret: apiKey } = await keys.createApiKey({ orgId, agentId });
  return {
    url,
    contractId,
    agentId,
    apiKey,
    /** All of them at once, without a word. */
    async restart() {
      await Promise.all(replicas.map((replica) => replica.kill()));
      for (const [n, port] of ports.entries()) replicas[n] = await start(port);
    },
    /** One after the other, as for an upgrade. */
    async roll() {
      for (const [n, port] of ports.entries()) {
        expect(await replicas[n]!.stop()).toBe(0);
        replicas[n] = await start(port);
      }
    },
    async [Symbol.asyncDispose]() {
      for (const replica of replicas) await replica[Symbol.asyncDispose]();
      await front[Symbol.asyncDispose]();
      await database?.drop();
      rmSync(folder, { recursive: true });
    },
  };
}

/** Runs a program through all cases; gives what it printed of them. */
async function conformance(program: readonly [string, ...string[]], env: Record<string, string>): Promise<Case[]> {
  await using place = await server();
  await using wire = await wireTo(place.url);
  await using faulty = await faultyServer();
  for (const [n, [failure]] of faults.entries()) faulty.ofJobs.set(`job_${n}`, failure);
  const { url, apiKey, agentId } = place;
  const mw: Moltwire = connect({ url, apiKey, maxAttempts: 50 });
  const send = async (from: number, to: number) => {
    for (let n = from; n < to; n++) await mw.relay.send({ agentId }, n);
  };
  await send(0, 20);
  const [command, ...args] = program;
  const child = spawn(command, args, {
    cwd: root,
    env: {
      PATH: process.env.PATH,
      HOME: process.env.HOME,
      MOLTWIRE_URL: url,
      MOLTWIRE_API_KEY: apiKey,
      CONFORMANCE_CONTRACT_ID: place.contractId,
      CONFORMANCE_WIRE_URL: wire.url,
      CONFORMANCE_FAULTY_URL: faulty.url,
      ...env,
    },
    stdio: ["pipe", "pipe", "inherit"],
  });
  const happens: Readonly<Record<string, (go: () => void) => Promise<void>>> = {
    async "lose the answer"(go) {
      wire.hold();
      go();
      await eventually(async () => (await mw.queue.listJobs({ queue: "once" })).jobs.length > 0, 60_000);
      wire.cut();
    },
    async "kill the server"(go) {
      await place.restart();
      await send(20, 40);
      go();
    },
    async "roll the servers"(go) {
      await Promise.all([place.roll(), send(40, 60)]);
      go();
    },
  };
  const seen: Case[] = [];
  await using _ = ending(child);
  const exited = once(child, "exit");
  for await (const line of createInterface({ input: child.stdout! })) {
    const said = JSON.parse(line) as Case;
    if (said.wants) await happens[said.wants]!(() => void child.stdin!.write("\n"));
    else seen.push(said);
  }
  await exited;
  expect(child.exitCode).toBe(0);
  // How often each was sent, and that all attempts of one were one command.
  const keys = faulty.asked.map(({ key }) => key);
  expect(faulty.asked.length).toBe(faults.reduce((sum, [, times]) => sum + times, 0));
  expect(new Set(keys).size).toBe(faults.length);
  expect(keys).not.toContain(null);
  return seen;
}

const ending = (child: ChildProcess) => ({
  async [Symbol.asyncDispose]() {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const exited = once(child, "exit");
    child.kill("SIGKILL");
    await exited;
  },
});

/** What a folder holds: each file's bytes by its path. */
const bytesOf = (folder: string): Map<string, string> =>
  new Map(
    readdirSync(folder, { recursive: true, encoding: "utf8" })
      .filter((path) => statSync(join(folder, path)).isFile() && !path.includes("__pycache__"))
      .toSorted()
      .map((path) => [path, readFileSync(join(folder, path), "base64")]),
  );

/** The block of docs/agents.md in a language. */
const tenLines = (language: string): string =>
  new RegExp(`^\`\`\`${language}\\n(.*?)^\`\`\``, "ms").exec(readFileSync(join(root, "docs/agents.md"), "utf8"))![1]!;

/** Starts the program as an agent and ends it by SIGTERM; gives what it answered, and its exit code. */
async function answerOf(program: readonly [string, ...string[]], env: Record<string, string> = {}): Promise<unknown> {
  await using place = await server();
  const { url, apiKey, contractId } = place;
  const [command, ...args] = program;
  const child = spawn(command, args, {
    cwd: root,
    env: { PATH: process.env.PATH, HOME: process.env.HOME, MOLTWIRE_URL: url, MOLTWIRE_API_KEY: apiKey, ...env },
    stdio: ["ignore", "ignore", "inherit"],
  });
  await using _ = ending(child);
  const exited = once(child, "exit");
  const answer = await connect({ url, apiKey }).bus.call(contractId, { text: "hello" });
  child.kill("SIGTERM");
  await exited;
  return [answer, child.exitCode];
}

const expected = cases.map(({ case: name, saw }) => ({ case: name, saw }));

test(
  "the client for TypeScript does what every client does",
  async () => {
    const program = [process.execPath, "clients/conformance/typescript.ts"] as const;
    expect(await conformance(program, {})).toEqual(expected);
  },
  maxMs,
);

const python = await pythonTools();
if ("missing" in python) console.warn(`The client for Python is not tested: ${python.missing}`);
describe.skipIf("missing" in python)("the client for Python", () => {
  const { bin } = python as { bin: string };
  beforeAll(async () => void (await generatePython()), maxMs);

  test(
    "is generated byte for byte the same, and is whole in the eyes of mypy, as its example and its program are",
    async () => {
      const again = mkdtempSync(join(tmpdir(), "moltwire-generated-"));
      try {
        await generatePython();
        await generatePython(again);
        const folder = "clients/python/src/moltwire";
        const made = bytesOf(join(again, folder));
        expect(made.size).toBeGreaterThan(100);
        const here = bytesOf(join(root, folder));
        for (const [path, bytes] of made) expect(here.get(path) === bytes, path).toBe(true);
      } finally {
        rmSync(again, { recursive: true, force: true });
      }
      const checked = [
        "--config-file",
        "clients/python/pyproject.toml",
        "--cache-dir",
        join(tmpdir(), "moltwire-mypy"),
      ];
      const files = ["clients/python/examples/agent.py", "clients/conformance/python.py"];
      const env = { MYPYPATH: "clients/python/src" };
      await run(join(bin, "mypy"), [...checked, "-p", "moltwire"], { env });
      await run(join(bin, "mypy"), [...checked, "--scripts-are-modules", ...files], { env });
    },
    maxMs,
  );

  test(
    "does what every client does",
    async () => {
      await generatePython();
      const env = { PYTHONPATH: join(root, "clients/python/src"), PYTHONDONTWRITEBYTECODE: "1" };
      expect(await conformance([join(bin, "python"), "clients/conformance/python.py"], env)).toEqual(expected);
      expect(await answerOf([join(bin, "python"), "-c", tenLines("python")], env)).toEqual([{ shouted: "HELLO" }, 0]);
      const example = await answerOf([join(bin, "python"), "clients/python/examples/agent.py"], env);
      expect(example).toEqual([{ shouted: "HELLO" }, 0]);
    },
    maxMs,
  );
});

const go = await goTools();
if ("missing" in go) console.warn(`The client for Go is not tested: ${go.missing}`);
describe.skipIf("missing" in go)("the client for Go", () => {
  const folder = join(root, "clients/go");
  beforeAll(async () => void (await generateGo()), maxMs);

  test(
    "is generated byte for byte the same, and go vet has nothing to say of it",
    async () => {
      const again = mkdtempSync(join(tmpdir(), "moltwire-generated-"));
      try {
        await generateGo();
        cpSync(join(folder, "go.mod"), join(again, "clients/go/go.mod"));
        await generateGo(again);
        expect(bytesOf(join(again, "clients/go/gen"))).toEqual(bytesOf(join(folder, "gen")));
      } finally {
        rmSync(again, { recursive: true, force: true });
      }
      await run("go", ["vet", "./..."], { cwd: folder });
    },
    maxMs,
  );

  test(
    "does what every client does",
    async () => {
      await generateGo();
      const built = mkdtempSync(join(tmpdir(), "moltwire-go-"));
      try {
        await run("go", ["build", "-o", built, "./conformance"], { cwd: folder });
        expect(await conformance([join(built, "conformance")], {})).toEqual(expected);
        writeFileSync(join(built, "main.go"), tenLines("go"));
        await run("go", ["build", "-o", join(built, "agent"), join(built, "main.go")], { cwd: folder });
        // It knows no end, and so SIGTERM ends the process.
        expect(await answerOf([join(built, "agent")])).toEqual([{ shouted: "HELLO" }, null]);
        await run("go", ["build", "-o", join(built, "example"), "./examples/agent"], { cwd: folder });
        expect(await answerOf([join(built, "example")])).toEqual([{ shouted: "HELLO" }, 0]);
      } finally {
        rmSync(built, { recursive: true, force: true });
      }
    },
    maxMs,
  );
});
