/** The rule of what a schedule does when it is looked at. Nothing here reads a clock, a table or chance. */
import { createHash } from "node:crypto";
import { Misfire } from "../../../gen/moltwire/queue/v1/schedule_pb.ts";
import type { Cron } from "./cron.ts";
import { limits } from "./limits.ts";
import { nextTime, timesAfter } from "./times.ts";
import type { Zone } from "./zone.ts";

/** What the rule looks at. */
export type Waiting = {
  readonly cron: Cron;
  readonly zone: Zone;
  readonly startMs: number | null;
  readonly endMs: number | null;
  readonly misfire: Misfire;
  readonly catchUpMs: number;
  /** Its first time that was not dealt with. */
  readonly nextMs: number;
};

/** What is to be done now. */
export type Due = {
  /** The nominal times that make a job, ascending. */
  readonly times: readonly number[];
  /** How many others there were. */
  readonly missed: number;
  /** The latest time dealt with, and the next one; undefined when there is none. */
  readonly seenMs: number;
  readonly nextMs: number | undefined;
};

/**
 * What becomes of the times up to now. One is on time within a minute. A schedule whose next time is ahead has nothing to do: also when the clock was set back, and
 * shows times again that it had.
 */
export function dueNow(waiting: Waiting, now: number): Due {
  const { cron, zone, nextMs, endMs, misfire, catchUpMs } = waiting;
  if (nextMs > now) return { times: [], missed: 0, seenMs: nextMs - 1, nextMs };
  const lastMs = Math.min(now, endMs ?? now);
  const reachMs = Math.max(catchUpMs, limits.graceMs);
  const sinceMs = Math.max(nextMs, now - reachMs);
  const old = sinceMs > nextMs ? countTimes(waiting, nextMs, sinceMs) : 0;
  const recent: number[] = [];
  for (const timeMs of timesAfter(cron, zone, sinceMs - 1)) {
    if (timeMs > lastMs) break;
    recent.push(timeMs);
  }
  const times = taken(recent, misfire, now);
  return {
    times,
    missed: old + recent.length - times.length,
    seenMs: recent.at(-1) ?? sinceMs,
    nextMs: nextTime(cron, zone, now, waiting),
  };
}

function taken(recent: readonly number[], misfire: Misfire, now: number): readonly number[] {
  if (misfire === Misfire.SKIP) return recent.filter((timeMs) => timeMs > now - limits.graceMs);
  return recent.slice(misfire === Misfire.ALL ? -limits.jobs : -1);
}

/** How many times there are from one on and before another, counted up to a bound. */
function countTimes({ cron, zone, endMs }: Waiting, fromMs: number, beforeMs: number): number {
  let count = 0;
  for (const timeMs of timesAfter(cron, zone, fromMs - 1)) {
    if (timeMs >= beforeMs || (endMs !== null && timeMs > endMs) || count === limits.counted) break;
    count++;
  }
  return count;
}

/** How much later than its time a job can be claimed: the same for one schedule and time wherever it is asked, and evenly spread from 0 to the most. */
export function jitterMs(scheduleId: string, nominalMs: number, mostMs: number): number {
  if (mostMs === 0) return 0;
  const digest = createHash("sha256").update(`${scheduleId} ${nominalMs}`).digest();
  return digest.readUIntBE(0, 6) % (mostMs + 1);
}
