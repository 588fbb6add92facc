/**
 * Packs what people install, into a folder: `npm run packages -- FOLDER`. The server with its command and the client for TypeScript for npm, a wheel for Python, the module for
 * Go. What this machine lacks the tools for is told and left out. The code of the protos is generated apart from the sources, which stay as they are.
 */
import { execFileSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { build as buildClient } from "../../clients/typescript/build.ts";
import manifest from "../../package.json" with { type: "json" };
import { generateGo } from "../clients/go.ts";
import { generatePython } from "../clients/python.ts";
import { root, run } from "../clients/tools.ts";

const { version } = manifest;

/** Makes the folder if it is not there. Gives the languages that are left out, each with why. */
export async function packAll(folder: string): Promise<ReadonlyMap<string, string>> {
  const into = resolve(folder);
  mkdirSync(into, { recursive: true });
  const stage = mkdtempSync(join(tmpdir(), "moltwire-packages-"));
  try {
    const client = join(stage, "client");
    buildClient(client);
    for (const cwd of [root, client]) await run("npm", ["pack", "--pack-destination", into], { cwd });
    const left = [["python", await wheel(stage, into)] as const, ["go", await module(stage, into)] as const];
    return new Map(left.flatMap(([language, why]) => (why === undefined ? [] : [[language, why]])));
  } finally {
    rmSync(stage, { recursive: true, force: true });
  }
}

/** `moltwire-VERSION-py3-none-any.whl`. */
async function wheel(stage: string, into: string): Promise<string | undefined> {
  const source = copyOf("clients/python", stage);
  const made = await generatePython(stage);
  if ("missing" in made) return made.missing;
  const options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--wheel-dir", into];
  await run(join(made.bin, "python"), ["-m", "pip", "wheel", ...options, source]);
  return undefined;
}

/** `moltwire-go-VERSION.tgz`, which has the folder `moltwire-go`. */
async function module(stage: string, into: string): Promise<string | undefined> {
  const source = copyOf("clients/go", stage);
  const made = await generateGo(stage);
  if ("missing" in made) return made.missing;
  const renamed = ["--transform", "s,^[.],moltwire-go,"];
  await run("tar", ["-czf", join(into, `moltwire-go-${version}.tgz`), ...renamed, "-C", source, "."]);
  return undefined;
}

/** Copies what is written by hand of a folder, to where it would be below `stage`. */
function copyOf(folder: string, stage: string): string {
  const listed = ["ls-files", "-z", "--cached", "--others", "--exclude-standard", folder];
  for (const file of execFileSync("git", listed, { cwd: root }).toString().split("\0").filter(Boolean)) {
    mkdirSync(dirname(join(stage, file)), { recursive: true });
    cpSync(join(root, file), join(stage, file));
  }
  return join(stage, folder);
}

if (import.meta.main) {
  const [folder] = process.argv.slice(2);
  if (!folder) throw new Error("give a folder: npm run packages -- FOLDER");
  for (const why of (await packAll(folder)).values()) console.error(why);
}
