/** The answer as it is shown, and whether its quotes are true. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fit, paint, plain, wrap } from "../cli/output.ts";
import type { Quote } from "./compose.ts";

const maxQuoteLines = 12;

/**
 * Opens each quote's file and looks whether the sentence stands there, beginning at the line that was said.
 *
 * @throws Error naming the first that does not.
 */
export function checkQuotes(root: string, quotes: readonly Quote[]): void {
  for (const { source, line, text } of quotes) {
    const lines = readFileSync(join(root, source), "utf8")
      .split("\n")
      .slice(line - 1, line - 1 + maxQuoteLines)
      .map((each) => each.replace(/\]\([^)]*\)/g, "]"));
    const first = lettersOf(lines[0] ?? "");
    const at = lettersOf(lines.join(" ")).indexOf(lettersOf(text));
    if (at < 0 || at >= Math.max(1, first.length)) throw new Error(`${source}:${line} does not say "${text}"`);
  }
}

/** A text by its letters and digits alone: comment marks and markup do not count. Targets of links were taken out before. */
const lettersOf = (text: string): string => (text.match(/[\p{L}\p{N}]+/gu) ?? []).join("");

/** The quotes as lines of at most `width` columns, each with where it is from and what it is said of. */
export function renderAnswer(quotes: readonly Quote[], width: number): string[] {
  return quotes.flatMap(({ text, source, line, label }) => {
    const place = `${source}:${line}`;
    const about = fit(plain(label), width - place.length - 6);
    return [
      ...wrap(`“${plain(text)}”`, width - 2).map((row) => `  ${row}`),
      `    ${paint("cyan", place)}  ${paint("dim", about)}`.trimEnd(),
    ];
  });
}
