/** What the figures were measured on. */
import { closeSync, fdatasyncSync, openSync, readFileSync, rmSync, statfsSync, writeSync } from "node:fs";
import { availableParallelism, cpus, loadavg } from "node:os";
import { join } from "node:path";

export type Machine = {
  readonly node: string;
  readonly processor: string;
  readonly processors: number;
  /** Others at work when it began: the load average of the last minute. */
  readonly loadBefore: number;
  /** Whether the data lay in memory, where fsync costs nothing. */
  readonly dataInMemory: boolean;
  /** The median time of writing 4 KiB and calling fdatasync, in microseconds. */
  readonly syncUs: number;
};

/** From statfs(2). */
const tmpfsMagic = 0x01021994;
const ticksPerSecond = 100;

export function lookAtMachine(folder: string): Machine {
  return {
    node: process.version,
    processor: cpus()[0]?.model ?? "unknown",
    processors: availableParallelism(),
    loadBefore: loadavg()[0]!,
    dataInMemory: statfsSync(folder).type === tmpfsMagic,
    syncUs: measureSync(join(folder, "sync")),
  };
}

function measureSync(file: string): number {
  const page = Buffer.alloc(4_096, 1);
  const descriptor = openSync(file, "w");
  const times = Array.from({ length: 200 }, () => {
    const startMs = performance.now();
    writeSync(descriptor, page, 0, page.length, 0);
    fdatasyncSync(descriptor);
    return (performance.now() - startMs) * 1_000;
  });
  closeSync(descriptor);
  rmSync(file);
  return times.toSorted((a, b) => a - b)[times.length / 2]!;
}

/** The processor time a process has had, in microseconds, in steps of 10,000 (proc(5), USER_HZ); undefined where there is no /proc. */
export function processorUs(pid: number): number | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, "utf8");
    const [user, system] = text
      .slice(text.lastIndexOf(")") + 2)
      .split(" ")
      .slice(11, 13)
      .map(Number);
    return ((user! + system!) * 1_000_000) / ticksPerSecond;
  } catch {
    return undefined;
  }
}
