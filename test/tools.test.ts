import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { accessSync, constants } from "node:fs";
import { delimiter, join } from "node:path";
import { afterEach, expect, test } from "vitest";
import { start, type World } from "./harness.ts";

const commandMs = 20_000;
const submitTask = "moltwire.bus.v1.BusService/SubmitTask";
const tailTraces = "moltwire.bus.v1.TraceService/TailTraces";
const order = JSON.stringify({ contractId: "echo", contractVersion: "1.0.0", input: { hello: "world" } });
const fromStart = JSON.stringify({ fromStart: true });

const grpcurl = findProgram("grpcurl", process.env.GRPCURL, goBin);
const buf = join(import.meta.dirname, "../node_modules/.bin/buf");
const curl = findProgram("curl", process.env.CURL, () => undefined);
const orWhy = (found: string | undefined, name: string) =>
  found ? "" : ` (skipped: no ${name} on the PATH or named by ${name.toUpperCase()})`;

const running = new Set<ChildProcess>();

afterEach(async () => {
  for (const child of running) {
    child.kill("SIGKILL");
    await once(child, "close");
  }
});

test.skipIf(!grpcurl)(`grpcurl lists and describes the services${orWhy(grpcurl, "grpcurl")}`, async () => {
  await using world = await start();
  const ask = async (...args: string[]) => {
    const { ended } = run(grpcurl!, ["-plaintext", new URL(world.url).host, ...args]);
    return (await ended).stdout.toString();
  };
  const services = (await ask("list")).trim().split("\n");
  expect(services).toContain("moltwire.bus.v1.BusService");
  expect(services).toContain("moltwire.ops.v1.StatusService");
  expect(await ask("describe", "moltwire.bus.v1.BusService.SubmitTask")).toContain(
    "rpc SubmitTask ( .moltwire.bus.v1.SubmitTaskRequest ) returns ( .moltwire.bus.v1.SubmitTaskResponse )",
  );
  expect(await ask("describe", "moltwire.bus.v1.Task")).toContain("string task_id = 2");
});

test.skipIf(!grpcurl)(`grpcurl submits a task and tails its trace${orWhy(grpcurl, "grpcurl")}`, async () => {
  await using world = await start();
  const call = (method: string, body: string) => {
    const host = new URL(world.url).host;
    return run(grpcurl!, ["-plaintext", "-H", bearer(world), "-d", body, host, method]);
  };
  await submitsAndTails(call);
});

test.each(["grpc", "grpcweb", "connect"])("buf curl submits a task and tails its trace over %s", async (protocol) => {
  await using world = await start();
  const call = (method: string, body: string) =>
    // The schema comes by reflection, which is a stream both ways and so needs HTTP/2.
    run(buf, [
      ...["curl", "--protocol", protocol, "--http2-prior-knowledge", "--header", bearer(world)],
      ...["--data", body, `${world.url}/${method}`],
    ]);
  await submitsAndTails(call);
});

test.skipIf(!curl)(`plain curl submits a task in JSON${orWhy(curl, "curl")}`, async () => {
  await using world = await start();
  const { task } = await submitByCurl(world);
  expect(task).toMatchObject({ state: "TASK_STATE_COMPLETED", output: { hello: "world" }, contractVersion: "1.0.0" });
});

test.skipIf(!curl)(`plain curl reads the status with a GET${orWhy(curl, "curl")}`, async () => {
  await using world = await start();
  const query = ["connect=v1", "encoding=json", "message={}"].flatMap((part) => ["--data-urlencode", part]);
  const { ended } = run(curl!, [
    "-sS",
    "-f",
    "--get",
    ...query,
    `${world.url}/moltwire.ops.v1.StatusService/GetStatus`,
  ]);
  expect(JSON.parse((await ended).stdout.toString())).toMatchObject({ healthy: true });
});

test.skipIf(!curl)(`plain curl tails a trace as a Connect stream of JSON${orWhy(curl, "curl")}`, async () => {
  await using world = await start();
  const body = enveloped(fromStart);
  const headers = ["content-type: application/connect+json", bearer(world)].flatMap((header) => ["-H", header]);
  const tail = run(curl!, ["-sS", "-N", ...headers, "--data-binary", "@-", `${world.url}/${tailTraces}`], body);
  await tail.until((stdout) => messagesIn(stdout).some((message) => "checkpoint" in message));
  const { task } = await submitByCurl(world);
  await tail.until((stdout) => stdout.includes("TRACE_EVENT_KIND_COMPLETED"));
  const events = messagesIn(tail.stdout()).flatMap(({ traceEvent }) => (traceEvent ? [traceEvent] : []));
  expect(new Set(events.map(({ traceId }) => traceId))).toEqual(new Set([task.traceId]));
  expect(events.map(({ kind }) => kind.replace("TRACE_EVENT_KIND_", ""))).toEqual([
    ...["SUBMITTED", "INPUT_CHECKED", "ROUTED", "POLICY_DECIDED", "ACCEPTED"],
    ...["DISPATCHED", "ANSWERED", "OUTPUT_CHECKED", "COMPLETED"],
  ]);
});

