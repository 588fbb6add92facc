/** A process's memory over time. */
import { readFileSync } from "node:fs";

/** MiB of resident memory at so many seconds. */
export type Reading = { readonly atS: number; readonly mib: number };

export type Watch = {
  /** The most since it was asked last. */
  peakMib(): number;
  nowMib(): number;
  /** All readings. */
  stop(): readonly Reading[];
};

const everyMs = 50;

/** Reads the resident set of a process 20 times a second: VmRSS of proc(5). */
export function watchMemory(pid: number): Watch {
  const readings: Reading[] = [];
  const startMs = performance.now();
  let peak = 0;
  const read = () => {
    const mib = residentMib(pid);
    peak = Math.max(peak, mib);
    readings.push({ atS: (performance.now() - startMs) / 1_000, mib });
    return mib;
  };
  read();
  const timer = setInterval(read, everyMs);
  return {
    peakMib() {
      read();
      const most = peak;
      peak = 0;
      return most;
    },
    nowMib: read,
    stop() {
      clearInterval(timer);
      return readings;
    },
  };
}

function residentMib(pid: number): number {
  const [, kib] = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8")) ?? [];
  return Number(kib ?? 0) / 1_024;
}

/** The curve in text: the most in each of `columns` parts of the time. */
export function chart(readings: readonly Reading[], columns = 100, rows = 10): string {
  const endS = readings.at(-1)?.atS ?? 0;
  const most = Array.from({ length: columns }, () => 0);
  for (const { atS, mib } of readings) {
    const column = Math.min(columns - 1, Math.floor((atS / Math.max(endS, 0.001)) * columns));
    most[column] = Math.max(most[column]!, mib);
  }
  const top = Math.max(...most);
  const lines = Array.from({ length: rows }, (_, row) => {
    const from = (top * (rows - row - 1)) / rows;
    return `${`${Math.round((top * (rows - row)) / rows)}`.padStart(5)} MiB |${most.map((mib) => (mib > from ? "#" : " ")).join("")}`;
  });
  return [
    ...lines,
    `          +${"-".repeat(columns)}`,
    `           0 s${`${endS.toFixed(0)} s`.padStart(columns - 3)}`,
  ].join("\n");
}
