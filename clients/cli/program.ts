/** A program of the server's, run in a process of its own and in this terminal. */
import { spawn } from "node:child_process";
import { constants } from "node:os";
import { extname, join } from "node:path";

const source = join(import.meta.dirname, "../../src");
/**
 * MiB, as in the script `start`. Node would let what is newly allocated take 128 MiB before it tidies up, three times what the server holds under
 * load; so it is 32.
 */
const nodeFlags = ["--max-semi-space-size=16"];
/** As there too: glibc would keep freed memory of each thread, and of large buffers, for itself: 70 MiB and more after load (mallopt(3)). */
const allocator = { MALLOC_ARENA_MAX: "2", MALLOC_MMAP_THRESHOLD_: "131072" };

/**
 * Runs a program of `src`, such as "main", with these arguments and waits for its end. Returns its exit code, or 128 and the signal's number.
 *
 * A Ctrl-C reaches it by itself, being of the same terminal; it only must not end this process first. SIGTERM is passed on.
 */
export async function runProgram(name: string, args: readonly string[]): Promise<number> {
  const child = spawn(
    process.execPath,
    [...nodeFlags, join(source, `${name}${extname(import.meta.filename)}`), ...args],
    {
      env: { ...allocator, ...process.env },
      stdio: "inherit",
    },
  );
  const stay = () => {};
  const pass = (signal: NodeJS.Signals) => void child.kill(signal);
  process.on("SIGINT", stay).on("SIGTERM", pass).on("SIGHUP", pass);
  const { promise, resolve, reject } = Promise.withResolvers<number>();
  child.once("error", reject);
  child.once("exit", (code, signal) => resolve(code ?? 128 + constants.signals[signal!]));
  return promise;
}