/** Begins to tail, submits meanwhile, and sees the steps of that task come. */
async function submitsAndTails(call: (method: string, body: string) => Running): Promise<void> {
  const tail = call(tailTraces, fromStart);
  await tail.until((stdout) => stdout.includes("checkpoint"));
  const { stdout } = await call(submitTask, order).ended;
  const { task } = JSON.parse(stdout.toString());
  expect(task).toMatchObject({ state: "TASK_STATE_COMPLETED", output: { hello: "world" } });
  await tail.until((seen) => seen.includes("TRACE_EVENT_KIND_COMPLETED"));
  const seen = tail.stdout().toString();
  expect(seen).toContain(task.taskId);
  expect(seen).toContain(task.traceId);
  expect(seen).toContain("TRACE_EVENT_KIND_DISPATCHED");
}

async function submitByCurl(world: World): Promise<{ task: { traceId: string } }> {
  const headers = ["content-type: application/json", bearer(world)].flatMap((header) => ["-H", header]);
  const { ended } = run(curl!, ["-sS", "-f", ...headers, "-d", order, `${world.url}/${submitTask}`]);
  return JSON.parse((await ended).stdout.toString());
}

const bearer = (world: World): string => `authorization: Bearer ${world.operatorKey}`;

/** A message of a Connect stream: a byte of flags, four of length, the message (https://connectrpc.com/docs/protocol#streaming-request). */
function enveloped(text: string): Buffer {
  const head = Buffer.alloc(5);
  head.writeUInt32BE(Buffer.byteLength(text), 1);
  return Buffer.concat([head, Buffer.from(text)]);
}

type Message = { checkpoint?: string; traceEvent?: { traceId: string; kind: string } };

/** The whole messages in the bytes of a Connect stream. */
function messagesIn(bytes: Buffer): Message[] {
  const messages: Message[] = [];
  for (let at = 0; at + 5 <= bytes.length; ) {
    const end = at + 5 + bytes.readUInt32BE(at + 1);
    if (end > bytes.length) break;
    messages.push(JSON.parse(bytes.toString("utf8", at + 5, end)));
    at = end;
  }
  return messages;
}

type Running = {
  /** What it has printed so far. */
  stdout(): Buffer;
  /** Waits until what it has printed is so; rejects when it ends before. */
  until(isSo: (stdout: Buffer) => boolean): Promise<void>;
  /** Rejects unless it exits with 0. */
  readonly ended: Promise<{ stdout: Buffer }>;
};

/** Runs a program, for 20 s at most. */
function run(program: string, args: readonly string[], input: Buffer = Buffer.alloc(0)): Running {
  const child = spawn(program, args, { stdio: ["pipe", "pipe", "pipe"], timeout: commandMs, killSignal: "SIGKILL" });
  running.add(child);
  child.stdin.on("error", () => {});
  child.stdin.end(input);
  let stdout = Buffer.alloc(0);
  let stderr = "";
  let heard = () => {};
  child.stdout.on("data", (chunk: Buffer) => {
    stdout = Buffer.concat([stdout, chunk]);
    heard();
  });
  child.stderr.on("data", (chunk: Buffer) => {
    stderr += chunk;
  });
  const ended = once(child, "close").then(([code]) => {
    running.delete(child);
    if (code !== 0) throw new Error(`${program} ended with ${code}: ${stderr}`);
    return { stdout };
  });
  ended.catch(() => {}); // a tail is killed
  return {
    stdout: () => stdout,
    ended,
    async until(isSo) {
      const { promise, resolve } = Promise.withResolvers<void>();
      heard = () => {
        if (isSo(stdout)) resolve();
      };
      heard();
      const tooSoon = ended.then(() => {
        if (!isSo(stdout)) throw new Error(`${program} ended, having printed ${stdout}`);
      });
      await Promise.race([promise, tooSoon]);
    },
  };
}

function findProgram(name: string, given: string | undefined, more: () => string | undefined): string | undefined {
  if (given) return given;
  const onPath = (process.env.PATH ?? "").split(delimiter).filter(Boolean);
  return firstWith(name, onPath) ?? firstWith(name, [more() ?? ""].filter(Boolean));
}

function firstWith(name: string, folders: readonly string[]): string | undefined {
  return folders.map((folder) => join(folder, name)).find(isExecutable);
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/** Where `go install` puts programs. */
function goBin(): string | undefined {
  try {
    const path = execFileSync("go", ["env", "GOPATH"], {
      encoding: "utf8",
      timeout: 120_000,
      stdio: ["ignore", "pipe", "ignore"],
    });
    return join(path.trim(), "bin");
  } catch {
    return undefined;
  }
}
