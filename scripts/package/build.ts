/**
 * Builds what is published into `dist`: JavaScript and declarations of server, command line, demo and client, the console, and the files that they read.
 * Node strips types of its own project only, not of what is installed. Part of `npm pack`.
 */
import { execFileSync } from "node:child_process";
import { cpSync, globSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const root = join(import.meta.dirname, "../..");
const dist = join(root, "dist");

/** Files that are read where they lie: migrations, policies, the reference, and what the demo searches. */
const read = ["src/**/*.{sql,cedar,cedarschema}", "gen/openapi.json", "proto/**/*.proto", "docs/**/*.md", "README.md"];

const run = (program: string, ...args: string[]) =>
  execFileSync(process.execPath, [join(root, program), ...args], {
    cwd: root,
    stdio: ["ignore", "inherit", "inherit"],
  });

rmSync(dist, { recursive: true, force: true });
run("node_modules/typescript/bin/tsc", "-p", "scripts/package");
for (const file of globSync(read, { cwd: root })) cpSync(join(root, file), join(dist, file));
cpSync(join(root, "package.json"), join(dist, "package.json"));
// By it the client finds what is Node's and what is the browser's.
const client = "clients/typescript/package.json";
writeFileSync(join(dist, client), readFileSync(join(root, client), "utf8").replaceAll('.ts"', '.js"'));
run("clients/console/build.ts", "--if-stale");
cpSync(join(root, "clients/console/dist"), join(dist, "clients/console/dist"), { recursive: true });
