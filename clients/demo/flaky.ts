/**
 * The demo's flaky agents: an HTTP server that counts words, and fails when it is told to. Each path is an agent of its own: POST hands it a task
 * of the bus, PUT tells it how to behave from now on ("up", "down", or "held": it answers when it is told otherwise, or fails after 5 s), GET answers how many tasks came.
 *
 * node flaky.ts [PORT]: says where it listens on standard error, and ends when its standard input does.
 */
import { EventEmitter, once } from "node:events";
import { createServer, type IncomingMessage } from "node:http";
import type { AddressInfo } from "node:net";
import { json } from "node:stream/consumers";
import { tokensOf } from "./chat.ts";

/** How an agent behaves. */
export type Mode = "up" | "down" | "held";

const model = "count-1";
const modes: readonly unknown[] = ["up", "down", "held"] satisfies Mode[];
const maxAgents = 100;
const maxHeldMs = 5_000;

const agents = new Map<string, { mode: Mode; tasks: number }>();
const told = new EventEmitter().setMaxListeners(0);

function agentAt(path: string) {
  const agent = agents.get(path) ?? { mode: "up", tasks: 0 };
  if (agents.size >= maxAgents && !agents.has(path)) throw new Error(`there are no more than ${maxAgents} agents here`);
  agents.set(path, agent);
  return agent;
}

async function handle(request: IncomingMessage): Promise<unknown> {
  const agent = agentAt(request.url ?? "/");
  if (request.method === "GET") return { tasks: agent.tasks };
  const body = (await json(request)) as { mode: Mode; task: { input: { text: string } } };
  if (request.method === "PUT") {
    if (!modes.includes(body.mode)) throw new Error(`an agent is one of: ${modes.join(", ")}`);
    agent.mode = body.mode;
    told.emit("mode");
    return {};
  }
  agent.tasks += 1;
  while (agent.mode === "held") await once(told, "mode", { signal: AbortSignal.timeout(maxHeldMs) });
  if (agent.mode === "down") throw new Error("the agent is down");
  return count(body.task.input.text);
}

/** The words of a text, and what reading it and writing their number took. A text with the word "crash" is more than it bears. */
function count(text: string) {
  const words: string[] = text.match(/\p{L}+/gu) ?? [];
  if (words.includes("crash")) throw new Error("the agent crashed at the word crash");
  const output = { words: words.length };
  const usage = {
    inputTokens: tokensOf(text).length,
    outputTokens: tokensOf(JSON.stringify(output)).length,
    model,
  };
  return { output, usage };
}

const server = createServer((request, response) => {
  const answer = (status: number, body: unknown) =>
    response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
  handle(request).then(
    (body) => answer(200, body),
    (error: Error) => answer(500, { code: "internal", message: error.message }),
  );
});

server.listen(Number(process.argv[2] ?? 0), "127.0.0.1", () => {
  console.error(`listening on http://127.0.0.1:${(server.address() as AddressInfo).port}`);
});
process.stdin.resume().once("end", () => process.exit(0));
