/** Agents as anybody may write them: a plain node:http server behind an endpoint. */
import { once } from "node:events";
import { createServer, type IncomingHttpHeaders, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import type { TaskAssignmentJson } from "../../gen/moltwire/agent/v1/agent_runtime_pb.ts";

/** One call as the agent sees it. */
export type Call = {
  readonly path: string;
  readonly headers: IncomingHttpHeaders;
  readonly task: TaskAssignmentJson;
  readonly response: ServerResponse;
  /** When the body had come, in milliseconds of the machine's clock. */
  readonly atMs: number;
  /** Fulfilled when the caller hangs up before it was answered. */
  readonly hungUp: Promise<void>;
  answer(body: unknown, status?: number): void;
};

/** Gives the body to answer as JSON, or undefined when it has answered, or will answer, by itself. */
export type Handle = (call: Call) => unknown;

export type HttpAgent = AsyncDisposable & {
  readonly url: string;
  readonly calls: readonly Call[];
  /** The n-th call, from 0, once it has come. */
  call(n: number): Promise<Call>;
  /** What it does with the calls to come. */
  handle: Handle;
};

/** Answers with its input. */
export const echo: Handle = ({ task }) => ({ output: task.input });
/** Takes the task and says nothing. */
export const silent: Handle = () => undefined;
/** A Connect error. */
export const failing =
  (code: string, status = 500, message = "as told"): Handle =>
  ({ answer }) =>
    answer({ code, message }, status);

export async function httpAgent(handle: Handle = echo): Promise<HttpAgent> {
  const calls: Call[] = [];
  const waiting = new Map<number, (call: Call) => void>();
  const server = createServer(async (request, response) => {
    const gone = Promise.withResolvers<void>();
    response.on("close", () => {
      if (!response.writableFinished) gone.resolve();
    });
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const { task } = JSON.parse(Buffer.concat(chunks).toString()) as { task: TaskAssignmentJson };
    const answer = (body: unknown, status = 200) => {
      response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
    };
    const call = {
      path: request.url ?? "",
      headers: request.headers,
      task,
      response,
      atMs: Date.now(),
      hungUp: gone.promise,
      answer,
    };
    calls.push(call);
    waiting.get(calls.length - 1)?.(call);
    const body = await agent.handle(call);
    if (body !== undefined) answer(body);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const agent: HttpAgent = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    calls,
    handle,
    call: (n) => {
      const { promise, resolve } = Promise.withResolvers<Call>();
      const there = calls[n];
      if (there) resolve(there);
      else waiting.set(n, resolve);
      return promise;
    },
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
  return agent;
}

/** An address where nobody listens: the port was free a moment ago. */
export async function deadUrl(): Promise<string> {
  await using agent = await httpAgent();
  return agent.url;
}
