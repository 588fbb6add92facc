/** What the generators of all languages share: how tools are kept and run, and what the protos say. */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { promisify } from "node:util";
import type { DescService } from "@bufbuild/protobuf";
import { type Reason, reasonsOf } from "../../clients/typescript/generate-errors.ts";
import { PeerGatewayService } from "../../gen/moltwire/federation/v1/peer_gateway_service_pb.ts";
import { services as all } from "../../src/services.ts";

/** The folder of the repository. */
export const root = join(import.meta.dirname, "../..");

/** What could not be had, and why. */
export type Missing = { readonly missing: string };

const execute = promisify(execFile);
const maxMs = 300_000;

/** Runs a program to its end, in the repository's folder unless `cwd` says another; gives what it printed. Rejects with what it said on standard error. */
export async function run(
  program: string,
  args: readonly string[],
  { cwd = root, env = {} }: { readonly cwd?: string; readonly env?: Record<string, string> } = {},
): Promise<string> {
  const options = { cwd, timeout: maxMs, maxBuffer: 64 << 20, env: { ...process.env, ...env } };
  return (await execute(program, [...args], options)).stdout;
}

/**
 * A folder of tools, made once a machine for these versions, in the folder for temporary files. One that was begun and not finished is made anew.
 */
export async function toolFolder(
  name: string,
  versions: string,
  make: (folder: string) => Promise<void>,
): Promise<string> {
  const digest = createHash("sha256").update(versions).digest("hex").slice(0, 12);
  const folder = join(tmpdir(), `moltwire-${name}-${digest}`);
  const ready = join(folder, "ready");
  if (existsSync(ready)) return folder;
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  await make(folder);
  writeFileSync(ready, "");
  return folder;
}

/** Runs `buf generate` for a client, with the plugins of `bin`; what it writes goes below `out`. */
export const bufGenerate = (client: string, bin: string, out: string): Promise<string> =>
  run(join(root, "node_modules/.bin/buf"), ["generate", "--template", `clients/${client}/buf.gen.yaml`, "-o", out], {
    env: { PATH: `${bin}${delimiter}${process.env.PATH}` },
  });

/** What a client can call, by name. What servers call of each other, with a signature, is not among it. */
export const services: readonly DescService[] = all
  .filter((service) => service !== PeerGatewayService)
  .toSorted((a, b) => (a.name < b.name ? -1 : 1));

/** `BusService` → `Bus`. */
export const areaOf = ({ name }: DescService): string => name.replace(/Service$/, "");

/** The reasons for which calls fail. */
export const reasons: readonly Reason[] = reasonsOf(
  readFileSync(join(root, "proto/moltwire/api/v1/error_reason.proto"), "utf8"),
);
