/** What the callers of a random run write down, and what they are told. */
import { existsSync, readFileSync } from "node:fs";

export type CallerRun = {
  readonly folder: string;
  readonly seed: number;
  readonly callers: number;
  /** How many there are in all lives together. */
  readonly operations: number;
  /** From 0; one after each kill. */
  readonly life: number;
  /** After how many answers in this life the others are lost. */
  readonly deafAt: number;
};

/**
 * What became of an operation: written now, or it was before; refused, or what it would end is not there. Beside it `again` and `reused`: one that was written was asked for once
 * more and had no effect, or another one under its ids was refused.
 */
export type Answer = "new" | "known" | "refused" | "ended" | "again" | "reused";

/** Whether an operation is in the books. */
export const isWritten = (what: Answer): boolean => what === "new" || what === "known";

/** The whole lines of a file, in their order; none if it is not there. A kill may have cut the last one off. */
export function readAnswers(file: string): { readonly n: number; readonly what: Answer }[] {
  if (!existsSync(file)) return [];
  return readFileSync(file, "utf8")
    .split("\n")
    .slice(0, -1)
    .map((line) => {
      const [n, what] = line.split(" ") as [string, Answer];
      return { n: Number(n), what };
    });
}
