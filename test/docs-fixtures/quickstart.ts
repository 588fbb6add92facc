/** docs/quickstart.md as a script of the shell: its blocks as they stand, but for ports and the key. */
import { execFile } from "node:child_process";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { type Block, blocksOf } from "./pages.ts";

const all = blocksOf("docs/quickstart.md");

/** What is done before anything else: the server is started in one terminal, and made known in the other. */
export const [first, known] = all as [Block, Block, ...Block[]];
const rest = all.slice(2);

export type Place = {
  readonly folder: string;
  readonly url: string;
  readonly key: string;
  readonly env: NodeJS.ProcessEnv;
  /** Changes a block beyond that. */
  readonly change?: (body: string) => string;
  /** Languages whose part is left out. */
  readonly without?: readonly string[];
};

/** Saves what is to be saved, runs the rest as one shell does, and gives what it printed. Rejects with that if a command fails. */
export async function quickstart({ folder, url, key, env, change = (body) => body, without = [] }: Place) {
  const port = await freePort();
  const said = (body: string) =>
    change(
      body.replaceAll("http://127.0.0.1:6658", url).replaceAll("mw_…", key).replaceAll("9000", String(port)),
    ).replace(
      // A shell at a terminal goes on while the agent runs; this one waits until it takes connections, and ends it at its end.
      /^.*whisperer\.mjs &$/m,
      `$& trap "kill $!" EXIT; until curl -s -o /dev/null -d '{"task":{"input":{"text":""}}}' http://127.0.0.1:${port}/; do sleep 0.1; done`,
    );
  const script: string[] = ["exec 2>&1", said(known.body)];
  let language = "";
  for (const block of rest) {
    if (block.file) language = block.language;
    if (without.includes(language)) continue;
    if (block.file) writeFileSync(join(folder, block.file), said(block.body));
    else script.push(said(block.body));
  }
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  execFile("sh", ["-euc", script.join("\n")], { cwd: folder, env, maxBuffer: 16 << 20 }, (error, stdout, stderr) =>
    error ? reject(new Error(`${error.message}\n${stdout}\n${stderr}`)) : resolve(stdout),
  );
  return await promise;
}

async function freePort(): Promise<number> {
  const listener = createServer().listen(0, "127.0.0.1");
  await once(listener, "listening");
  const { port } = listener.address() as { port: number };
  listener.close();
  await once(listener, "close");
  return port;
}
