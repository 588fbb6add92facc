import { execFile, execFileSync, spawnSync } from "node:child_process";
import { globSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { rolldown } from "rolldown";
import { afterAll, beforeAll, expect, test } from "vitest";
import { build } from "../clients/typescript/build.ts";
import { echoEndpoint } from "./bus-fixtures/bus.ts";
import { wireTo } from "./client-fixtures/proxy.ts";
import { start } from "./harness.ts";

const repository = join(import.meta.dirname, "..");
const modules = join(repository, "node_modules");
const source = join(repository, "clients/typescript");
let folder: string;

/** A program's folder, with the packed package installed as npm would put it there. */
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "moltwire-test-"));
  build(join(folder, "built"));
  const packed = execFileSync("npm", ["pack", "--offline", "--json", join(folder, "built")], {
    cwd: folder,
    stdio: ["ignore", "pipe", "ignore"],
    env: { ...process.env, npm_config_cache: join(folder, "cache") },
  });
  const [tarball] = Object.values(JSON.parse(packed.toString())) as [{ filename: string }];
  const installed = join(folder, "node_modules/@moltwire/client");
  mkdirSync(installed, { recursive: true });
  execFileSync("tar", ["-xzf", join(folder, tarball.filename), "--strip-components=1", "-C", installed]);
  for (const scope of ["@bufbuild", "@connectrpc", "@types", "undici-types"])
    symlinkSync(join(modules, scope), join(folder, "node_modules", scope));
  writeFileSync(join(folder, "package.json"), JSON.stringify({ type: "module" }));
}, 120_000);
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Not waited for by blocking: the server is in this process. */
const run = (program: string, env: Record<string, string> = {}) => {
  const { PATH = "" } = process.env;
  return new Promise<{ status: unknown; stdout: string; stderr: string }>((resolve) =>
    execFile(process.execPath, [join(folder, program)], { env: { PATH, ...env }, timeout: 120_000 }, (error, ...out) =>
      resolve({ status: error ? (error.code ?? error.signal) : 0, stdout: out[0], stderr: out[1] }),
    ),
  );
};

test("the packed package runs from another folder, and knows the code that it was generated without rules of validation", async () => {
  await using world = await start();
  const { key } = await (await world.org()).agent();
  writeFileSync(
    join(folder, "program.js"),
    `import { connect, NotFound, InvalidRequest } from "@moltwire/client";
import { TextOperation } from "@moltwire/client/gen/moltwire/text/v1/text_service_pb";
import { testServer } from "@moltwire/client/testing";
const mw = connect();
await mw.memory.set("a", { b: [1, null] });
const { case: kind } = (await mw.text.process({ operation: TextOperation.WORD_COUNT, input: { case: "text", value: "one two" } })).result;
const wrong = await mw.queue.getJob({ jobId: "job_none" }).catch((error) => error);
const empty = await mw.memory.set("", 1).catch((error) => error);
console.log(JSON.stringify([await mw.memory.get("a"), kind, wrong instanceof NotFound, empty instanceof InvalidRequest, typeof testServer]));
`,
  );
  const { status, stdout, stderr } = await run("program.js", { MOLTWIRE_URL: world.url, MOLTWIRE_API_KEY: key });
  expect([status, stderr]).toEqual([0, ""]);
  expect(JSON.parse(stdout)).toEqual([{ b: [1, null] }, "wordCount", true, true, "function"]);
});

