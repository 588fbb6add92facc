import { closeSync, existsSync, mkdtempSync, openSync, realpathSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import Database from "better-sqlite3";

/** A data file that this process alone may open, until it is released. */
export type DataFile = { readonly path: string; readonly release: () => void };

/**
 * Claims a data file, made readable by its owner only if it is new. Throws, in words for who started the program, if
 * another process has it or the folder is missing.
 *
 * A second process would believe in its own bells and batches. The lock is SQLite's own on an empty file beside the
 * data, so the kernel drops it however this process ends, and a copy left behind means nothing.
 */
export function claimFile(file: string): DataFile {
  const folder = dirname(file);
  if (!existsSync(folder)) throw new Error(`The data file ${file} cannot be opened: there is no folder ${folder}.`);
  // The real path, or two names of one file would have two locks.
  const path = existsSync(file) ? realpathSync(file) : join(realpathSync(folder), basename(file));
  for (const each of [path, `${path}-lock`]) createPrivate(each, file);
  const lock = new Database(`${path}-lock`, { timeout: 0 });
  try {
    lock.pragma("journal_mode = memory"); // nothing is ever written
    lock.exec("begin exclusive");
  } catch (cause) {
    lock.close();
    if (!(cause instanceof Database.SqliteError && cause.code.startsWith("SQLITE_BUSY"))) throw cause;
    throw new Error(
      `The data file ${path} is in use by another process. Only one Moltwire may have it: stop the other one ` +
        `("fuser ${path}" shows its process id), or start this one with another data file.`,
      { cause },
    );
  }
  return { path, release: () => void lock.close() };
}

/**
 * Makes a missing file, readable by its owner only, and never opens one that is there: POSIX drops all locks a process
 * has on a file when it closes any descriptor of it. (So nothing else in this process may open these files either.)
 */
function createPrivate(path: string, file: string): void {
  try {
    closeSync(openSync(path, "wx", 0o600));
  } catch (cause) {
    if (isThere(cause) && statSync(path).isFile()) return;
    const reason = isThere(cause) ? "it is no file" : cause instanceof Error ? cause.message : String(cause);
    throw new Error(`The data file ${file} cannot be opened: ${reason}.`, { cause });
  }
}

const isThere = (error: unknown): boolean => error instanceof Error && "code" in error && error.code === "EEXIST";

/** A data file in a private folder, which is gone after release or, failing that, when the process exits. */
export function temporaryFile(): DataFile {
  const folder = mkdtempSync(join(tmpdir(), "moltwire-"));
  if (temporaryFolders.size === 0) process.once("exit", removeTemporaryFolders);
  temporaryFolders.add(folder);
  return {
    path: join(folder, "data.db"),
    release() {
      temporaryFolders.delete(folder);
      if (temporaryFolders.size === 0) process.off("exit", removeTemporaryFolders);
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

const temporaryFolders = new Set<string>();

function removeTemporaryFolders(): void {
  for (const folder of temporaryFolders) rmSync(folder, { recursive: true, force: true });
}
