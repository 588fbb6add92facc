/**
 * Cron expressions: the five fields of Vixie cron (crontab(5)), and its nicknames. What other crons add is refused by name, never guessed at: seconds, years,
 * `@reboot`, `L`, `W`, `#`, `?`, and a step after a single number.
 */

/** When, by the calendar and the clock on the wall. */
export type Cron = {
  /** Ascending. */
  readonly minutes: readonly number[];
  /** Ascending. */
  readonly hours: readonly number[];
  /** By the number of the day of the month, of the month from 1, of the day of the week from 0 for Sunday. */
  readonly days: ReadonlySet<number>;
  readonly months: ReadonlySet<number>;
  readonly weekdays: ReadonlySet<number>;
  /** Whether a date need be one of the days or one of the weekdays, as where both are restricted; else it is both. */
  readonly either: boolean;
  /**
   * Whether the hour begins with `*`: then it follows elapsed time, so that a change of the clock neither adds nor takes a time. Else it is at fixed times,
   * and each of them comes once, whatever the clock does. Vixie cron also takes a starred minute for elapsed time; who names an hour means that hour.
   */
  readonly elapsed: boolean;
};

/** What is wrong with an expression, for the one who wrote it. */
export class CronError extends Error {
  override readonly name = "CronError";
}

type Field = {
  readonly name: string;
  readonly low: number;
  readonly high: number;
  readonly names?: readonly string[];
};

const fields: readonly Field[] = [
  { name: "minute", low: 0, high: 59 },
  { name: "hour", low: 0, high: 23 },
  { name: "day of month", low: 1, high: 31 },
  {
    name: "month",
    low: 1,
    high: 12,
    names: ["", "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
  },
  { name: "day of week", low: 0, high: 7, names: ["sun", "mon", "tue", "wed", "thu", "fri", "sat"] },
];

const nicknames: Readonly<Record<string, string>> = {
  "@hourly": "0 * * * *",
  "@daily": "0 0 * * *",
  "@midnight": "0 0 * * *",
  "@weekly": "0 0 * * 0",
  "@monthly": "0 0 1 * *",
  "@yearly": "0 0 1 1 *",
  "@annually": "0 0 1 1 *",
};

/** The days that each month has at most. */
const monthDays = [0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

/** Reads an expression; throws {@link CronError} for one that says nothing, or a date that never comes. */
export function parseCron(text: string): Cron {
  const given = text.trim();
  const parts = (given.startsWith("@") ? nicknamed(given) : given).split(/[ \t]+/).filter(Boolean);
  if (parts.length === 0) throw new CronError("must not be empty: five fields, such as 0 9 * * MON-FRI, or @daily");
  if (parts.length === 6 || parts.length === 7)
    throw new CronError(
      `has ${parts.length} fields; seconds and years are not supported: give five, minute hour day-of-month month day-of-week`,
    );
  if (parts.length !== 5)
    throw new CronError(`has ${parts.length} fields; give five: minute hour day-of-month month day-of-week`);
  const [minutes, hours, days, months, weekdays] = fields.map((field, n) => valuesOf(field, parts[n]!));
  const starred = parts.map((part) => part.startsWith("*"));
  const cron: Cron = {
    minutes: ascending(minutes!),
    hours: ascending(hours!),
    days: days!,
    months: months!,
    weekdays: new Set([...weekdays!].map((day) => day % 7)),
    either: !starred[2] && !starred[4],
    elapsed: starred[1] === true,
  };
  checkPossible(cron, parts);
  return cron;
}

const ascending = (values: ReadonlySet<number>): number[] => [...values].sort((a, b) => a - b);

function nicknamed(given: string): string {
  const name = given.toLowerCase();
  if (Object.hasOwn(nicknames, name)) return nicknames[name]!;
  const known = Object.keys(nicknames).join(" ");
  if (name === "@reboot") throw new CronError(`@reboot is no time; these are: ${known}`);
  throw new CronError(`${shown(given)} is not known; these are: ${known}`);
}

function valuesOf(field: Field, part: string): Set<number> {
  const values = new Set<number>();
  for (const item of part.split(",")) {
    const [low, high, step] = rangeOf(field, item);
    for (let value = low; value <= high; value += step) values.add(value);
  }
  return values;
}

/** `*`, `*` with a step, a number or name, a range, a range with a step. */
function rangeOf(field: Field, item: string): [low: number, high: number, step: number] {
  const { name, low, high } = field;
  if (/[LW#?]/i.test(item) && !nameIn(field, item))
    throw new CronError(`${name} ${shown(item)}: L, W, # and ? are not supported`);
  const [, range = "", step] = /^([^/]*)(?:\/(\d{1,4}))?$/.exec(item) ?? [];
  if (range === "") throw new CronError(`${name} ${shown(item)} is not understood`);
  const by = step === undefined ? 1 : Number(step);
  if (by < 1 || by > high) throw new CronError(`${name} ${shown(item)}: a step is from 1 to ${high}`);
  // Not to 7: Sunday is in it as 0.
  if (range === "*") return [low, name === "day of week" ? 6 : high, by];
  const [from = "", to, ...more] = range.split("-");
  if (more.length > 0) throw new CronError(`${name} ${shown(item)} is not understood`);
  const first = numberOf(field, from, item);
  if (to === undefined) {
    if (step !== undefined)
      throw new CronError(`${name} ${shown(item)}: a step follows * or a range, such as ${from}-${high}/${by}`);
    return [first, first, 1];
  }
  const given = numberOf(field, to, item);
  // SAT-SUN: a week that ends with Sunday.
  const last = name === "day of week" && given === 0 && first > 0 ? 7 : given;
  if (last < first) throw new CronError(`${name} ${shown(item)}: a range goes from the lower to the higher`);
  return [first, last, by];
}

/** Whether it is made of the field's names and nothing else, which hold such letters too. */
const nameIn = ({ names = [] }: Field, item: string): boolean =>
  item
    .toLowerCase()
    .replace(/\/\d+$/, "")
    .split("-")
    .every((word) => word !== "" && (names.includes(word) || /^\d+$/.test(word)));

function numberOf({ name, low, high, names = [] }: Field, word: string, item: string): number {
  const named = word === "" ? -1 : names.indexOf(word.toLowerCase());
  const value = named >= 0 ? named : /^\d{1,4}$/.test(word) ? Number(word) : undefined;
  if (value === undefined) throw new CronError(`${name} ${shown(item)} is not understood`);
  if (value < low || value > high) throw new CronError(`${name} ${shown(item)}: from ${low} to ${high}`);
  return value;
}

/** A date that never comes is a mistake, and not a schedule that waits for ever. */
function checkPossible({ days, months, either }: Cron, parts: readonly string[]): void {
  if (either || [...months].some((month) => [...days].some((day) => day <= monthDays[month]!))) return;
  throw new CronError(`day of month ${shown(parts[2]!)} never comes in month ${shown(parts[3]!)}`);
}

const shown = (text: string): string => JSON.stringify(text.slice(0, 32));
