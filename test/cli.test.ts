import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { createServer as createHttp2Server } from "node:http2";
import { type AddressInfo, createServer as createTcpServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { json } from "node:stream/consumers";
import { create, createFileRegistry, type DescService, type MessageInitShape } from "@bufbuild/protobuf";
import {
  durationFromMs,
  FileDescriptorProtoSchema,
  FileDescriptorSetSchema,
  timestampFromMs,
} from "@bufbuild/protobuf/wkt";
import type { ConnectRouter } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { connectClients } from "../clients/cli/connect.ts";
import { checkDataFolder, checkNode } from "../clients/cli/doctor-local.ts";
import { waitMs } from "../clients/cli/follow.ts";
import { growingTree, renderTree } from "../clients/cli/trace-tree.ts";
import { Role } from "../gen/moltwire/api/v1/access_pb.ts";
import { AgentService } from "../gen/moltwire/bus/v1/agent_service_pb.ts";
import { BusService } from "../gen/moltwire/bus/v1/bus_service_pb.ts";
import { ContractService } from "../gen/moltwire/bus/v1/contract_service_pb.ts";
import { TaskState } from "../gen/moltwire/bus/v1/task_pb.ts";
import { TraceEventKind, TraceEventSchema } from "../gen/moltwire/bus/v1/trace_pb.ts";
import { ApiKeyService } from "../gen/moltwire/federation/v1/api_key_service_pb.ts";
import { OrganizationService } from "../gen/moltwire/federation/v1/organization_service_pb.ts";
import { type GetStatusResponseSchema, StatusService } from "../gen/moltwire/ops/v1/status_service_pb.ts";
import { reflectionRoutes } from "../src/rpc/reflection.ts";
import { services } from "../src/services.ts";
import { commandsIn, freePort } from "./cli-process.ts";

const folder = mkdtempSync(join(tmpdir(), "moltwire-cli-test-"));
const operatorKey = randomBytes(32).toString("base64url");
const { start, startServer, stopAll } = commandsIn(folder, operatorKey);

/** Makes an organisation with the contracts "echo" and "fails" and an agent for each, and answers a key of an agent that calls. */
async function furnish(url: string, agentUrl: string): Promise<{ key: string; orgKey: string }> {
  const operator = connectClients({ url, key: operatorKey });
  const { organization } = await operator(OrganizationService).createOrganization({ name: "shop" });
  const { orgId } = organization!;
  const { secret: orgKey } = await operator(ApiKeyService).createApiKey({ orgId, role: Role.ORG });
  const admin = connectClients({ url, key: orgKey });
  const inputSchema = {
    type: "object",
    properties: { question: { type: "string", minLength: 3 } },
    required: ["question"],
  };
  await admin(ContractService).registerContract({ contractId: "echo", version: "1.0.0", inputSchema });
  await admin(ContractService).registerContract({ contractId: "fails", version: "1.0.0" });
  await admin(ContractService).registerContract({ contractId: "slow", version: "1.0.0", repeatable: true });
  await admin(ContractService).registerContract({ contractId: "orphan", version: "1.0.0" });
  const agents = admin(AgentService);
  await agents.registerAgent({
    name: "parrot",
    capabilities: ["echo"],
    endpoint: { kind: { case: "echo", value: {} } },
  });
  await agents.registerAgent({
    name: "grouch",
    capabilities: ["fails", "slow"],
    endpoint: { kind: { case: "http", value: { url: agentUrl } } },
  });
  const { agent } = await agents.registerAgent({ name: "caller" });
  const { secret: key } = await admin(ApiKeyService).createApiKey({ agentId: agent!.agentId });
  return { key, orgKey };
}

// An agent that refuses a task, with a message that would clear the screen, or keeps it for ever.
const kept = new EventTarget();
const grouch = createServer(async (request, response) => {
  const { task } = (await json(request)) as { task: { contractId: string } };
  if (task.contractId === "slow") {
    kept.dispatchEvent(new Event("task"));
    return;
  }
  response.writeHead(400, { "content-type": "application/json" });
  response.end(JSON.stringify({ code: "failed_precondition", message: "not\u001b[2J today" }));
});
let server: Awaited<ReturnType<typeof startServer>>;
let key: string;
let orgKey: string;

beforeAll(async () => {
  grouch.listen(0, "127.0.0.1");
  await once(grouch, "listening");
  const host = `127.0.0.1:${(grouch.address() as AddressInfo).port}`;
  server = await startServer(0, ":memory:", { MOLTWIRE_EGRESS_ALLOW: host });
  ({ key, orgKey } = await furnish(server.url, `http://${host}`));
});

afterAll(async () => {
  grouch.close();
  await stopAll();
  rmSync(folder, { recursive: true, force: true });
});

/** Runs the command against the server as the calling agent. */
const moltwire = async (args: readonly string[], env: NodeJS.ProcessEnv = {}, stdin = "") => {
  const { child, ended } = start(args, { MOLTWIRE_URL: server.url, MOLTWIRE_API_KEY: key, ...env });
  child.stdin.end(stdin);
  return await ended;
};

const hello = '{"question":"hello"}';

describe("the command itself", () => {
  test("help tells the commands, the exit codes and why the key is no option", async () => {
    const { code, stdout } = await moltwire(["--help"]);
    expect(code).toBe(0);
    for (const word of ["server", "demo", "submit", "trace", "doctor"])
      expect(stdout).toMatch(new RegExp(`^  ${word} `, "m"));
    expect(stdout).toMatch(/^ {2}3 {2}no Moltwire server answered/m);
    expect(stdout).toContain("it would show in `ps`");
  });

  test.each([
    ["an unknown command", ["dance"]],
    ["no command", []],
    ["a key on the command line", ["submit", "--key", "mw_x", "echo"]],
    ["a missing argument", ["submit"]],
    ["a number that is none", ["trace", "tail", "--count", "some"]],
    ["a kind of step that is none", ["trace", "tail", "--kind", "danced"]],
    ["an id that is none", ["trace", "get", "42"]],
    ["a URL that is none", ["doctor", "--url", "localhost:1"]],
    ["a key file that is not there", ["doctor", "--key-file", "nowhere"]],
  ])("%s ends with 2 and says so on standard error", async (_, args) => {
    const { code, stdout, stderr } = await moltwire(args);
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
    expect(stderr).not.toBe("");
  });

  test("options of the server may stand before the command as well, and the version is not the contract's", async () => {
    const before = await moltwire(["--url", server.url, "submit", "echo", hello, "--version", "^1"], {
      MOLTWIRE_URL: "",
    });
    expect(before).toMatchObject({ code: 0, stdout: expect.stringContaining("hello") });
    expect((await moltwire(["--version"])).stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
  });

  test("its `server` runs a server with the flags it is given, and ends well on SIGTERM", async () => {
    const flags = ["server", "--host", "127.0.0.1", "--port", "0", "--data", ":memory:"];
    const { child, says, ended } = start(flags, { MOLTWIRE_OPERATOR_KEY: operatorKey }, undefined, 300_000);
    const [, url] = await says(/listening on (http:[^\s"',]+)/);
    expect((await moltwire(["doctor"], { MOLTWIRE_URL: url, MOLTWIRE_API_KEY: operatorKey })).code).toBe(0);
    child.kill("SIGTERM");
    expect((await ended).code).toBe(0);
  });
});

describe("submit", () => {
  test("prints the output alone on standard output, and what became of the task on standard error", async () => {
    const { code, stdout, stderr } = await moltwire(["submit", "echo", hello]);
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toEqual({ question: "hello" });
    expect(stderr).toMatch(
      /^✔ COMPLETED {2}echo 1\.0\.0 {2}in \d+ ms\n {2}task {3}tsk_\S+\n {2}trace {2}[0-9a-f]{32}\n$/,
    );
  });

  test("takes its input from a file or from standard input too", async () => {
    writeFileSync(join(folder, "input.json"), '{"question":"from a file"}');
    expect((await moltwire(["submit", "echo", "@input.json"])).stdout).toContain("from a file");
    expect((await moltwire(["submit", "echo", "-"], {}, '{"question":"from a pipe"}')).stdout).toContain("from a pipe");
  });

  test("does not touch standard input unless it is asked to", async () => {
    const { child, ended } = start(["submit", "echo", hello], { MOLTWIRE_URL: server.url, MOLTWIRE_API_KEY: key });
    expect((await ended).code).toBe(0);
    child.stdin.destroy();
  });

  test.each([
    ["no JSON", "{question: hello}", /^✘ USAGE {2}INPUT is not JSON/],
    ["a missing file", "@nowhere.json", /^✘ USAGE {2}the input cannot be read/],
    ["a number that JSON cannot carry", "1e999", /^✘ USAGE {2}INPUT cannot be sent/],
    ["what is nested without end", "[".repeat(50_000) + "]".repeat(50_000), /^✘ USAGE {2}INPUT /],
  ])("refuses %s with 2, without asking the server", async (_, input, says) => {
    const { code, stdout, stderr } = await moltwire(["submit", "echo", input], { MOLTWIRE_URL: "http://127.0.0.1:1" });
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
    expect(stderr).toMatch(says);
    expect(stderr).toMatch(/^ {2}fix {4}\S/m);
  });

  test("with --json answers the whole response", async () => {
    const { code, stdout } = await moltwire(["submit", "echo", hello, "--json"]);
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({
      task: { state: "TASK_STATE_COMPLETED", contractId: "echo", output: { question: "hello" } },
    });
  });

  test("--dry-run shows the way and changes nothing", async () => {
    const bus = connectClients({ url: server.url, key })(BusService);
    const newest = async () => (await bus.listTasks({ pageSize: 1 })).tasks[0]?.taskId;
    const before = await newest();
    const { code, stdout } = await moltwire(["submit", "echo", hello, "--dry-run"]);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^INPUT_CHECKED /m);
    expect(stdout).toMatch(/^ROUTED .*parrot/m);
    expect(await newest()).toBe(before);
  });

  test("--no-wait prints the task's id, by which its trace is found", async () => {
    const { code, stdout } = await moltwire(["submit", "echo", hello, "--no-wait"]);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^tsk_\S+\n$/);
    const trace = await moltwire(["trace", "get", stdout.trim()]);
    expect(trace.stdout).toContain(stdout.trim());
  });

  test("with the same --idempotency-key joins the first task", async () => {
    const once = await moltwire(["submit", "echo", hello, "--json", "--idempotency-key", "one"]);
    const again = await moltwire(["submit", "echo", hello, "--json", "--idempotency-key", "one"]);
    expect(again.code).toBe(0);
    expect(JSON.parse(again.stdout).task.taskId).toBe(JSON.parse(once.stdout).task.taskId);
    const other = await moltwire(["submit", "echo", '{"question":"other"}', "--idempotency-key", "one"]);
    expect(other).toMatchObject({ code: 4, stderr: expect.stringContaining("IDEMPOTENCY_KEY_REUSED") });
  });

  test("ends with 1 when the agent fails, with the reason, and lets no agent write to the terminal", async () => {
    const { code, stdout, stderr } = await moltwire(["submit", "fails"]);
    expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
    expect(stderr).toMatch(/^✘ FAILED {2}fails 1\.0\.0 .*\n {2}ADAPTER_ERROR: .*not \[2J today.*\n {2}fix {4}\S/);
    expect(stderr).not.toContain("\u001b");
  });

  test.each([
    ["an unknown contract", ["nothing"], "CONTRACT_NOT_FOUND", /^ {2}field {2}contract_id/m],
    [
      "an input that breaks the schema",
      ["echo", '{"question":""}'],
      "CONTRACT_VIOLATION",
      /^ {2}field {2}input\.question/m,
    ],
    [
      "a version that is not there",
      ["echo", hello, "--version", "^2"],
      "CONTRACT_VERSION_NOT_FOUND",
      /^ {2}field {2}contract_version/m,
    ],
    ["an agent that is not there", ["echo", hello, "--target", "agt_nobody"], "NOT_FOUND", /^ {2}fix {4}check the id/m],
    ["a contract that nobody can do", ["orphan"], "NO_CAPABLE_AGENT", /^ {2}fix {4}register an agent/m],
  ])("%s is refused with 4, its reason, a fix and a trace", async (_, args, reason, line) => {
    const { code, stdout, stderr } = await moltwire(["submit", ...args]);
    expect({ code, stdout }).toEqual({ code: 4, stdout: "" });
    expect(stderr.startsWith(`✘ ${reason}  `)).toBe(true);
    expect(stderr).toMatch(line);
    expect(stderr).toMatch(/^ {2}fix {4}\S/m);
    expect(stderr).toMatch(/^ {2}trace {2}[0-9a-f]{32}$/m);
  });

  test("Ctrl-C while waiting ends with 130 and tells how to join the task, which goes on", async () => {
    const taken = once(kept, "task");
    const { child, ended } = start(["submit", "slow"], { MOLTWIRE_URL: server.url, MOLTWIRE_API_KEY: key });
    await taken;
    child.kill("SIGINT");
    const { code, stderr } = await ended;
    expect(code).toBe(130);
    const again = /--idempotency-key (\S+)$/m.exec(stderr)![1]!;
    const bus = connectClients({ url: server.url, key })(BusService);
    const { tasks } = await bus.listTasks({ contractId: "slow" });
    expect(tasks.map(({ state }) => state)).toEqual([TaskState.WORKING]);
    const { taskId } = tasks[0]!;
    await bus.cancelTask({ taskId });
    const joined = await moltwire(["submit", "slow", "--idempotency-key", again]);
    expect(joined.code).toBe(1);
    expect(joined.stderr).toMatch(/^✘ CANCELED /);
    expect(joined.stderr).toContain(taskId);
  });

  test("a server that dies while it waits ends it with 3, and with how to join the task", async () => {
    const host = `127.0.0.1:${(grouch.address() as AddressInfo).port}`;
    const dying = await startServer(0, ":memory:", { MOLTWIRE_EGRESS_ALLOW: host });
    const made = await furnish(dying.url, `http://${host}`);
    const taken = once(kept, "task");
    const { ended } = start(["submit", "slow"], { MOLTWIRE_URL: dying.url, MOLTWIRE_API_KEY: made.key });
    await taken;
    dying.child.kill("SIGKILL");
    const { code, stderr } = await ended;
    expect(code).toBe(3);
    expect(stderr).toMatch(/^✘ UNREACHABLE .*\n {2}fix {4}.* add --idempotency-key cli-\S+$/m);
  });

  test("--timeout ends the wait, and the task with it", async () => {
    const { code, stderr } = await moltwire(["submit", "slow", "--timeout", "0.5"]);
    expect(code, stderr).toBe(1);
    expect(stderr).toMatch(/DEADLINE_EXCEEDED/);
  });

  test("a wrong key is refused with 4, and none at all too", async () => {
    const wrong = await moltwire(["submit", "echo", hello], { MOLTWIRE_API_KEY: `${key}x` });
    expect(wrong).toMatchObject({ code: 4, stderr: expect.stringMatching(/^✘ KEY_INVALID .*\n {2}fix/) });
    const none = await moltwire(["submit", "echo", hello], { MOLTWIRE_API_KEY: "" });
    expect(none).toMatchObject({ code: 4, stderr: expect.stringContaining("KEY_MISSING") });
  });

  test("a key may come from a file", async () => {
    writeFileSync(join(folder, "key"), `${key}\n`);
    const { code } = await moltwire(["submit", "echo", hello, "--key-file", "key"], { MOLTWIRE_API_KEY: "" });
    expect(code).toBe(0);
  });

  test("a server that is not there ends it with 3 and says how to start one, with --json as JSON", async () => {
    const url = `http://127.0.0.1:${await freePort()}`;
    const { code, stderr } = await moltwire(["submit", "echo", hello], { MOLTWIRE_URL: url });
    expect(code).toBe(3);
    expect(stderr).toBe(
      `✘ UNREACHABLE  no server listens at ${url}\n  fix    start one with \`moltwire server\`, or set --url or MOLTWIRE_URL\n`,
    );
    const program = await moltwire(["submit", "echo", hello, "--json"], { MOLTWIRE_URL: url });
    expect(program.code).toBe(3);
    expect(JSON.parse(program.stderr)).toMatchObject({ error: { reason: "UNREACHABLE" } });
  });

  test("something else that answers is told from a Moltwire server", async () => {
    const other = createServer((_, response) => response.writeHead(404).end("<html>")).listen(0, "127.0.0.1");
    await once(other, "listening");
    const url = `http://127.0.0.1:${(other.address() as AddressInfo).port}`;
    const { code, stderr } = await moltwire(["submit", "echo", hello], { MOLTWIRE_URL: url });
    other.close();
    expect(code).toBe(3);
    expect(stderr).toMatch(/^✘ NOT_MOLTWIRE /);
  });
});

describe("trace", () => {
  test("get draws the steps of a task with their times, and ends with 4 for a trace that is not there", async () => {
    const { stderr } = await moltwire(["submit", "echo", hello]);
    const id = /trace {2}(\S+)/.exec(stderr)![1]!;
    const { code, stdout } = await moltwire(["trace", "get", id]);
    expect(code).toBe(0);
    expect(stdout).toMatch(
      new RegExp(`^trace ${id}  1 task · \\d+ steps · \\d+ ms\n└─ echo  COMPLETED  \\d+ ms  \\S+ → parrot`),
    );
    expect(stdout).toMatch(/^ +\d+ ms {2}SUBMITTED /m);
    expect(stdout).toMatch(/^ +\d+ ms {2}COMPLETED /m);
    expect(Math.max(...stdout.split("\n").map((line) => line.length))).toBeLessThanOrEqual(110);
    const whole = JSON.parse((await moltwire(["trace", "get", id, "--json"])).stdout);
    expect(whole).toMatchObject({ trace: { traceId: id }, events: expect.any(Array) });
    const unknown = await moltwire(["trace", "get", "f".repeat(32)]);
    expect(unknown).toMatchObject({ code: 4, stdout: "", stderr: expect.stringMatching(/^✘ NOT_FOUND /) });
  });

  test("get ends quietly when its reader has gone", async () => {
    const { stderr } = await moltwire(["submit", "echo", hello]);
    const id = /trace {2}(\S+)/.exec(stderr)![1]!;
    const { child, ended } = start(["trace", "get", id], { MOLTWIRE_URL: server.url, MOLTWIRE_API_KEY: key });
    child.stdout.destroy();
    expect(await ended).toMatchObject({ code: 0, stderr: "" });
  });

  test("tail filters, counts, and as JSON gives one step a line", async () => {
    const { stderr } = await moltwire(["submit", "echo", hello]);
    const id = /trace {2}(\S+)/.exec(stderr)![1]!;
    const all = ["trace", "tail", "--from-start", "--trace", id];
    const text = await moltwire([...all, "--kind", "completed", "--kind", "accepted", "--count", "2"]);
    expect(text.code).toBe(0);
    expect(text.stdout).toMatch(
      /^\d\d:\d\d:\d\d\.\d{3} {2}[0-9a-f]{8} {2}ACCEPTED +echo .*\n\S+ {2}[0-9a-f]{8} {2}COMPLETED +echo .*\n$/,
    );
    const first = await moltwire([...all, "--count", "3", "--json"]);
    const lines = first.stdout.trimEnd().split("\n");
    expect(lines.map((line) => JSON.parse(line).traceId)).toEqual([id, id, id]);
    const rest = await moltwire([...all, "--json", "--count", "1", "--after", JSON.parse(lines[1]!).cursor]);
    expect(JSON.parse(rest.stdout)).toEqual(JSON.parse(lines[2]!));
  });

  test("tail fails at once when the server was never there", async () => {
    const { code } = await moltwire(["trace", "tail"], { MOLTWIRE_URL: `http://127.0.0.1:${await freePort()}` });
    expect(code).toBe(3);
  });

  test("tail goes on over a killed server, with nothing missed and nothing twice", async () => {
    const port = await freePort();
    const data = join(folder, "killed");
    const first = await startServer(port, data);
    const made = await furnish(first.url, "https://example.com/agent");
    const env = { MOLTWIRE_URL: first.url, MOLTWIRE_API_KEY: made.key };
    const tail = start(["trace", "tail", "--from-start", "--kind", "completed", "--json"], env);
    const submitted: string[] = [];
    const submit = async () => {
      const { stdout } = await moltwire(["submit", "echo", hello, "--json"], env);
      submitted.push(JSON.parse(stdout).task.taskId);
    };
    await submit();
    await tail.says(new RegExp(submitted[0]!));

    first.child.kill("SIGKILL");
    await first.ended;
    await tail.says(/connection lost: /);
    // What happens while it is not connected is what it could miss.
    tail.child.kill("SIGSTOP");
    const second = await startServer(port, data);
    await submit();
    await submit();
    tail.child.kill("SIGCONT");
    await tail.says(new RegExp(submitted[2]!));
    tail.child.kill("SIGINT");
    second.child.kill("SIGTERM");
    const { stdout, stderr, signal } = await tail.ended;
    expect(signal).toBe("SIGINT");
    expect(stderr).toContain("connected again");
    const seen = stdout
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line).taskId);
    expect(seen).toEqual(submitted);
  });

  test("the waits between tries grow to ten seconds and no further", () => {
    expect([0, 1, 2, 3].map((failures) => waitMs(failures, 1))).toEqual([250, 500, 1_000, 2_000]);
    expect(waitMs(1_000, 1)).toBe(10_000);
    expect(waitMs(0, 0)).toBe(125);
  });

  test("a tail puts each step as far in as its task lies under others, whatever traces come at once", () => {
    const event = (trace: string, spanId: string, parentSpanId: string, ms: number, kind: TraceEventKind) =>
      create(TraceEventSchema, {
        ...{ traceId: trace.repeat(32), spanId, parentSpanId, kind, contractId: spanId, message: "said" },
        time: timestampFromMs(ms),
        ...(kind === TraceEventKind.COMPLETED && { duration: durationFromMs(25) }),
      });
    const { SUBMITTED, FAILED, COMPLETED } = TraceEventKind;
    const draw = growingTree();
    const events = [
      event("1", "outer", "the caller's own", 0, SUBMITTED),
      event("1", "inner", "outer", 5, SUBMITTED),
      event("2", "other", "", 6, SUBMITTED),
      event("1", "within", "inner", 7, SUBMITTED),
      event("1", "within", "inner", 8, FAILED),
      event("1", "inner", "outer", 30, COMPLETED),
      event("2", "inner", "outer", 31, COMPLETED),
      event("1", "outer", "the caller's own", 40, COMPLETED),
    ];
    expect(events.map((each) => draw(each, 80))).toEqual([
      "00:00:00.000  11111111  SUBMITTED             outer  said",
      "00:00:00.005  11111111  ├─ SUBMITTED          inner  said",
      "00:00:00.006  22222222  SUBMITTED             other  said",
      "00:00:00.007  11111111  │  ├─ SUBMITTED       within  said",
      "00:00:00.008  11111111  │  │  FAILED          within  said",
      "00:00:00.030  11111111  │  COMPLETED          inner  said (25 ms)",
      "00:00:00.031  22222222  COMPLETED             inner  said (25 ms)",
      "00:00:00.040  11111111  COMPLETED             outer  said (25 ms)",
    ]);
  });

  test("the tree puts tasks under the tasks they came from, and draws every one even of a trace without a beginning", () => {
    const event = (spanId: string, parentSpanId: string, ms: number, kind: TraceEventKind, contractId: string) =>
      create(TraceEventSchema, {
        spanId,
        parentSpanId,
        kind,
        contractId,
        time: timestampFromMs(ms),
        callerAgentId: "agt_1",
      });
    const events = [
      event("a", "unknown", 1_000, TraceEventKind.SUBMITTED, "outer"),
      event("b", "a", 1_010, TraceEventKind.SUBMITTED, "inner"),
      event("b", "a", 1_030, TraceEventKind.FAILED, "inner"),
      event("a", "unknown", 1_040, TraceEventKind.COMPLETED, "outer"),
      event("c", "c", 1_050, TraceEventKind.SUBMITTED, "own parent"),
    ];
    expect(renderTree(events, { width: 80, names: new Map([["agt_1", "ann"]]) })).toEqual([
      "├─ outer  COMPLETED  40 ms  ann",
      "│  │     0 ms  SUBMITTED",
      "│  │    40 ms  COMPLETED",
      "│  └─ inner  FAILED  20 ms  ann",
      "│          10 ms  SUBMITTED",
      "│          30 ms  FAILED",
      "└─ own parent  OPEN  0 ms  ann",
      "        50 ms  SUBMITTED",
    ]);
  });
});

describe("doctor", () => {
  /** A server that says this of itself, and what doctor finds. */
  async function findingsOf(
    told: MessageInitShape<typeof GetStatusResponseSchema>,
    reflected: readonly DescService[] = [],
  ) {
    const routes = (router: ConnectRouter) => {
      router.service(StatusService, { getStatus: () => ({ version: "0.0.1", ...told }) });
      if (reflected.length > 0) reflectionRoutes(reflected)(router);
    };
    const other = createHttp2Server(connectNodeAdapter({ routes })).listen(0, "127.0.0.1");
    await once(other, "listening");
    const url = `http://127.0.0.1:${(other.address() as AddressInfo).port}`;
    const { stdout } = await moltwire(["doctor"], { MOLTWIRE_URL: url, MOLTWIRE_API_KEY: "" });
    other.close();
    return stdout;
  }

  test.each([
    [
      "that is not healthy",
      () => ({ healthy: false }),
      /^✘ server +version 0\.0\.1, not healthy\n +fix: read the server's log/m,
    ],
    [
      "whose clock is ahead",
      () => ({ healthy: true, time: timestampFromMs(Date.now() + 3_600_000) }),
      /^! clock +the server's is \d+ min \d+ s ahead\n +fix: set both machines' clocks/m,
    ],
    [
      "whose clock is behind",
      () => ({ healthy: true, time: timestampFromMs(Date.now() - 3_600_000) }),
      /^! clock +the server's is \d+ min \d+ s behind\n +fix: set both machines' clocks/m,
    ],
    ["without reflection", () => ({ healthy: true }), /^✘ schema +reflection failed: .*\n +fix: update the server/m],
  ])("finds a server %s, and says what to do", async (_, told, finding) => {
    expect(await findingsOf(told())).toMatch(finding);
  });

  test("warns of a server that has more than this client knows", async () => {
    const message = { name: "Ping" };
    const method = { name: "Ping", inputType: ".moltwire.new.v1.Ping", outputType: ".moltwire.new.v1.Ping" };
    const file = create(FileDescriptorProtoSchema, {
      ...{ name: "moltwire/new/v1/new.proto", package: "moltwire.new.v1", syntax: "proto3" },
      ...{ messageType: [message], service: [{ name: "NewService", method: [method] }] },
    });
    const newer = createFileRegistry(create(FileDescriptorSetSchema, { file: [file] })).getService(
      "moltwire.new.v1.NewService",
    )!;
    expect(await findingsOf({ healthy: true }, [...services, newer])).toMatch(
      /^! schema +this client lacks moltwire\.new\.v1\..*\n +fix: update this client/m,
    );
  });

  test("tells a port that takes connections and never answers from one where nobody listens", async () => {
    const silent = createTcpServer((socket) => void socket.on("error", () => {})).listen(0, "127.0.0.1");
    await once(silent, "listening");
    const url = `http://127.0.0.1:${(silent.address() as AddressInfo).port}`;
    const { code, stdout } = await moltwire(["doctor"], { MOLTWIRE_URL: url });
    silent.close();
    expect(code).toBe(1);
    for (const way of ["connect", "grpc"])
      expect(stdout).toMatch(new RegExp(`^✘ ${way} +.* takes connections and did not answer .*\n +fix: \\S`, "m"));
  });

  test("finds a Node that is too old, and looks at no folder for another machine's server", () => {
    expect(checkNode("v23.11.1")).toMatchObject({
      state: "fail",
      detail: expect.stringContaining("older than 24"),
      fix: expect.stringContaining("install Node 24"),
    });
    expect(checkNode("v24.0.0").state).toBe("ok");
    expect(checkDataFolder("https://moltwire.example.com", ".").state).toBe("skip");
  });

  test("finds nothing broken with a good server and key, and compares the whole schema", async () => {
    const { code, stdout } = await moltwire(["doctor"]);
    expect(code, stdout).toBe(0);
    for (const check of ["node", "data folder", "connect", "grpc", "server", "clock", "key", "schema"]) {
      expect(stdout).toMatch(new RegExp(`^✔ ${check} `, "m"));
    }
    expect(stdout).toMatch(/organisation shop$/m);
    expect(stdout).toMatch(/^✔ schema +all \d{3,} names of the schema agree$/m);
    expect(stdout).not.toContain("\u001b");
  });

  test("tells the operator about storage and encryption", async () => {
    const { code, stdout } = await moltwire(["doctor", "--json"], { MOLTWIRE_API_KEY: operatorKey });
    expect(code).toBe(0);
    const { findings } = JSON.parse(stdout) as { findings: { check: string; state: string; fix?: string }[] };
    expect(findings).toContainEqual(expect.objectContaining({ check: "storage", state: "ok" }));
    expect(findings).toContainEqual(
      expect.objectContaining({ check: "encryption", state: "warn", fix: expect.any(String) }),
    );
    for (const { state, fix } of findings) if (state === "warn" || state === "fail") expect(fix).toBeTruthy();
  });

  test("ends with 1 for a wrong key, and says that the server is well", async () => {
    const { code, stdout } = await moltwire(["doctor"], { MOLTWIRE_API_KEY: "mw_nonsense" });
    expect(code).toBe(1);
    expect(stdout).toMatch(/^✔ connect /m);
    expect(stdout).toMatch(/^✘ key +.*KEY_INVALID.*\n +fix: \S/m);
  });

  test("ends with 1 without a server, each way with its fix", async () => {
    const { code, stdout } = await moltwire(["doctor"], { MOLTWIRE_URL: `http://127.0.0.1:${await freePort()}` });
    expect(code).toBe(1);
    expect(stdout).toMatch(/^✘ connect +no server listens .*\n +fix: start one/m);
    expect(stdout).toMatch(/^✘ grpc +no server listens .*\n +fix: start one/m);
  });

  test("warns of a server with another schema, and names what is missing", async () => {
    const routes = (router: ConnectRouter) => {
      router.service(StatusService, { getStatus: () => ({ version: "0.0.1", healthy: true }) });
      reflectionRoutes([StatusService, BusService])(router);
    };
    const old = createHttp2Server(connectNodeAdapter({ routes })).listen(0, "127.0.0.1");
    await once(old, "listening");
    const env = { MOLTWIRE_URL: `http://127.0.0.1:${(old.address() as AddressInfo).port}`, MOLTWIRE_API_KEY: "" };
    const { stdout } = await moltwire(["doctor"], env);
    old.close();
    expect(stdout).toMatch(/^✔ grpc /m);
    expect(stdout).toMatch(/^! schema +the server lacks moltwire\.\S+, .* and \d+ more\n +fix: update the server/m);
    expect(stdout).toMatch(/^! key +none is set\n +fix: \S/m);
  });

  test("warns of a key file that others can read, and of a data folder that is a file", async () => {
    const file = join(folder, "open-key");
    writeFileSync(file, orgKey);
    chmodSync(file, 0o644);
    const { code, stdout } = await moltwire(["doctor", "--key-file", file], { MOLTWIRE_DATA: file });
    expect(code).toBe(1);
    expect(stdout).toMatch(/^! key file .*mode 644\)\n +fix: chmod 600 /m);
    expect(stdout).toMatch(/^✘ data folder +.* is a file\n +fix: \S/m);
  });
});
