/** The demo's steps: one line each, with what it proved and its time; for people, or as JSON. */

import { fixes } from "../cli/fixes.ts";
import { reasonName } from "../cli/names.ts";
import { paint, plain, print, printJson, span, wrap } from "../cli/output.ts";
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

const nameColumns = 15;
const timeColumns = 7;
/** Columns before a step's text. */
const before = 2 + nameColumns + 2 + timeColumns + 2;

/** How steps are made. */
export type StepsOptions = {
  /** The columns there are, at most. */
  readonly width: number;
  /** Tells the server's address, once it is known, for messages. */
  readonly url: () => string;
  /** After it steps fail without a line: the processes are being ended. */
  readonly signal: AbortSignal;
  /** A line of JSON for each: `{step, state, tookMs}` with its `proof`, or with `reason`, `message`, `fix` and `traceId`. */
  readonly json: boolean;
};

/** Makes steps. */
export function steps({ width, url, signal, json }: StepsOptions): RunStep {
  const tell = json ? (told: Told) => printJson(told, 0) : (told: Told) => printStep(told, width);
  return async (name, work, proof) => {
    const began = performance.now();
    const tookMs = () => Math.round((performance.now() - began) * 10) / 10;
    try {
      const value = await work();
      tell({ step: name, state: "ok", tookMs: tookMs(), proof: proof(value) });
      return value;
    } catch (error) {
      if (signal.aborted) throw new StepFailed(name, "", error);
      const { reason, message, fix, traceId } = problemOf(error, url());
      tell({ step: name, state: "failed", tookMs: tookMs(), reason, message, fix, traceId });
      throw new StepFailed(name, reason, error);
    }
  };
}

/** A step that has ended. */
type Told = { readonly step: string; readonly tookMs: number } & (
  | { readonly state: "ok"; readonly proof: string }
  | ({ readonly state: "failed" } & Pick<Problem, "reason" | "message"> & {
        readonly fix: string | undefined;
        readonly traceId: string | undefined;
      })
);

function printStep(told: Told, width: number): void {
  const indented = (text: string) => print(`${"".padEnd(before)}${text}`);
  const isOk = told.state === "ok";
  const mark = isOk ? paint("green", "✔") : paint("red", "✘");
  const [first, ...more] = wrap(plain(isOk ? told.proof : `${told.reason}: ${told.message}`), width - before);
  const took = span(told.tookMs).padStart(timeColumns);
  print(`${mark} ${told.step.padEnd(nameColumns)}  ${paint("dim", took)}  ${first}`);
  for (const row of more) indented(row);
  if (isOk) return;
  for (const row of told.fix ? wrap(`fix: ${told.fix}`, width - before) : []) indented(row);
  if (told.traceId) indented(`trace ${told.traceId}`);
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
