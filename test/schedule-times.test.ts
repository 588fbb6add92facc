import { Cron as Croner } from "croner";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { Misfire } from "../gen/moltwire/queue/v1/schedule_pb.ts";
import { CronError, parseCron } from "../src/queue/schedule/cron.ts";
import { dueNow, jitterMs } from "../src/queue/schedule/due.ts";
import { nextTime, timesAfter } from "../src/queue/schedule/times.ts";
import { localText, openZone } from "../src/queue/schedule/zone.ts";
import { timesOracle } from "./queue-fixtures/times-oracle.ts";

const zone = (name: string) => openZone(name)!;
const between = (cron: string, zoneName: string, from: string, to: string): number[] => {
  const found: number[] = [];
  for (const timeMs of timesAfter(parseCron(cron), zone(zoneName), Date.parse(from) - 1)) {
    if (timeMs >= Date.parse(to)) break;
    found.push(timeMs);
  }
  return found;
};
/** As the zone's clocks show them. */
const shown = (cron: string, zoneName: string, from: string, to: string): string[] =>
  between(cron, zoneName, from, to).map((timeMs) => localText(zone(zoneName), timeMs));

describe("a cron expression", () => {
  test.each([
    ["* * * * *", { minutes: 60, hours: 24, days: 31, months: 12, weekdays: 7 }],
    ["*/15 */6 */10 */3 */2", { minutes: 4, hours: 4, days: 4, months: 4, weekdays: 4 }],
    ["0,15,30-32 1-5/2 1 JAN,jun-Aug MON-fri", { minutes: 5, hours: 3, days: 1, months: 4, weekdays: 5 }],
    ["0 0 * * 7", { minutes: 1, hours: 1, days: 31, months: 12, weekdays: 1 }],
    ["0 0 * * sat-sun", { minutes: 1, hours: 1, days: 31, months: 12, weekdays: 2 }],
    ["\t0  0 29 2 * ", { minutes: 1, hours: 1, days: 1, months: 1, weekdays: 7 }],
    ["@HOURLY", { minutes: 1, hours: 24, days: 31, months: 12, weekdays: 7 }],
    ["@weekly", { minutes: 1, hours: 1, days: 31, months: 12, weekdays: 1 }],
  ])("%s is read", (text, counts) => {
    const cron = parseCron(text);
    expect({
      minutes: cron.minutes.length,
      hours: cron.hours.length,
      days: cron.days.size,
      months: cron.months.size,
      weekdays: cron.weekdays.size,
    }).toEqual(counts);
  });

  test.each([
    ["", "must not be empty"],
    ["   ", "must not be empty"],
    ["* * * *", "has 4 fields; give five"],
    ["0 * * * * *", "seconds and years are not supported"],
    ["0 0 0 1 1 * 2027", "seconds and years are not supported"],
    ["60 * * * *", 'minute "60": from 0 to 59'],
    ["* 24 * * *", 'hour "24": from 0 to 23'],
    ["* * 0 * *", 'day of month "0": from 1 to 31'],
    ["* * * 13 *", 'month "13": from 1 to 12'],
    ["* * * * 8", 'day of week "8": from 0 to 7'],
    ["5-1 * * * *", "from the lower to the higher"],
    ["* * * * FRI-MON", "from the lower to the higher"],
    ["5/15 * * * *", "a step follows * or a range, such as 5-59/15"],
    ["*/0 * * * *", "a step is from 1 to 59"],
    ["*/60 * * * *", "a step is from 1 to 59"],
    ["1,,2 * * * *", "is not understood"],
    ["1-2-3 * * * *", "is not understood"],
    ["-1 * * * *", "is not understood"],
    ["1.5 * * * *", "is not understood"],
    ["* * * FOO *", "is not understood"],
    ["* * MON * *", "is not understood"],
    ["* * L * *", "L, W, # and ? are not supported"],
    ["* * 15W * *", "L, W, # and ? are not supported"],
    ["* * * * 5#2", "L, W, # and ? are not supported"],
    ["* * ? * *", "L, W, # and ? are not supported"],
    ["* * * * 5L", "L, W, # and ? are not supported"],
    ["0 0 30 2 *", 'day of month "30" never comes in month "2"'],
    ["0 0 31 4,6,9,11 *", "never comes"],
    ["0 0 31 feb */2", "never comes"],
    ["@reboot", "@reboot is no time"],
    ["@every 5m", "is not known"],
    ["@daily 5", "is not known"],
  ])("%j is refused, with what is wrong", (text, message) => {
    expect(() => parseCron(text)).toThrow(CronError);
    expect(() => parseCron(text)).toThrow(message);
  });

  test("takes one of day and weekday where both are restricted, and both where one begins with *", () => {
    const days = (cron: string) =>
      between(cron, "UTC", "2026-06-01", "2026-07-01").map((timeMs) => new Date(timeMs).getUTCDate());
    expect(days("0 0 13 * FRI")).toEqual([5, 12, 13, 19, 26]);
    expect(days("0 0 */2 * FRI")).toEqual([5, 19]);
    expect(days("0 0 30 2 FRI")).toEqual([]);
  });

  test("says nothing wrong of any text", () => {
    const parts = fc.constantFrom("*", "0", "5", "31", "60", "-", "/", ",", "MON", "feb", "L", "#", " ", "@", "7", "é");
    fc.assert(
      fc.property(fc.array(parts, { maxLength: 16 }), (text) => {
        try {
          const cron = parseCron(text.join(""));
          expect(cron.minutes.every((minute) => minute >= 0 && minute < 60)).toBe(true);
        } catch (error) {
          expect(error).toBeInstanceOf(CronError);
        }
      }),
      { numRuns: 2_000 },
    );
  });
});

