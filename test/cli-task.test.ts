import { once } from "node:events";
import { createServer } from "node:http";
import { type AddressInfo, connect, createServer as createTcpServer, type Socket } from "node:net";
import { json } from "node:stream/consumers";
import { fromJson } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { commandsAt } from "./cli-process.ts";
import { eventually, type Org, type OrgAgent, start, type World } from "./harness.ts";

let world: World;
let org: Org;
let caller: OrgAgent;
let commands: ReturnType<typeof commandsAt>;
let moltwire: ReturnType<typeof commandsAt>["moltwire"];

// An agent that answers a task when it is told to.
const waiting = new Map<string, () => void>();
const agent = createServer(async (request, response) => {
  const { task } = (await json(request)) as { task: { taskId: string; input: unknown } };
  waiting.set(task.taskId, () => {
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify({ output: { heard: task.input } }));
  });
});

beforeAll(async () => {
  agent.listen(0, "127.0.0.1");
  await once(agent, "listening");
  world = await start();
  org = await world.org();
  caller = await org.agent({ name: "caller" });
  const url = `http://127.0.0.1:${(agent.address() as AddressInfo).port}/task`;
  await org.agent({ name: "listener", capabilities: ["slow"], endpoint: { kind: { case: "http", value: { url } } } });
  await org.admin.contracts.registerContract({ contractId: "slow", version: "1.0.0" });
  commands = commandsAt(world.url, caller.key);
  ({ moltwire } = commands);
});

afterAll(async () => {
  await commands.stopAll();
  agent.closeAllConnections();
  agent.close();
  await world[Symbol.asyncDispose]();
});

/** A task that its agent has and has not answered. */
async function begun(text: string): Promise<string> {
  const { task } = await caller.as.bus.submitTask({
    contractId: "slow",
    input: fromJson(ValueSchema, text),
    returnImmediately: true,
  });
  await eventually(() => waiting.has(task!.taskId));
  return task!.taskId;
}

describe("moltwire task", () => {
  test("watch shows the steps as they happen, gives standard output the output alone, and ends with the task", async () => {
    const taskId = await begun("hello");
    const { says, ended } = commands.start("task", "watch", taskId);
    await says(/DISPATCHED .*listener/);
    waiting.get(taskId)!();
    const { code, stdout, stderr } = await ended;
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toEqual({ heard: "hello" });
    expect(stderr).toMatch(new RegExp(`^slow 1\\.0\\.0  ${taskId}\n +0 ms  SUBMITTED `));
    expect(stderr).toMatch(/\n +[\d.]+ m?s {2}COMPLETED .*\n✔ COMPLETED {2}slow 1\.0\.0 {2}in .*\n {2}task {3}tsk_/);
  });

  test("watch goes on over a lost connection, says so, and tells nothing twice", async () => {
    const taskId = await begun("across");
    await using between = await proxy(world.url);
    const cut = commandsAt(between.url, caller.key);
    const { says, ended } = cut.start("task", "watch", taskId, "--json");
    await says(/DISPATCHED/);
    between.close();
    await says(/connection lost: /);
    // What happens while it is not connected is what it could miss.
    waiting.get(taskId)!();
    await eventually(async () => (await caller.as.bus.getTask({ taskId })).task?.endTime);
    between.open();
    const { code, stdout, stderr } = await ended;
    expect(code).toBe(0);
    expect(stderr.match(/connection lost: /g)).toHaveLength(1);
    expect(stderr).toMatch(/connected again\n$/);
    const messages = stdout
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line));
    const { events } = await caller.as.traces.getTrace({ traceId: messages[0].task.traceId });
    expect(messages.slice(1, -1).map(({ step }) => step.cursor)).toEqual(events.map(({ cursor }) => cursor));
    expect(messages.at(-1).task.state).toBe("TASK_STATE_COMPLETED");
  });

  test("cancel ends a task, whose watch then ends with 1; list and get tell why", async () => {
    const taskId = await begun("in vain");
    const { says, ended } = commands.start("task", "watch", taskId);
    await says(/DISPATCHED/);
    const canceled = await moltwire(["task", "cancel", taskId, "--note", "no longer\u0007wanted"]);
    expect(canceled.stdout).toMatch(
      new RegExp(`^${taskId}  CANCELED\n  contract  slow 1\\.0\\.0\n  why       TASK_CANCELED: no longer wanted\n`),
    );
    expect(await ended).toMatchObject({ code: 1, stdout: "", stderr: expect.stringMatching(/✘ CANCELED {2}slow/) });
    const [list, got, again] = await Promise.all([
      moltwire(["task", "list", "--state", "canceled"]),
      moltwire(["task", "get", taskId]),
      moltwire(["task", "list", "--state", "rejected"]),
    ]);
    expect(list.stdout).toMatch(
      new RegExp(`^TASK {34}STATE .* WHY\n${taskId}  CANCELED +\\d+ s .* slow 1\\.0\\.0  TASK_CANCELED\n$`),
    );
    expect(got.stdout).toMatch(/\n {2}input {5}"in vain"\n$/);
    expect(again).toMatchObject({ code: 0, stdout: "", stderr: "no tasks match\n" });
  });

  test("submit takes agents by their names, and labels; trace list shows what came of it", async () => {
    const taskId = await begun("listed");
    waiting.get(taskId)!();
    const admin = commandsAt(world.url, org.adminKey);
    const submit = ["submit", "slow", '"by name"', "--as", "caller", "--target", "listener", "--label", "why=test=1"];
    const { stdout } = await admin.moltwire([...submit, "--no-wait"]);
    const { task } = await caller.as.bus.getTask({ taskId: stdout.trim() });
    expect(task).toMatchObject({ callerAgentId: caller.agentId, labels: { why: "test=1" } });
    const traces = await admin.moltwire(["trace", "list", "--agent", "caller", "--page-size", "1"]);
    expect(traces.stdout).toMatch(
      new RegExp(
        `^TRACE {29} *AGE +TOOK {2}TASKS {2}OPEN {2}CONTRACT\n${task!.traceId}  +\\d+ s +[\\d.]+ m?s      1     1  slow\n$`,
      ),
    );
    expect(traces.stderr).toMatch(/^more: moltwire trace list --agent caller --page-size 1 --page-token \S+$/m);
  });
});

/** A way to a server that can be closed, with every connection on it, and opened again. */
async function proxy(target: string) {
  const { hostname, port } = new URL(target);
  const sockets = new Set<Socket>();
  let isOpen = true;
  const listener = createTcpServer((socket) => {
    if (!isOpen) return void socket.destroy();
    const onward = connect(Number(port), hostname);
    for (const [one, other] of [
      [socket, onward],
      [onward, socket],
    ] as const) {
      sockets.add(one);
      one.on("error", () => other.destroy()).pipe(other);
      one.on("close", () => {
        sockets.delete(one);
        other.destroy();
      });
    }
  }).listen(0, "127.0.0.1");
  await once(listener, "listening");
  const close = () => {
    isOpen = false;
    for (const socket of sockets) socket.destroy();
  };
  return {
    url: `http://127.0.0.1:${(listener.address() as AddressInfo).port}`,
    close,
    open: () => void (isOpen = true),
    async [Symbol.asyncDispose]() {
      close();
      listener.close();
      await once(listener, "close");
    },
  };
}
