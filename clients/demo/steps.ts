/** The demo's steps: one line each, with what it proved and its time. */

import { fixes } from "../cli/fixes.ts";
import { reasonName } from "../cli/names.ts";
import { paint, plain, print, span, wrap } from "../cli/output.ts";
import { explain, type Problem } from "../cli/problem.ts";
import { TaskFailed } from "./ask.ts";

/** Runs a step and prints its line; `proof` says what came out. A step that throws ends the demo by {@link StepFailed}. */
export type RunStep = <T>(name: string, work: () => Promise<T>, proof: (value: T) => string) => Promise<T>;

/** A step failed; its line has been printed. */
export class StepFailed extends Error {
  override readonly name = "StepFailed";
  readonly step: string;
  /** The reason that was printed. */
  readonly reason: string;

  constructor(step: string, reason: string, cause: unknown) {
    super(`the demo failed at the step "${step}"`, { cause });
    this.step = step;
    this.reason = reason;
  }
}

const nameColumns = 13;
const timeColumns = 7;
/** Columns before a step's text. */
const before = 2 + nameColumns + 2 + timeColumns + 2;

/**
 * Makes steps that are at most `width` columns wide. `url` tells the server's address, once it is known, for messages. After the
 * signal steps fail without a line: the processes are being ended.
 */
export function steps(width: number, url: () => string, signal: AbortSignal): RunStep {
  const line = (mark: string, name: string, took: string, text: string) => {
    const [first, ...more] = wrap(plain(text), width - before);
    print(`${mark} ${name.padEnd(nameColumns)}  ${paint("dim", took.padStart(timeColumns))}  ${first}`);
    for (const row of more) print(`${"".padEnd(before)}${row}`);
  };
  return async (name, work, proof) => {
    const began = performance.now();
    const took = () => span(performance.now() - began);
    try {
      const value = await work();
      line(paint("green", "✔"), name, took(), proof(value));
      return value;
    } catch (error) {
      if (signal.aborted) throw new StepFailed(name, "", error);
      const { reason, message, fix, traceId } = problemOf(error, url());
      line(paint("red", "✘"), name, took(), `${reason}: ${message}`);
      for (const row of fix ? wrap(`fix: ${fix}`, width - before) : []) print(`${"".padEnd(before)}${row}`);
      if (traceId) print(`${"".padEnd(before)}trace ${traceId}`);
      throw new StepFailed(name, reason, error);
    }
  };
}

function problemOf(error: unknown, url: string): Pick<Problem, "reason" | "message" | "fix" | "traceId"> {
  if (error instanceof TaskFailed) {
    const reason = error.task.error ? reasonName(error.task.error.reason) : "FAILED";
    const fix = fixes[reason];
    return { reason, message: error.message, traceId: error.task.traceId, ...(fix && { fix }) };
  }
  const problem = explain(error, url);
  return problem.reason === "FAULT" ? { reason: "FAILED", message: problem.message } : problem;
}
