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
