/** An agent over HTTP that does as each task tells it, and writes down what it saw. */
import { once } from "node:events";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

/**
 * What the agent does with an attempt: answers at once or after `slowMs`; says that it failed, or that it did not begin; cuts the connection; or never
 * answers.
 */
export type Act = "answer" | "slow" | "fail" | "busy" | "drop" | "stall";

/** The input of the tasks it takes: what to do at the first attempt, the second, …; the last one stands for the rest. */
export type Orders = { readonly n: number; readonly plan: readonly Act[]; readonly slowMs: number };

/** `lost`: the connection ended before the answer was out. */
export type Outcome = "open" | "answered" | "failed" | "not begun" | "lost";

/** One task as it came in. */
export type Arrival = { readonly contractId: string; readonly attempt: number; outcome: Outcome };

export type Agent = {
  readonly url: string;
  /** All that came in, by task id, in order. */
  readonly arrivals: ReadonlyMap<string, readonly Arrival[]>;
  close(): Promise<void>;
};

type Call = { task: { taskId: string; attempt: number; contractId: string; input: Orders } };

/** Starts it on a free port of the loopback interface. */
export async function startAgent(): Promise<Agent> {
  const arrivals = new Map<string, Arrival[]>();
  const server = createServer({ keepAliveTimeout: 60_000 }, async (request, response) => {
    const { task } = JSON.parse(await bodyOf(request)) as Call;
    const arrival: Arrival = { contractId: task.contractId, attempt: task.attempt, outcome: "open" };
    arrivals.set(task.taskId, [...(arrivals.get(task.taskId) ?? []), arrival]);
    response.on("close", () => {
      if (arrival.outcome === "open") arrival.outcome = "lost";
    });
    act(task, arrival, response);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`,
    arrivals,
    async close() {
      server.close();
      server.closeAllConnections();
      await once(server, "close");
    },
  };
}

async function bodyOf(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks).toString();
}

function act({ attempt, input }: Call["task"], arrival: Arrival, response: ServerResponse): void {
  const { plan, slowMs, n } = input;
  const answer = (outcome: Outcome, status: number, body: object) => {
    if (response.destroyed) return;
    response.on("finish", () => {
      arrival.outcome = outcome;
    });
    response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
  };
  const succeed = () => answer("answered", 200, { output: { n } });
  const order = plan[Math.min(attempt, plan.length) - 1];
  if (order === "answer") succeed();
  if (order === "slow") setTimeout(succeed, slowMs);
  if (order === "fail") answer("failed", 500, { code: "internal", message: "told to fail" });
  if (order === "busy") answer("not begun", 503, { code: "unavailable", message: "told to be busy" });
  if (order === "drop") response.destroy();
}
