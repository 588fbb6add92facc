/** How times, numbers and ids are written. */
import type { Duration, Timestamp } from "@bufbuild/protobuf/wkt";
import { durationMs, timestampMs } from "@bufbuild/protobuf/wkt";

const clock = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hour12: false,
});
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium", hour12: false });
const number = new Intl.NumberFormat();
const compact = new Intl.NumberFormat(undefined, { notation: "compact", maximumFractionDigits: 1 });

export const clockText = (ms: number): string => clock.format(ms);
export const timeText = (time: Timestamp | undefined): string => (time ? full.format(timestampMs(time)) : "–");

/** How long ago, in one unit. */
export function agoText(time: Timestamp | undefined, nowMs = Date.now()): string {
  return time ? spanText(Math.max(0, nowMs - timestampMs(time))) : "–";
}

/** A span of time, in one unit or two digits of it. */
export function spanText(ms: number): string {
  if (ms < 1_000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1_000).toFixed(ms < 10_000 ? 1 : 0)} s`;
  if (ms < 3_600_000) return `${Math.round(ms / 60_000)} min`;
  if (ms < 48 * 3_600_000) return `${Math.round(ms / 3_600_000)} h`;
  return `${Math.round(ms / 86_400_000)} d`;
}

export const durationText = (duration: Duration | undefined): string =>
  duration ? spanText(durationMs(duration)) : "–";
export const countText = (n: bigint | number): string => (n >= 100_000 ? compact.format(n) : number.format(n));
/** Of micro-credits. */
export const creditsText = (micros: bigint): string =>
  (Number(micros) / 1_000_000).toLocaleString(undefined, { maximumFractionDigits: 4 });
/** The end of an id, by which people tell two apart. */
export const shortId = (id: string): string => (id.length > 16 ? `…${id.slice(-8)}` : id);

/** The name of a number of a generated enum, for people: `AWAITING_APPROVAL` becomes `awaiting approval`. */
export function enumText(names: Readonly<Record<string, string | number>>, value: number): string {
  const name = Object.keys(names).find((key) => names[key] === value) ?? String(value);
  return name.toLowerCase().replaceAll("_", " ");
}

/** The micro-credits of what somebody typed as credits, such as `12.5`; undefined if it is no amount. */
export function microsOf(typed: string): bigint | undefined {
  const parts = /^(\d{1,9})(?:[.,](\d{1,6}))?$/.exec(typed.trim());
  return parts ? BigInt(parts[1]!) * 1_000_000n + BigInt((parts[2] ?? "").padEnd(6, "0")) : undefined;
}

/** The numbers of a generated enum as choices; the first one, for none of them, as it is called here. */
export const choicesOf = (names: Readonly<Record<string, string | number>>, none: string) =>
  Object.values(names)
    .filter((value) => typeof value === "number")
    .map((value) => ({ value: value === 0 ? "" : String(value), label: value === 0 ? none : enumText(names, value) }));

/** A number of a generated enum as the command line writes it: `PUB_SUB_FANOUT` is `pub-sub-fanout`. */
export const enumWord = (names: Readonly<Record<string, string | number>>, value: number): string =>
  enumText(names, value).replaceAll(" ", "-");

/** The options of a command that have a value. */
export const optionsText = (options: Readonly<Record<string, string | boolean>>): string =>
  Object.entries(options)
    .filter(([, value]) => value !== "" && value !== false)
    .map(([name, value]) => (value === true ? ` --${name}` : ` --${name} ${quoted(String(value))}`))
    .join("");

const quoted = (text: string): string => (/^[\w./:-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

/** A number of bytes, in one unit. */
export const bytesText = (bytes: bigint | number): string => {
  const n = Number(bytes);
  if (n < 1_024) return `${n} B`;
  return n < 1_048_576 ? `${(n / 1_024).toFixed(1)} KiB` : `${(n / 1_048_576).toFixed(1)} MiB`;
};