describe("a time zone", () => {
  test.each(["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "Etc/GMT+5", "Asia/Kathmandu"])(
    "%s is one",
    (n) => expect(openZone(n)).toBeDefined(),
  );
  test.each(["", "+01:00", "GMT+1", "UTC+1", "Europe/Atlantis", "Europe/Berlin ", "-05", "\0"])("%j is none", (n) =>
    expect(openZone(n)).toBeUndefined(),
  );
});

describe("when clocks are changed", () => {
  test("a fixed time in a gap comes at the first instant after it, once", () => {
    expect(shown("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00Z", "2026-03-30T12:00Z")).toEqual([
      "2026-03-29T03:00:00+02:00",
      "2026-03-30T02:30:00+02:00",
    ]);
    expect(shown("0,30 2 * * *", "Europe/Berlin", "2026-03-28T12:00Z", "2026-03-29T12:00Z")).toEqual([
      "2026-03-29T03:00:00+02:00",
    ]);
    expect(shown("0 2,3 * * *", "America/New_York", "2026-03-08T00:00Z", "2026-03-09T00:00Z")).toEqual([
      "2026-03-08T03:00:00-04:00",
    ]);
    expect(shown("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T12:00Z", "2026-10-04T12:00Z")).toEqual([
      "2026-10-04T02:30:00+11:00",
    ]);
  });

  test("a fixed time that comes twice is the first", () => {
    expect(shown("0,30 2 * * *", "Europe/Berlin", "2026-10-24T12:00Z", "2026-10-25T12:00Z")).toEqual([
      "2026-10-25T02:00:00+02:00",
      "2026-10-25T02:30:00+02:00",
    ]);
    expect(shown("30 1 * * *", "America/New_York", "2026-11-01T00:00Z", "2026-11-02T00:00Z")).toEqual([
      "2026-11-01T01:30:00-04:00",
    ]);
    expect(shown("45 1 * * *", "Australia/Lord_Howe", "2026-04-04T12:00Z", "2026-04-05T12:00Z")).toEqual([
      "2026-04-05T01:45:00+11:00",
    ]);
  });

  test("an hour that begins with * follows elapsed time", () => {
    const hours = between("30 * * * *", "Europe/Berlin", "2026-10-24T22:00Z", "2026-10-25T23:00Z");
    expect(hours).toHaveLength(25);
    expect(new Set(hours.map((timeMs, n) => timeMs - (hours[n - 1] ?? timeMs - 3_600_000)))).toEqual(
      new Set([3_600_000]),
    );
    expect(between("*/15 * * * *", "Europe/Berlin", "2026-03-28T23:00Z", "2026-03-29T22:00Z")).toHaveLength(92);
    expect(shown("0 */2 * * *", "Europe/Berlin", "2026-03-28T23:00Z", "2026-03-29T05:00Z")).toEqual([
      "2026-03-29T00:00:00+01:00",
      "2026-03-29T04:00:00+02:00",
      "2026-03-29T06:00:00+02:00",
    ]);
  });

  test("any minute of a fixed hour is a fixed time", () => {
    expect(shown("*/15 2 * * *", "Europe/Berlin", "2026-03-28T12:00Z", "2026-03-29T12:00Z")).toEqual([
      "2026-03-29T03:00:00+02:00",
    ]);
    expect(shown("*/30 2 * * *", "Europe/Berlin", "2026-10-24T12:00Z", "2026-10-25T12:00Z")).toEqual([
      "2026-10-25T02:00:00+02:00",
      "2026-10-25T02:30:00+02:00",
    ]);
  });

  test("a day that a zone leaves out has its fixed times when the next one begins", () => {
    // Samoa had no 30 December 2011.
    expect(shown("0 12 * * *", "Pacific/Apia", "2011-12-29T11:00Z", "2011-12-31T12:00Z")).toEqual([
      "2011-12-29T12:00:00-10:00",
      "2011-12-31T00:00:00+14:00",
      "2011-12-31T12:00:00+14:00",
    ]);
    expect(between("0 * * * *", "Pacific/Apia", "2011-12-29T10:00Z", "2011-12-31T10:00Z")).toHaveLength(48);
  });
});

describe.each([
  ["Europe/Berlin", "2026-01-01", "2027-01-01"],
  ["America/New_York", "2026-01-01", "2027-01-01"],
  ["Australia/Lord_Howe", "2026-01-01", "2027-01-01"],
  ["Asia/Kathmandu", "2026-01-01", "2026-07-01"],
  ["Pacific/Apia", "2011-06-01", "2012-06-01"],
  ["America/St_Johns", "2010-10-01", "2011-04-01"],
  ["America/Sao_Paulo", "2018-01-01", "2019-03-01"],
])("in %s", (name, from, to) => {
  const oracle = timesOracle(name, Date.parse(from), Date.parse(to));

  test("the times of any expression are those that walking through each minute finds", () => {
    const field = (low: number, high: number) => {
      const number = fc.integer({ min: low, max: high });
      const range = fc.tuple(number, number).map((ends) => `${Math.min(...ends)}-${Math.max(...ends)}`);
      const stepped = fc
        .tuple(fc.oneof(fc.constant("*"), range), fc.integer({ min: 1, max: high }))
        .map((p) => p.join("/"));
      const one = fc.oneof(number.map(String), range, stepped);
      return fc.oneof(
        fc.constant("*"),
        one,
        fc.array(one, { minLength: 1, maxLength: 3 }).map((parts) => parts.join(",")),
      );
    };
    const early = fc.oneof(field(0, 23), fc.constantFrom("0", "1", "2", "3", "1-3", "0,2", "23"));
    const expressions = fc.tuple(
      field(0, 59),
      early,
      fc.oneof(fc.constant("*"), field(1, 28)),
      fc.oneof(fc.constant("*"), fc.constant("*"), field(1, 12)),
      fc.oneof(fc.constant("*"), field(0, 7)),
    );
    fc.assert(
      fc.property(expressions, (parts) => {
        const text = parts.join(" ");
        const found = between(text, name, from, to);
        expect(found, text).toEqual(oracle(text));
      }),
      { numRuns: 30 },
    );
  });

  test("the next time is the same from wherever one looks", () => {
    const cron = parseCron("*/20 0-3 * * *");
    const all = between("*/20 0-3 * * *", name, from, to);
    const [start, end] = [all[0]!, all.at(-1)!];
    fc.assert(
      fc.property(fc.integer({ min: start, max: end - 1 }), (afterMs) => {
        const expected = all.find((timeMs) => timeMs > afterMs);
        expect(nextTime(cron, zone(name), afterMs, { startMs: null, endMs: null })).toBe(expected);
      }),
      { numRuns: 200 },
    );
  });
});

test("in UTC another implementation finds the same times", () => {
  const expressions = [
    ..."* * * * *|*/7 3,9 * * *|0 0 29 2 *|5 4 1-7 * MON|0 12 13 * FRI|59 23 31 12 *|0 0 31 * *".split("|"),
  ];
  for (const text of expressions) {
    const other = new Croner(text, { timezone: "UTC" }).nextRuns(40, new Date("2026-02-27T23:30:00Z"));
    const own: number[] = [];
    for (const timeMs of timesAfter(parseCron(text), zone("UTC"), Date.parse("2026-02-27T23:30:00Z"))) {
      if (own.push(timeMs) === other.length) break;
    }
    expect(own, text).toEqual(other.map((date) => date.getTime()));
  }
});

test("a date that comes once in decades is found, and bounds hold", () => {
  const next = (cron: string, startMs: number | null, endMs: number | null) =>
    nextTime(parseCron(cron), zone("UTC"), Date.parse("2026-01-01"), { startMs, endMs });
  // 29 February on a Sunday: with a step on the weekday it is both.
  expect(next("0 0 29 2 */7", null, null)).toBe(Date.parse("2032-02-29"));
  expect(next("0 0 * * *", Date.parse("2026-03-01"), null)).toBe(Date.parse("2026-03-01"));
  expect(next("0 0 * * *", null, Date.parse("2026-01-02"))).toBe(Date.parse("2026-01-02"));
  expect(next("0 0 * * *", null, Date.parse("2026-01-02") - 1)).toBeUndefined();
});

describe("what is due", () => {
  const at = (text: string) => Date.parse(`2026-05-04T${text}Z`);
  const look = (misfire: Misfire, now: string, next = "10:00:00", catchUpMs = 1_800_000, cron = "*/10 * * * *") =>
    dueNow(
      { cron: parseCron(cron), zone: zone("UTC"), startMs: null, endMs: null, misfire, catchUpMs, nextMs: at(next) },
      at(now),
    );
  const clockOf = (timeMs: number) => new Date(timeMs).toISOString().slice(11, 16);
  const table: [string, Misfire, string, string[], number][] = [
    ["on time", Misfire.SKIP, "10:00:00", ["10:00"], 0],
    ["within a minute", Misfire.SKIP, "10:00:59", ["10:00"], 0],
    ["a minute late", Misfire.SKIP, "10:01:00", [], 1],
    ["a minute late", Misfire.ONCE, "10:01:00", ["10:00"], 0],
    ["a minute late", Misfire.ALL, "10:01:00", ["10:00"], 0],
    ["three times late, the last on time", Misfire.SKIP, "10:20:01", ["10:20"], 2],
    ["three times late, the last on time", Misfire.ONCE, "10:20:01", ["10:20"], 2],
    ["three times late, the last on time", Misfire.ALL, "10:20:01", ["10:00", "10:10", "10:20"], 0],
    ["longer than the catch-up window", Misfire.SKIP, "12:05:00", [], 13],
    ["longer than the catch-up window", Misfire.ONCE, "12:05:00", ["12:00"], 12],
    ["longer than the catch-up window", Misfire.ALL, "12:05:00", ["11:40", "11:50", "12:00"], 10],
    ["the window ends with a time", Misfire.ALL, "12:00:00", ["11:30", "11:40", "11:50", "12:00"], 9],
    ["too early", Misfire.ALL, "09:59:59", [], 0],
  ];
  test.each(table)("%s, misfire %i, at %s", (_, misfire, now, times, missed) => {
    const due = look(misfire, now);
    expect([due.times.map(clockOf), due.missed]).toEqual([times, missed]);
    expect(due.nextMs).toBeGreaterThan(at(now));
    expect(due.nextMs! - at(now)).toBeLessThanOrEqual(600_000 + (at(now) < at("10:00:00") ? 1_000 : 0));
  });

  test("of ALL the latest 100 make a job", () => {
    const due = look(Misfire.ALL, "15:00:00", "10:00:00", 86_400_000, "* * * * *");
    expect([due.times.length, due.missed]).toEqual([100, 201]);
    expect(clockOf(due.times[0]!)).toBe("13:21");
    expect(clockOf(due.times.at(-1)!)).toBe("15:00");
  });

  test("nothing is told twice, however the clock goes", () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: -7_200_000, max: 7_200_000 }), { maxLength: 40 }), (steps) => {
        let now = at("10:00:00");
        let nextMs = now;
        const seen = new Set<number>();
        for (const step of steps) {
          now += step;
          const due = dueNow(
            {
              ...{ cron: parseCron("*/7 * * * *"), zone: zone("Europe/Berlin"), startMs: null, endMs: null },
              ...{ misfire: Misfire.ALL, catchUpMs: 86_400_000, nextMs },
            },
            now,
          );
          for (const timeMs of due.times) {
            expect(seen.has(timeMs)).toBe(false);
            expect(timeMs).toBeLessThanOrEqual(now);
            seen.add(timeMs);
          }
          nextMs = due.nextMs!;
        }
      }),
      { numRuns: 200 },
    );
  });
});

test("jitter is the same for one schedule and time, within its bound, and spread", () => {
  const values = Array.from({ length: 1_000 }, (_, n) => jitterMs("sch_a", n * 60_000, 10_000));
  expect(values).toEqual(Array.from({ length: 1_000 }, (_, n) => jitterMs("sch_a", n * 60_000, 10_000)));
  expect(Math.min(...values)).toBeGreaterThanOrEqual(0);
  expect(Math.max(...values)).toBeLessThanOrEqual(10_000);
  expect(new Set(values.map((ms) => Math.floor(ms / 1_000))).size).toBeGreaterThanOrEqual(10);
  expect(jitterMs("sch_a", 60_000, 10_000)).not.toBe(jitterMs("sch_b", 60_000, 10_000));
  expect(jitterMs("sch_a", 60_000, 0)).toBe(0);
});
