/** Writing to a terminal, a pipe or a program. */
import { styleText } from "node:util";

/** A colour or a style. */
export type Format = Parameters<typeof styleText>[0];

/** Colours the text if standard output is a terminal and NO_COLOR is not set. */
export const paint = (format: Format, text: string): string => styleText(format, text, { stream: process.stdout });

/** The same for standard error. */
export const paintError = (format: Format, text: string): string => styleText(format, text, { stream: process.stderr });

/** A line of result, on standard output. */
export const print = (line = ""): void => void process.stdout.write(`${line}\n`);

/** A line about the result, on standard error, where it disturbs no pipe. */
export const note = (line: string): void => void process.stderr.write(`${line}\n`);

/** A JSON value on standard output: indented, or on one line for streams. */
export const printJson = (value: unknown, indent = 2): void => print(safeJson(value, indent));

/** JSON that does nothing to a terminal: JSON.stringify escapes the C0 controls only. */
export const safeJson = (value: unknown, indent = 2): string =>
  JSON.stringify(value ?? null, undefined, indent).replace(
    /[\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g,
    (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );

/** Text of others in one line: without what moves a terminal's cursor, recolours it or turns the direction of writing. */
export const plain = (text: string): string =>
  text.replace(/[\p{Cc}\u2028\u2029\u202a-\u202e\u2066-\u2069]+/gu, " ").trim();

/** The text in at most `width` columns, with an ellipsis where it was cut. */
export const fit = (text: string, width: number): string =>
  text.length <= width ? text : `${text.slice(0, Math.max(0, width - 1))}…`;

/** Breaks a text into lines of at most `width` columns, at blanks; only a word that is longer is left whole. */
export function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  for (const word of text.split(/\s+/)) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + 1 + word.length <= width) lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(word);
  }
  return lines;
}

/** Columns to write in: the terminal's, at least 60; 100 where there is none. */
export const columns = (): number => Math.max(60, process.stdout.columns || 100);

/** A span of time for people: "0.4 ms", "12 ms", "3.4 s", "2 min 5 s". */
export function span(ms: number): string {
  if (ms < 1 && ms > 0) return `${ms.toFixed(1)} ms`;
  if (ms < 1_000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1_000).toFixed(1)} s`;
  return `${Math.floor(ms / 60_000)} min ${Math.round((ms % 60_000) / 1_000)} s`;
}

/** Ends quietly when the reader of the output has gone, as `| head` does. */
export function endWithReader(): void {
  for (const stream of [process.stdout, process.stderr]) {
    stream.on("error", (error: NodeJS.ErrnoException) => {
      if (error.code !== "EPIPE") throw error;
      process.exit();
    });
  }
}

/** A text as one word of a POSIX shell, in quotes only where it needs them. */
export const shellWord = (text: string): string =>
  /^[\w@%+=:,./^-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
