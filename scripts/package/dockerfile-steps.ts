/**
 * Runs the steps of deploy/Dockerfile in a folder instead of in containers, for where there is no Docker: `node scripts/package/dockerfile-steps.ts FOLDER`. Each
 * stage is a folder that its absolute paths lie in. It shows that the steps fit together; it says nothing of the base image, of users, or of what a container may not do.
 */
import { execFileSync } from "node:child_process";
import { chmodSync, cpSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";

const root = join(import.meta.dirname, "../..");
/** The folders of the Dockerfile at the root of its stages. */
const top = /(?<![\w.])\/(app|build|data|out)\b/g;

/** What a container would be started with. */
export type Image = {
  readonly folder: string;
  readonly env: Readonly<Record<string, string>>;
  /** As CMD and HEALTHCHECK say, to be run in `folder`. */
  readonly command: readonly string[];
  readonly healthcheck: readonly string[];
};

type Stage = { readonly folder: string; workdir: string; readonly env: Record<string, string> };

/** Runs them all, and answers what the last stage is. `tell` hears of each step before it runs. */
export function runSteps(folder: string, tell: (step: string) => void): Image {
  const stages = new Map<string, Stage>();
  let stage: Stage | undefined;
  let command: string[] = [];
  let healthcheck: string[] = [];
  const noOwners = standIn(folder);
  for (const [instruction, rest] of instructions()) {
    tell(`${instruction} ${rest}`);
    if (instruction === "FROM") {
      const [, name = "last"] = /^node:24-slim(?: AS (\w+))?$/.exec(rest) ?? fail(rest);
      stage = { folder: join(folder, name), workdir: join(folder, name), env: {} };
      mkdirSync(stage.folder);
      stages.set(name, stage);
      continue;
    }
    const { folder: at, env } = stage ?? fail(`${instruction} before FROM`);
    const inside = (text: string) => text.replaceAll(top, (path) => at + path);
    if (instruction === "WORKDIR") mkdirSync((stage!.workdir = inside(rest)), { recursive: true });
    else if (instruction === "ENV")
      for (const [, name, text] of rest.matchAll(/(\w+)=(\S+)/g)) env[name!] = inside(text!);
    else if (instruction === "COPY") copy(rest, stage!, stages, inside);
    else if (instruction === "RUN") {
      const PATH = `${noOwners}:${dirname(process.execPath)}:${process.env.PATH}`;
      execFileSync("sh", ["-ec", inside(rest)], {
        cwd: stage!.workdir,
        stdio: ["ignore", "ignore", "inherit"],
        env: { ...process.env, ...env, PATH },
      });
    } else if (instruction === "CMD") command = JSON.parse(rest);
    else if (instruction === "HEALTHCHECK") healthcheck = JSON.parse(rest.slice(rest.indexOf("CMD ") + 4));
    else if (!["VOLUME", "EXPOSE", "USER", "STOPSIGNAL"].includes(instruction)) fail(instruction);
  }
  const { workdir, env } = stage ?? fail("there is no stage");
  return { folder: workdir, env, command, healthcheck };
}

const instructions = (): [string, string][] =>
  readFileSync(join(root, "deploy/Dockerfile"), "utf8")
    .split("\n")
    .filter((line) => line !== "" && !line.startsWith("#"))
    .map((line) => [line.slice(0, line.indexOf(" ")), line.slice(line.indexOf(" ") + 1)]);

/** COPY of the project, as .gitignore leaves it, or of what another stage has made. */
function copy(rest: string, stage: Stage, stages: ReadonlyMap<string, Stage>, inside: (text: string) => string): void {
  const [, from, source, target] = /^--from=(\w+) (\S+) (\S+)$/.exec(rest) ?? [];
  if (from !== undefined) {
    const other = stages.get(from) ?? fail(rest);
    cpSync(
      source!.replaceAll(top, (path) => other.folder + path),
      inside(target!),
      { recursive: true },
    );
    return;
  }
  if (rest !== ". .") fail(rest);
  const listed = execFileSync("git", ["ls-files", "-z", "--cached", "--others", "--exclude-standard"], { cwd: root });
  for (const file of listed
    .toString()
    .split("\0")
    .filter((name) => name !== "" && name !== "node_modules"))
    cpSync(join(root, file), join(stage.workdir, file));
}

/** A `chown` that does nothing, since there is no other user here; for PATH. */
function standIn(folder: string): string {
  const bin = join(folder, "bin");
  mkdirSync(bin, { recursive: true });
  writeFileSync(join(bin, "chown"), "#!/bin/sh\n");
  chmodSync(join(bin, "chown"), 0o755);
  return bin;
}

function fail(what: string): never {
  throw new Error(`deploy/Dockerfile: this script does not know ${what}`);
}

if (import.meta.main) {
  const [folder] = process.argv.slice(2);
  if (!folder) throw new Error("give a folder that is empty");
  console.log(JSON.stringify(runSteps(folder, console.error)));
}
