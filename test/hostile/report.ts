/** The report for people. */
import { chart } from "./memory.ts";
import type { Result, Row } from "./run.ts";

/** The table of attacks, the memory's curve, and what is wrong. */
export function toText({ isTls, rows, memory, startMib, baselineMib, pooled, problems }: Result): string {
  const lines = [
    `\n== ${isTls ? "over TLS" : "in clear"}: memory ${Math.round(startMib)} MiB at the start, ${Math.round(baselineMib)} MiB at most in the warm-up\n`,
    table([head, ...rows.map(toCells)]),
    `\nall kinds: p99 ${pooled.before.toFixed(1)} ms before, ${pooled.harmless.toFixed(1)} under harmless load, ${pooled.during.toFixed(1)} during, ${pooled.after.toFixed(1)} after`,
    `\n${chart(memory)}\n`,
    ...rows.flatMap(({ attack, problems: each }) => each.map((problem) => `FAILED ${attack}: ${problem}`)),
    ...problems.map((problem) => `FAILED ${problem}`),
  ];
  return lines.join("\n");
}

const head = [
  "attack",
  "attempts",
  "ends",
  "MiB before/peak/after",
  "p99 ms before/harmless/during/after",
  "×before",
  "×harmless",
  "longest ms",
  "tries",
];

function toCells({ attack, attempts, ends, memory, known, longestMs, tries, twin }: Row): string[] {
  const { beforeMib, peakMib, afterMib } = memory;
  return [
    attack,
    String(attempts),
    Object.entries(ends)
      .map(([end, count]) => `${end} ${count}`)
      .join(", "),
    [beforeMib, peakMib, afterMib].map((mib) => mib.toFixed(0)).join(" / "),
    [known.before, known.harmless, known.during, known.after].map((ms) => ms.toFixed(1)).join(" / "),
    (known.during / known.before).toFixed(2),
    known.harmless === 0 ? "-" : `${(known.during / known.harmless).toFixed(2)} ${twin}`,
    longestMs.toFixed(0),
    String(tries),
  ];
}

function table(rows: readonly string[][]): string {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  return rows
    .map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column]!))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}
