/** `moltwire backup`: all data of a server, into a file. */
import { createHash } from "node:crypto";
import type { FileHandle } from "node:fs/promises";
import { toJson } from "@bufbuild/protobuf";
import { type BackupManifest, BackupManifestSchema, type BackupProgress } from "../../gen/moltwire/ops/v1/backup_pb.ts";
import { MaintenanceService } from "../../gen/moltwire/ops/v1/maintenance_service_pb.ts";
import { type Noun, run, withServer } from "./command.ts";
import { connectClients } from "./connect.ts";
import { exitCodes } from "./exit-codes.ts";
import { newFile } from "./new-file.ts";
import { note, plain, print, printJson } from "./output.ts";
import { explain, report } from "./problem.ts";
import { type ConnectionOptions, readSettings, type Settings } from "./settings.ts";
import { at, renderFacts } from "./table.ts";

type BackupCommandOptions = ConnectionOptions & { readonly force?: boolean };

/** Adds the command. */
export const backup: Noun = (program) => {
  const command = program
    .command("backup")
    .description("copy all data into a file while the server goes on; for the operator. `moltwire restore` reads it")
    .argument("<file>", "where to; it must not be there yet")
    .option("--force", "write over a file that is there, once the new one is whole");
  withServer(command, MaintenanceService.method.backup).action(run(perform));
};

async function perform(path: string, options: BackupCommandOptions): Promise<number> {
  const settings = readSettings(options, process.env);
  const tells = options.json !== true && process.stderr.isTTY === true;
  try {
    const manifest = await newFile(path, options.force, (file) => take(settings, file, tells));
    if (options.json) printJson(toJson(BackupManifestSchema, manifest));
    else for (const line of describe(path, manifest)) print(line);
    return exitCodes.ok;
  } catch (error) {
    const problem = explain(error, settings.url);
    if (problem.reason !== "FAILED_PRECONDITION" && !isFull(error)) throw error;
    return report({ ...problem, fix: "make room on the disk, then repeat the command" }, options.json);
  }
}

const isFull = (error: unknown): boolean => (error as NodeJS.ErrnoException).code === "ENOSPC";

/** Writes what comes. Throws unless it is what the manifest says. */
async function take(settings: Settings, file: FileHandle, tells: boolean): Promise<BackupManifest> {
  const hash = createHash("sha256");
  let manifest: BackupManifest | undefined;
  let bytes = 0n;
  for await (const { event } of connectClients(settings)(MaintenanceService).backup({})) {
    if (event.case === "progress" && tells) tell(event.value);
    if (event.case === "manifest") manifest = event.value;
    if (event.case !== "chunk") continue;
    hash.update(event.value);
    await file.writeFile(event.value);
    bytes += BigInt(event.value.length);
  }
  if (!manifest || bytes !== manifest.sizeBytes || hash.digest("hex") !== manifest.sha256)
    throw new Error("what came is not what the server has made: the connection lost or altered something");
  return manifest;
}

const tell = ({ rows, sizeBytes }: BackupProgress): void => note(`${rows} rows, ${size(sizeBytes)}`);

function describe(path: string, manifest: BackupManifest): string[] {
  return renderFacts(plain(path), [
    ["as of", at(manifest.time)],
    ["data", `${manifest.rows} rows, ${size(manifest.sizeBytes)}`],
    ["from", `${plain(manifest.engine)}, schema ${manifest.schemaVersion}, Moltwire ${plain(manifest.serverVersion)}`],
    ["sha256", plain(manifest.sha256)],
  ]);
}

function size(bytes: bigint): string {
  if (bytes < 1_048_576n) return `${(Number(bytes) / 1_024).toFixed(1)} KiB`;
  if (bytes < 1_073_741_824n) return `${(Number(bytes) / 1_048_576).toFixed(1)} MiB`;
  return `${(Number(bytes) / 1_073_741_824).toFixed(2)} GiB`;
}
