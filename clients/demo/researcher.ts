/**
 * The demo's researcher: an HTTP server that the bus hands tasks to. It answers the JSON of
 * moltwire.agent.v1.AgentRuntimeService/HandleTask and uses nothing of Moltwire, as any agent could.
 *
 * node researcher.ts [PORT]: says where it listens on standard error, and ends when its standard input does.
 */
import { createServer, type IncomingMessage } from "node:http";
import type { AddressInfo } from "node:net";
import { json } from "node:stream/consumers";
import { tokensOf } from "./chat.ts";
import { readCorpus } from "./corpus.ts";
import { research } from "./research.ts";

/** What it counts its tokens for, as if it were a model. */
const model = "search-1";

const corpus = readCorpus(`${import.meta.dirname}/../..`);
const abilities = research(corpus);

/** Does one task. What it throws is answered as a Connect error; none of its errors gets better by a repetition. */
async function handleTask(request: IncomingMessage): Promise<unknown> {
  if (request.method !== "POST" || !request.url?.endsWith("/HandleTask")) throw new Error("only HandleTask is here");
  const { task } = (await json(request)) as { task: { capability: string; input: never } };
  const ability = abilities.get(task.capability);
  if (!ability) throw new Error(`the researcher cannot do ${task.capability}`);
  const output = ability(task.input);
  const inputTokens = tokensOf(JSON.stringify(task.input)).length;
  return { output, usage: { inputTokens, outputTokens: tokensOf(JSON.stringify(output)).length, model } };
}

const server = createServer((request, response) => {
  const answer = (status: number, body: unknown) =>
    response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
  handleTask(request).then(
    (body) => answer(200, body),
    (error: Error) => answer(400, { code: "failed_precondition", message: error.message }),
  );
});

server.listen(Number(process.argv[2] ?? 0), "127.0.0.1", () => {
  const { port } = server.address() as AddressInfo;
  console.error(
    `listening on http://127.0.0.1:${port} with ${corpus.passages.length} passages of ${corpus.files} files`,
  );
});
process.stdin.resume().once("end", () => process.exit(0));
