import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath, pathToFileURL } from "node:url";
import { expect, test } from "vitest";
import { connect, TaskError, type TaskInHand } from "../clients/typescript/index.ts";
import { contract, json, reasonOf, stateOf, submit, whenEnded } from "./bus-fixtures/bus.ts";
import { puller } from "./bus-fixtures/instance.ts";
import { eventually, type Org, refusal, start, type World } from "./harness.ts";

const clientPath = fileURLToPath(new URL("../clients/typescript/", import.meta.url));

async function agentOf(world: World, init: Parameters<typeof contract>[1] = {}) {
  const org = await world.org();
  const contractId = await contract(org, { timeoutMs: 60_000, ...init });
  const agent = await puller(org, contractId);
  return { org, contractId, agent, client: connect({ url: world.url, apiKey: agent.key }) };
}

const ended = async (org: Org, contractId: string, input = {}) =>
  submit(org.admin, contractId, { input }) as Promise<Awaited<ReturnType<typeof whenEnded>>>;

test("the README's example is an agent: it answers, fails for good where it says so, and ends on SIGTERM", async () => {
  await using world = await start();
  const { org, contractId, agent } = await agentOf(world, { retries: 3 });
  const [, program] = /```ts\n([\s\S]*?)```/.exec(readFileSync(join(clientPath, "README.md"), "utf8"))!;
  const lines = program!.split("\n").filter((line) => line.trim() && !line.startsWith("//"));
  expect(lines.length).toBeLessThanOrEqual(10);
  const folder = mkdtempSync(join(tmpdir(), "moltwire-test-"));
  const file = join(folder, "agent.ts");
  writeFileSync(
    file,
    program!.replace('"@moltwire/client"', JSON.stringify(pathToFileURL(join(clientPath, "index.ts")).href)),
  );
  const env = { PATH: process.env.PATH, MOLTWIRE_URL: world.url, MOLTWIRE_API_KEY: agent.key };
  const child = spawn(process.execPath, [file], { env, stdio: ["ignore", "inherit", "inherit"] });
  try {
    const exited = once(child, "exit");
    expect(json((await ended(org, contractId, { text: "hello" })).output)).toEqual({ shouted: "HELLO" });
    const failed = await ended(org, contractId, {});
    expect([stateOf(failed), reasonOf(failed), failed.attempts]).toEqual(["FAILED", "ADAPTER_ERROR", 1]);
    child.kill("SIGTERM");
    expect(await exited).toEqual([0, null]);
  } finally {
    child.kill("SIGKILL");
    rmSync(folder, { recursive: true });
  }
});

test("heartbeats keep a task that takes longer than its lease, and a failure is tried again", async () => {
  await using world = await start();
  const { org, contractId, client } = await agentOf(world, { retries: 1 });
  const stop = new AbortController();
  const serving = client.serve(
    async ({ attempt, usage, progress }) => {
      progress(0.5);
      usage({ inputTokens: 7n });
      if (attempt === 1) throw new Error("not today");
      await delay(7_000);
      return attempt;
    },
    { leaseMs: 3_000, signal: stop.signal },
  );
  const task = await ended(org, contractId);
  expect([stateOf(task), json(task.output), task.usage?.inputTokens]).toEqual(["COMPLETED", 2, 14n]);
  stop.abort();
  await serving;
});

test("a canceled task's signal aborts, and the place is free", async () => {
  await using world = await start();
  const { org, contractId, client } = await agentOf(world);
  const stop = new AbortController();
  const seen: TaskInHand[] = [];
  const serving = client.serve(
    async (task) => {
      seen.push(task);
      if (task.input !== "wait") return "done";
      await once(task.signal, "abort");
      return "too late";
    },
    { signal: stop.signal },
  );
  const { taskId } = await submit(org.admin, contractId, { input: "wait", returnImmediately: true });
  await eventually(() => seen.length === 1);
  await org.admin.bus.cancelTask({ taskId });
  expect(stateOf(await submit(org.admin, contractId))).toBe("COMPLETED");
  expect(seen[0]!.signal.aborted).toBe(true);
  expect(stateOf(await whenEnded(org.admin, taskId))).toBe("CANCELED");
  stop.abort();
  await serving;
});

test("it goes on over a restart of the server, and brings the answer that it had meanwhile", async () => {
  const folder = mkdtempSync(join(tmpdir(), "moltwire-test-"));
  const problems: unknown[] = [];
  const stop = new AbortController();
  const before = await start("sqlite", { data: folder });
  const { org, contractId, client } = await agentOf(before);
  const { promise: restarted, resolve } = Promise.withResolvers<void>();
  const { promise: begun, resolve: begin } = Promise.withResolvers<void>();
  const serving = client.serve(
    async ({ attempt }) => {
      begin();
      await restarted;
      return attempt;
    },
    { signal: stop.signal, onProblem: (error) => problems.push(error) },
  );
  const made = [
    await submit(org.admin, contractId, { returnImmediately: true }),
    await submit(org.admin, contractId, { returnImmediately: true }),
  ];
  await begun;
  await before[Symbol.asyncDispose]();
  resolve();
  await eventually(() => problems.length > 0); // the answer finds nobody
  await using after = await start("sqlite", { data: folder, port: Number(new URL(before.url).port) });
  for (const { taskId } of made) {
    const task = await whenEnded(after.as(org.adminKey), taskId);
    expect([stateOf(task), json(task.output)]).toEqual(["COMPLETED", 1]);
  }
  stop.abort();
  await serving;
  rmSync(folder, { recursive: true });
});

test("an instance that stops in the middle of a stream of tasks loses none, though their contract is not repeatable", async () => {
  await using world = await start();
  const { org, contractId, client } = await agentOf(world);
  const stops = Array.from({ length: 6 }, () => new AbortController());
  const times = new Map<string, number>();
  const serve = ({ signal }: AbortController) =>
    client.serve(
      async ({ taskId }) => {
        times.set(taskId, (times.get(taskId) ?? 0) + 1);
        await delay(Math.random() * 20);
        return null;
      },
      { capacity: 16, signal },
    );
  const last = new AbortController();
  const serving = [...stops, last].map(serve);
  const submitting = Promise.all(
    Array.from({ length: 400 }, async (_, n) => {
      await delay(n * 5);
      return submit(org.admin, contractId);
    }),
  );
  for (const stop of stops) {
    await delay(300);
    stop.abort();
  }
  const tasks = await submitting;
  expect(tasks.map(stateOf).filter((state) => state !== "COMPLETED")).toEqual([]);
  expect([...times.values()].filter((count) => count !== 1)).toEqual([]);
  last.abort();
  await Promise.all(serving);
});

test("it rejects when another try cannot help, and what its handler throws says whether one can", async () => {
  await using world = await start();
  const { org } = await agentOf(world);
  const caller = await org.agent();
  const served = connect({ url: world.url, apiKey: caller.key }).serve(() => null);
  expect(await refusal(served)).toMatchObject({ reason: "FAILED_PRECONDITION" });
  expect(new TaskError("no", { retryable: false })).toMatchObject({ name: "TaskError", retryable: false });
});
