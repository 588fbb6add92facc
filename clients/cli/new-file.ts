/** A file that a command makes: there is none before, and none unless it is whole. */
import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { type FileHandle, open, rename, rm } from "node:fs/promises";
import { UsageError } from "./settings.ts";

/**
 * Makes the file at `path` of what `write` writes, once that has ended and is on the disk; when it throws, nothing is left. A file that is there is a
 * {@link UsageError} unless `force`: then it is replaced.
 */
export async function newFile<T>(
  path: string,
  force: boolean | undefined,
  write: (file: FileHandle) => Promise<T>,
): Promise<T> {
  if (existsSync(path) && !force)
    throw new UsageError(`${path} is there already`, "choose another name, or --force to write over it");
  // Its own, also where another command makes a file of the same name.
  const part = `${path}.${randomBytes(4).toString("hex")}.part`;
  const file = await open(part, "wx", 0o600).catch((error: Error) => {
    throw new UsageError(
      `${part} cannot be written: ${error.message}`,
      "choose a folder that there is, and that you may write in",
    );
  });
  try {
    const written = await write(file);
    await file.sync();
    await rename(part, path);
    return written;
  } finally {
    await file.close();
    await rm(part, { force: true });
  }
}