test("every example of the documentation compiles against the package's types, and prints what its comments say", async () => {
  await using world = await start();
  const org = await world.org();
  await org.admin.contracts.registerContract({
    contractId: "shout",
    version: "1.0.0",
    inputSchema: { type: "object", required: ["text"] },
  });
  await org.agent({ name: "echo", capabilities: ["shout"], endpoint: echoEndpoint });
  const examples = globSync("*.ts", { cwd: source }).flatMap((name) =>
    [...readFileSync(join(source, name), "utf8").matchAll(/ \* ```ts\n([\s\S]*?) \* ```/g)].map(([, lines]) => ({
      name,
      text: lines!.replace(/^ \* ?/gm, ""),
    })),
  );
  expect(examples.length).toBeGreaterThanOrEqual(8);
  const programs: { readonly file: string; readonly says: readonly string[] }[] = [];
  for (const [n, { text }] of examples.entries()) {
    const { agentId, key } = await org.agent();
    const given = `const [url, apiKey, agentId] = ${JSON.stringify([world.url, key, agentId])} as [string, string, string];`;
    const server = join(repository, "src/server.ts");
    const isTested = text.includes("moltwire/server");
    writeFileSync(
      join(folder, `example-${n}.ts`),
      `${text.replace('"moltwire/server"', isTested ? JSON.stringify("./server.js") : "")}\n${given}\nvoid [url, apiKey, agentId];\n`.replace(
        /^((?:import .*\n)+)([\s\S]*)\n(const \[url.*)$/m,
        (_, imports, body, values) => `${imports}${values}\n${body}`,
      ),
    );
    if (isTested) {
      writeFileSync(join(folder, "server.js"), `export { createServer } from ${JSON.stringify(server)};\n`);
      writeFileSync(
        join(folder, "server.d.ts"),
        `export declare function createServer(options: object): Promise<{ operatorKey?: string; listen(): Promise<string>; close(): Promise<void> }>;\n`,
      );
    }
    programs.push({
      file: `example-${n}`,
      says: [...text.matchAll(/console\.log\(.*; \/\/ (.*)$/gm)].map(([, said]) => said!),
    });
  }
  const settings = {
    compilerOptions: {
      target: "es2024",
      lib: ["es2024", "esnext.disposable", "dom", "dom.asynciterable"],
      module: "nodenext",
      types: [],
      strict: true,
      exactOptionalPropertyTypes: true,
      outDir: "out",
      skipLibCheck: true,
    },
    include: ["example-*.ts"],
  };
  writeFileSync(join(folder, "tsconfig.json"), JSON.stringify(settings));
  const compiled = spawnSync(join(modules, ".bin/tsc"), ["-p", folder], { encoding: "utf8" });
  expect([compiled.status, compiled.stdout]).toEqual([0, ""]);
  writeFileSync(
    join(folder, "out/server.js"),
    `export { createServer } from ${JSON.stringify(join(repository, "src/server.ts"))};\n`,
  );
  for (const { file, says } of programs) {
    const { status, stdout, stderr } = await run(`out/${file}.js`);
    expect([file, status, stderr]).toEqual([file, 0, ""]);
    for (const line of says) expect(stdout.split("\n")).toContain(line);
  }
}, 120_000);

/** The bytes of a program for browsers, and what it is made of. */
async function bundled(program: string) {
  const entry = join(folder, "entry.js");
  writeFileSync(entry, program);
  const warnings: string[] = [];
  const bundle = await rolldown({
    input: entry,
    platform: "browser",
    onLog: (_, { message }) => void warnings.push(message),
  });
  const { output } = await bundle.generate({ format: "esm", minify: true });
  await bundle.close();
  const code = output.map((chunk) => ("code" in chunk ? chunk.code : "")).join("");
  const files = output.flatMap((chunk) => ("moduleIds" in chunk ? chunk.moduleIds : []));
  return { code, files, warnings };
}

test("it bundles for browsers without anything of Node, and a page that uses one area loads that one", async () => {
  const all = await bundled(`import { connect } from "@moltwire/client"; console.log(connect({ url: "/" }));`);
  const memory = await bundled(
    `import { memoryOf, open } from "@moltwire/client"; console.log(memoryOf(open({ url: "/" })));`,
  );
  for (const { code, files, warnings } of [all, memory]) {
    expect(warnings).toEqual([]);
    expect(code).not.toMatch(/from\s*"node:|import\("node:|require\(/);
    expect(files.filter((file) => /connect-node|platform-node/.test(file))).toEqual([]);
  }
  console.info(`bundled: all ${all.code.length} bytes, memory alone ${memory.code.length}`);
  const servicesOf = (files: readonly string[]) => files.filter((file) => file.endsWith("_service_pb.js")).length;
  // Its own, and that of the batches in which calls go.
  expect([servicesOf(all.files) > 25, servicesOf(memory.files)]).toEqual([true, 2]);
  expect(memory.code.length).toBeLessThan(all.code.length * 0.6);
});

test("what is built for browsers calls by fetch: it reads, watches over a lost connection, and knows its errors", async () => {
  await using world = await start();
  await using wire = await wireTo(world.url);
  const { key } = await (await world.org()).agent();
  const { code } = await bundled(
    `import { KeyInvalid, memoryOf, open, Unreachable } from "@moltwire/client";
const memory = memoryOf(open({ url: ${JSON.stringify(wire.url)}, apiKey: ${JSON.stringify(key)} }));
await memory.set("a", 1);
const error = (apiKey, url) => memoryOf(open({ url, apiKey, maxAttempts: 2 })).get("a").catch((thrown) => thrown);
console.log(await memory.get("a"), await error("mw_wrong", ${JSON.stringify(wire.url)}) instanceof KeyInvalid, await error("", "http://127.0.0.1:1") instanceof Unreachable);
for await (const { revision } of memory.watch({ afterRevision: 0n })) {
  console.log(String(revision));
  if (revision === 3n) break;
  if (revision === 1n) {
    console.log("cut");
    setTimeout(() => memory.set("a", 2).then(() => memory.set("a", 3)), 500);
  }
}`,
  );
  writeFileSync(join(folder, "page.mjs"), code);
  const cutting = setInterval(() => wire.cut(), 1_000);
  const { status, stdout, stderr } = await run("page.mjs");
  clearInterval(cutting);
  expect([status, stderr]).toEqual([0, ""]);
  expect(stdout.trim().split("\n")).toEqual(["1 true true", "1", "cut", "2", "3"]);
});
