/** Medians, ratios, the table. */
import type { Case } from "./cases.ts";
import type { Outcome } from "./load.ts";

/** One round of one case. */
export type Sample = Outcome & {
  /** Processor time of the server for each acknowledged request, in microseconds. */
  readonly serverUs: number | undefined;
};

export type Row = {
  readonly name: string;
  readonly what: Case["what"];
  readonly callers: number;
  readonly perSecond: number;
  /** Of the rounds, lowest first. */
  readonly rounds: readonly number[];
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly serverUs: number | undefined;
  readonly loaderBusy: number;
};

export type Ratio = { readonly name: string; readonly value: number; readonly goal: number | undefined };

/** Above it the load generator may be what was measured. */
const loaderLimit = 0.9;

const median = (values: readonly number[]): number => {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
};

/** A case with the medians of its rounds. */
export function toRow({ name, what, callers }: Case, samples: readonly Sample[]): Row {
  const of = (pick: (sample: Sample) => number) => median(samples.map(pick));
  const processor = samples.flatMap(({ serverUs }) => (serverUs === undefined ? [] : [serverUs]));
  return {
    name,
    what,
    callers,
    perSecond: of(({ perSecond }) => perSecond),
    rounds: samples.map(({ perSecond }) => perSecond).toSorted((a, b) => a - b),
    p50Ms: of(({ p50Ms }) => p50Ms),
    p99Ms: of(({ p99Ms }) => p99Ms),
    serverUs: processor.length > 0 ? median(processor) : undefined,
    loaderBusy: of(({ busy }) => busy),
  };
}

/** What is to be compared, whatever the machine. The goals are those of the finished project. */
export function ratiosOf(rows: readonly Row[]): Ratio[] {
  const bare = rows.find(({ what }) => what === "bare")!;
  const unary = rows.filter(({ what }) => what === "unary");
  const durable = rows.filter(({ what }) => ["change", "submit", "governed", "set", "cycle"].includes(what));
  return [
    ...unary.map((row) => ({
      name: `${row.name} / bare node:http`,
      value: row.perSecond / bare.perSecond,
      goal: row.name.startsWith("GetAgent") ? 0.6 : undefined,
    })),
    ...unary.flatMap((row) =>
      row.serverUs && bare.serverUs
        ? [
            {
              name: `${row.name} / bare node:http, by processor time`,
              value: bare.serverUs / row.serverUs,
              goal: undefined,
            },
          ]
        : [],
    ),
    ...durable.flatMap((row) => {
      const of = row.what === "set" ? "autocommit-set" : "autocommit";
      const autocommit = rows.find(({ what, callers }) => what === of && callers === row.callers)!;
      return [{ name: `${row.name} / autocommit`, value: row.perSecond / autocommit.perSecond, goal: undefined }];
    }),
    ...rows
      .filter(({ what }) => what === "get")
      .map((row) => {
        const plain = rows.find(({ what, callers }) => what === "plain-get" && callers === row.callers)!;
        return { name: `${row.name} / plain read`, value: row.perSecond / plain.perSecond, goal: undefined };
      }),
    ...durable
      .filter(({ callers }) => callers === 64)
      .map((row) => ({
        name: `${row.name} / bare node:http`,
        value: row.perSecond / bare.perSecond,
        goal: row.what === "governed" ? 0.15 : undefined,
      })),
    ...peers.flatMap(([what, peer, goal]) =>
      rows
        .filter((row) => row.what === what)
        .flatMap((row) => {
          const other = rows.find((one) => one.what === peer && one.callers === row.callers);
          return other ? [{ name: `${row.name} / ${other.name}`, value: row.perSecond / other.perSecond, goal }] : [];
        }),
    ),
    ...claimRatios(rows),
  ];
}

/** What is compared with what of others, and the goals of that. */
const peers = [
  ["set", "redis-set", undefined],
  ["get", "redis-get", undefined],
  ["cycle", "redis-cycle", undefined],
  ["cycle", "boss-cycle", 15],
  ["client-set", "redis-set", 0.7],
  ["client-get", "redis-get", 1],
  ["client-cycle", "redis-cycle", undefined],
  ["client-cycle", "boss-cycle", 30],
  ["client-set", "set", undefined],
  ["client-get", "get", undefined],
  ["client-cycle", "cycle", undefined],
] as const;

/** By the median time of a claim: whether it costs the same however many jobs wait. */
function claimRatios(rows: readonly Row[]): Ratio[] {
  const claims = rows.filter(({ what }) => what === "claim");
  const engineOf = ({ name }: Row) => name.replace(/^.* pending, /, "");
  return [...Map.groupBy(claims, engineOf).values()].map(([few, many]) => ({
    name: `time of ${few!.name} / of ${many!.name}`,
    value: few!.p50Ms / many!.p50Ms,
    goal: 0.9,
  }));
}

/** The rows as text. */
export function toTable(rows: readonly Row[]): string {
  const head = ["", "per s", "lowest–highest", "p50 ms", "p99 ms", "server µs", "loader"];
  const body = rows.map((row) => [
    row.name,
    whole(row.perSecond),
    `${whole(row.rounds[0]!)}–${whole(row.rounds.at(-1)!)}`,
    row.p50Ms.toFixed(2),
    row.p99Ms.toFixed(2),
    row.serverUs?.toFixed(0) ?? "?",
    `${Math.round(row.loaderBusy * 100)} %${row.loaderBusy > loaderLimit ? " !" : ""}`,
  ]);
  return align([head, ...body]);
}

/** The ratios as text. */
export const toRatios = (ratios: readonly Ratio[]): string =>
  align([
    ["ratio", "", "goal"],
    ...ratios.map(({ name, value, goal }) => [
      name,
      value.toFixed(value < 0.1 ? 3 : 2),
      goal === undefined ? "" : `≥ ${goal}`,
    ]),
  ]);

function align(lines: readonly (readonly string[])[]): string {
  const widths = lines[0]!.map((_, column) => Math.max(...lines.map((line) => line[column]!.length)));
  return lines
    .map((line) =>
      line
        .map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!)))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}

const whole = (value: number): string => Math.round(value).toLocaleString("en");
