/**
 * The folder for temporary files of one test run: in memory where there is room. A PostgreSQL database is some nine hundred files, a server on SQLite four, and a run makes
 * hundreds of both; on a disk that alone took a quarter of its time.
 */
import { chmodSync, existsSync, mkdtempSync, readdirSync, rmSync, statfsSync } from "node:fs";
import { freemem, tmpdir } from "node:os";
import { join } from "node:path";

const inMemory = "/dev/shm";
/** Many times what a whole run has held at once. */
const roomBytes = 2 * 1024 ** 3;
const name = /^moltwire-run-(\d+)-/;

/** Workers and what they start inherit it. Does nothing where there is no room. */
export default function setup(): (() => void) | undefined {
  if (!hasRoom()) return undefined;
  removeAbandoned();
  const { TMPDIR } = process.env;
  process.env.MOLTWIRE_TEST_KEPT = tmpdir();
  const folder = mkdtempSync(join(inMemory, `moltwire-run-${process.pid}-`));
  chmodSync(folder, 0o711); // PostgreSQL may run as another user
  process.env.TMPDIR = folder;
  return () => {
    if (TMPDIR === undefined) delete process.env.TMPDIR;
    else process.env.TMPDIR = TMPDIR;
    rmSync(folder, { recursive: true, force: true });
  };
}

/** The folder for what the next run finds again. */
export const keptFolder = (): string => process.env.MOLTWIRE_TEST_KEPT ?? tmpdir();

function hasRoom(): boolean {
  // What is written in full is written to a disk.
  if (process.env.FULL || !existsSync(inMemory)) return false;
  const { bavail, bsize } = statfsSync(inMemory);
  return Math.min(bavail * bsize, freemem()) >= roomBytes;
}

/** Those of runs that were killed. */
function removeAbandoned(): void {
  for (const folder of readdirSync(inMemory)) {
    const [, pid] = name.exec(folder) ?? [];
    if (pid && !existsSync(`/proc/${pid}`)) rmSync(join(inMemory, folder), { recursive: true, force: true });
  }
}
