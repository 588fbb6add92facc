/** What passes. Times are compared with times of the same run only. */
import type { Tally } from "./attack.ts";

/** The part of the promise that memory has, in MiB. */
export const maxGrowthMib = 100;
/** The part of the promise that others' time has. */
export const maxRatio = 2;

/** The rule in words, for the report. */
export const rule = [
  "An attack passes if the server lives on, logs no error and answers nothing `internal`; if every attempt ends as its kind says;",
  "a schema also if the server's event loop stood still for at most 100 ms, by its own metrics, at registering it and at checking a task's input by it, in the best of 5 tries;",
  `if the server's memory stays within +${maxGrowthMib} MiB of the most that valid calls made of it, small ones and ones of 256 KiB, as fast as they are answered; if the neighbour's calls all succeed;`,
  `and if the neighbour's p99 during the attack is at most ${maxRatio} × the greater of its p99 before and its p99 while something harmless kept the`,
  "two processors as busy (valid: as many valid calls to the same server; polite: the attack's own calls by who takes the answers; bare: the same attack on a bare node server). An attack that misses",
  "by its p99 only is tried twice more, since others use the processors too, and has failed if it misses three times. A shortened run has too few of the neighbour's calls for that: it tells the p99 and does not judge it.",
].join("\n");

/** The 99th percentile of times; 0 of none. */
export function p99(times: readonly number[]): number {
  const sorted = times.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * 0.99))] ?? 0;
}

/** The ends of attempts that are not right. */
export const wrongEnds = (tally: Tally, right: RegExp): string[] =>
  Object.entries(tally).flatMap(([end, count]) => (right.test(end) ? [] : [`${count} × ${end}`]));

/** Calls that the server itself counts as failed by its own fault, by the text of `/metrics`. */
export function ownFaults(metrics: string): string[] {
  const counts = [...metrics.matchAll(/^moltwire_rpc_seconds_count\{(.*)\} (\d+)/gm)];
  return counts.flatMap(([, labels, count]) =>
    /code="(internal|unknown|data_loss)"/.test(labels ?? "") && Number(count) > 0 ? [`${count} × ${labels}`] : [],
  );
}
