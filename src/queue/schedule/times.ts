/**
 * The instants of a cron expression in a time zone, when clocks are changed as well. As Vixie cron does it (cron(8)):
 *
 * - What follows elapsed time (see {@link Cron}) is at each instant at which the zone's clocks show it: in a gap there is none, in an overlap there are both.
 * - A fixed time is once on each date: where clocks skip it at the first instant after the gap, where they show it twice at the first of both. Those that one gap
 *   skips come to one instant, which is one time.
 *
 * Zones change their clocks at most once within three days, which holds of all since 1970 but for a handful of days in wars and elections.
 */
import type { Cron } from "./cron.ts";
import type { Zone } from "./zone.ts";

const minuteMs = 60_000;
const hourMs = 60 * minuteMs;
const dayMs = 24 * hourMs;
/** Beyond what any zone is from UTC. */
const farMs = 16 * hourMs;
/** As far as is looked for the next date: 29 February may be a Monday once in 40 years. */
const horizonMs = 60 * 366 * dayMs;

/** The instants after one, ascending; until the next one is more than 60 years away. */
export function* timesAfter(cron: Cron, zone: Zone, afterMs: number): Generator<number, void> {
  const today = floorTo(afterMs + zone.offsetMs(afterMs), dayMs);
  let held: number[] = [];
  let lastMs = afterMs;
  for (const date of dates(cron, today - dayMs)) {
    const clocks = clocksOn(zone, date);
    // Where clocks go back over midnight, a date begins before the one before it has ended.
    const beginMs = date - Math.max(clocks.beforeMs, clocks.afterMs);
    const before = held.filter((timeMs) => timeMs < beginMs);
    for (const timeMs of before) if (timeMs > lastMs) yield (lastMs = timeMs);
    held = held.slice(before.length);
    if (held.length === 0 && clocks.changeMs === undefined) {
      for (const timeMs of steadyTimes(cron, date - clocks.beforeMs, lastMs)) yield (lastMs = timeMs);
      continue;
    }
    held = [...held, ...timesOn(cron, date, clocks)].sort((a, b) => a - b);
  }
  for (const timeMs of held) if (timeMs > lastMs) yield (lastMs = timeMs);
}

/** The first instant after one, within bounds: not before `startMs`, not after `endMs`; undefined when there is none. */
export function nextTime(
  cron: Cron,
  zone: Zone,
  afterMs: number,
  { startMs, endMs }: { readonly startMs: number | null; readonly endMs: number | null },
): number | undefined {
  const from = Math.max(afterMs, (startMs ?? Number.MIN_SAFE_INTEGER) - 1);
  for (const next of timesAfter(cron, zone, from)) return endMs !== null && next > endMs ? undefined : next;
  return undefined;
}

/** The matching dates from one on, each as its midnight in UTC. */
function* dates({ days, months, weekdays, either }: Cron, fromMs: number): Generator<number, void> {
  let foundMs = fromMs;
  for (let dateMs = fromMs; dateMs - foundMs < horizonMs; dateMs += dayMs) {
    const date = new Date(dateMs);
    if (!months.has(date.getUTCMonth() + 1)) {
      dateMs = Date.UTC(date.getUTCFullYear(), date.getUTCMonth() + 1) - dayMs; // and on to the first of the next
      continue;
    }
    const [day, weekday] = [days.has(date.getUTCDate()), weekdays.has(date.getUTCDay())];
    if (either ? day || weekday : day && weekday) yield (foundMs = dateMs);
  }
}

/** What the clocks are ahead before and after a change, if there is one near the date. */
type Clocks = { readonly beforeMs: number; readonly afterMs: number; readonly changeMs: number | undefined };

function clocksOn(zone: Zone, date: number): Clocks {
  let [low, high] = [date - farMs, date + dayMs + farMs];
  const [beforeMs, afterMs] = [zone.offsetMs(low), zone.offsetMs(high)];
  if (beforeMs === afterMs) return { beforeMs, afterMs, changeMs: undefined };
  while (high - low > 1_000) {
    const middle = floorTo((low + high) / 2, 1_000);
    if (zone.offsetMs(middle) === beforeMs) low = middle;
    else high = middle;
  }
  return { beforeMs, afterMs, changeMs: high };
}

/** The instants of a date on which clocks are not changed, after one; `midnightMs` is when it begins. Most dates are such: nothing is made that is not asked for. */
function* steadyTimes({ hours, minutes }: Cron, midnightMs: number, afterMs: number): Generator<number, void> {
  for (const hour of hours) {
    const hourBeginMs = midnightMs + hour * hourMs;
    if (hourBeginMs + hourMs <= afterMs) continue;
    for (const minute of minutes) if (hourBeginMs + minute * minuteMs > afterMs) yield hourBeginMs + minute * minuteMs;
  }
}

/** The instants of a date on which clocks may be changed, in no order. */
function timesOn(cron: Cron, date: number, { beforeMs, afterMs, changeMs = Number.MAX_SAFE_INTEGER }: Clocks) {
  const times: number[] = [];
  for (const hour of cron.hours) {
    for (const minute of cron.minutes) {
      const shownMs = date + hour * hourMs + minute * minuteMs;
      const isBefore = shownMs - beforeMs < changeMs;
      const isAfter = shownMs - afterMs >= changeMs;
      if (isBefore) times.push(shownMs - beforeMs);
      if (isAfter && (cron.elapsed || !isBefore)) times.push(shownMs - afterMs);
      if (!cron.elapsed && !isBefore && !isAfter) times.push(changeMs);
    }
  }
  return times;
}

const floorTo = (ms: number, unitMs: number): number => Math.floor(ms / unitMs) * unitMs;
