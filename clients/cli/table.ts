/** Tables and blocks of facts, aligned. */
import type { JsonValue } from "@bufbuild/protobuf";
import type { Timestamp } from "@bufbuild/protobuf/wkt";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { type Format, fit, paint, plain, safeJson, span } from "./output.ts";

/** One column. It is left out when none of its cells says anything. */
export type Column<T> = {
  readonly title: string;
  /** The text of a row's cell; "" for none. */
  readonly cell: (row: T) => string;
  /** For numbers and spans. */
  readonly right?: boolean;
  /** May be cut where there is no room. Ids never are: they are there to be copied. */
  readonly cut?: boolean;
  readonly colour?: (row: T) => Format | undefined;
};

const gap = 2;
const leastCut = 10;

/** The lines of a table: a line of titles, and one for each row; not wider than `width` if what may be cut allows it. */
export function renderTable<T>(columns: readonly Column<T>[], rows: readonly T[], width: number): string[] {
  const full = columns
    .map((column) => ({ column, cells: rows.map((row) => plain(column.cell(row))) }))
    .filter(({ cells }) => cells.some((cell) => cell !== ""))
    .map((one) => ({ ...one, width: Math.max(one.column.title.length, ...one.cells.map(({ length }) => length)) }));
  let over = full.reduce((sum, one) => sum + one.width + gap, -gap) - width;
  for (const one of full.filter(({ column }) => column.cut).toSorted((a, b) => b.width - a.width)) {
    const less = Math.max(0, Math.min(over, one.width - Math.max(leastCut, one.column.title.length)));
    one.width -= less;
    over -= less;
  }
  const line = (cells: readonly string[], colours: readonly (Format | undefined)[]): string =>
    cells
      .map((cell, at) => {
        const { column, width } = full[at]!;
        const text = fit(cell, width);
        const filler = " ".repeat(width - text.length);
        const colour = colours[at];
        const shown = colour === undefined ? text : paint(colour, text);
        return column.right ? filler + shown : at === full.length - 1 ? shown : shown + filler;
      })
      .join(" ".repeat(gap))
      .trimEnd();
  return [
    line(
      full.map(({ column }) => column.title),
      full.map(() => "dim" as const),
    ),
    ...rows.map((row, at) =>
      line(
        full.map(({ cells }) => cells[at]!),
        full.map(({ column }) => column.colour?.(row)),
      ),
    ),
  ];
}

/** A name and what there is to say of it: a text, or lines that stay as they are. Nothing to say: it is left out. */
export type Fact = readonly [name: string, text: string | readonly string[] | undefined];

/** The lines of a block: a headline and the facts under it. */
export function renderFacts(headline: string, facts: readonly Fact[]): string[] {
  const told = facts.filter(([, text]) => text !== undefined && text.length > 0);
  const width = Math.max(0, ...told.map(([name]) => name.length));
  const lines = told.flatMap(([name, text]) =>
    (typeof text === "string" ? [plain(text)] : text!).map(
      (line, at) => `  ${paint("dim", (at === 0 ? name : "").padEnd(width))}  ${line}`,
    ),
  );
  return [headline, ...lines];
}

const shortJson = 80;
const shownLines = 24;

/** JSON for a block: on a line if it is short, else its first lines. Nothing for an empty object. */
export function jsonText(json: JsonValue | undefined): readonly string[] | undefined {
  if (json === undefined || safeJson(json, 0) === "{}") return undefined;
  const line = safeJson(json, 0);
  if (line.length <= shortJson) return [line];
  const lines = safeJson(json).split("\n");
  const more = lines.length - shownLines;
  return more <= 0 ? lines : [...lines.slice(0, shownLines), paint("dim", `… ${more} more lines: --json shows all`)];
}

/** A time for a block: "2026-01-31 12:00:00 UTC". */
export const at = (time: Timestamp | undefined): string =>
  time ? `${new Date(timestampMs(time)).toISOString().slice(0, 19).replace("T", " ")} UTC` : "";

/** How long ago a time was, for a table: "12 s", "5 min", "3 h", "2 d". */
export function age(time: Timestamp | undefined, nowMs = Date.now()): string {
  if (!time) return "";
  const s = Math.max(0, Math.floor((nowMs - timestampMs(time)) / 1_000));
  if (s < 60) return `${s} s`;
  if (s < 3_600) return `${Math.floor(s / 60)} min`;
  if (s < 86_400) return `${Math.floor(s / 3_600)} h`;
  return `${Math.floor(s / 86_400)} d`;
}

/** The span between two times; "" if one is missing. */
export const between = (start: Timestamp | undefined, end: Timestamp | undefined): string =>
  start && end ? span(timestampMs(end) - timestampMs(start)) : "";
