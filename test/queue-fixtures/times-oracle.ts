/** The times of schedules found by walking through every minute, with nothing of the code that is tested: what its tests are held against. */

const minuteMs = 60_000;
const dayMs = 86_400_000;

/** A minute as the clocks of a zone show it; `localMs` is that in milliseconds, as if it were UTC. */
type Minute = { readonly utcMs: number; readonly localMs: number };

/** Gives the times of an expression of numbers in a zone, from one time on and before another. */
export function timesOracle(timeZone: string, fromMs: number, toMs: number): (text: string) => number[] {
  // Two days more on either side: a time may be skipped or repeated at the ends.
  const minutes = walk(timeZone, fromMs - 2 * dayMs, toMs + 2 * dayMs);
  const shown = new Set<number>();
  const first: Minute[] = [];
  const skipped: Minute[] = [];
  let before = minutes[0]!.localMs - minuteMs;
  for (const minute of minutes) {
    for (let localMs = before + minuteMs; localMs < minute.localMs; localMs += minuteMs)
      if (!shown.has(localMs)) skipped.push({ utcMs: minute.utcMs, localMs });
    if (!shown.has(minute.localMs)) first.push(minute);
    shown.add(minute.localMs);
    before = minute.localMs;
  }
  return (text) => {
    const parts = text.split(" ");
    const isStarred = (n: number) => parts[n]!.startsWith("*");
    const [minute, hour, day, month, weekday] = [
      tableOf(parts[0]!, 0, 59),
      tableOf(parts[1]!, 0, 23),
      tableOf(parts[2]!, 1, 31),
      tableOf(parts[3]!, 1, 12),
      tableOf(parts[4]!, 0, 7),
    ] as const;
    const fits = ({ localMs }: Minute): boolean => {
      if (!minute.has((localMs / minuteMs) % 60) || !hour.has(Math.floor(localMs / 3_600_000) % 24)) return false;
      const date = new Date(localMs);
      const inDay = day.has(date.getUTCDate());
      const inWeek = weekday.has(date.getUTCDay()) || (date.getUTCDay() === 0 && weekday.has(7));
      if (!month.has(date.getUTCMonth() + 1)) return false;
      return isStarred(2) || isStarred(4) ? inDay && inWeek : inDay || inWeek;
    };
    const found = isStarred(1) ? minutes.filter(fits) : [...first, ...skipped].filter(fits);
    const times = new Set(found.map(({ utcMs }) => utcMs).filter((utcMs) => utcMs >= fromMs && utcMs < toMs));
    return [...times].sort((a, b) => a - b);
  };
}

/** Every minute of a stretch of time. */
function walk(timeZone: string, fromMs: number, toMs: number): Minute[] {
  const format = new Intl.DateTimeFormat("sv-SE", { timeZone, dateStyle: "short", timeStyle: "short" });
  const minutes: Minute[] = [];
  for (let utcMs = fromMs; utcMs < toMs; utcMs += minuteMs)
    minutes.push({ utcMs, localMs: Date.parse(`${format.format(utcMs).replace(" ", "T")}Z`) });
  return minutes;
}

/** The numbers that a field names. */
function tableOf(field: string, low: number, high: number): ReadonlySet<number> {
  const values = new Set<number>();
  for (const item of field.split(",")) {
    const [range = "", step = "1"] = item.split("/");
    const [from = "", to = from] = range === "*" ? [String(low), String(high === 7 ? 6 : high)] : range.split("-");
    for (let value = Number(from); value <= Number(to); value += Number(step)) values.add(value);
  }
  return values;
}
