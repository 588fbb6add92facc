import { createContext, Script } from "node:vm";
import { maxUnwatchedPatternWork, maxWatchedCheckMs } from "./schema-limits.ts";

const tooManySteps = Symbol("too many steps");
const tooMuchPatternWork = Symbol("too much pattern work");

/** Counts what a check costs, and ends it when that is too much. */
export type Meter = {
  /** Counts the application of a subschema to a value: `weight` steps, and `passes` over the value's keys, items or characters. */
  readonly step: (value: unknown, weight: number, passes: number) => void;
  /** Counts steps. */
  readonly steps: (count: number) => void;
  /** Counts work of patterns, in instructions × characters. */
  readonly patternWork: (work: number) => void;
  /** Runs a check within `maxSteps`; `undefined` = it cost too much. */
  readonly run: <T>(maxSteps: number, check: () => T) => T | undefined;
};

const watched = createContext(Object.create(null) as { check?: () => unknown });
const watchedScript = new Script("check()");

/** Runs a function under a clock that can stop it anywhere: about 0.2 ms dearer than to call it. */
const watch = <T>(check: () => T): T => {
  watched.check = check;
  try {
    return watchedScript.runInContext(watched, { timeout: maxWatchedCheckMs }) as T;
  } finally {
    watched.check = undefined;
  }
};

const isTooCostly = (error: unknown): boolean =>
  error === tooManySteps ||
  // The stack's end: a value nested thousands deep under a schema that follows it.
  error instanceof RangeError ||
  (error as { code?: string }).code === "ERR_SCRIPT_EXECUTION_TIMEOUT";

/** How many parts of a value one pass over it touches. */
const breadth = (value: unknown): number => {
  if (typeof value === "string") return value.length >> 3;
  if (typeof value !== "object" || value === null) return 0;
  if (Array.isArray(value)) return value.length;
  let count = 0;
  for (const _ in value) count += 1;
  return count;
};

/** A meter for one compiled schema; its checks never overlap, being synchronous. */
export const createMeter = (): Meter => {
  let stepsLeft = 0;
  let workLeft = 0;
  const steps = (count: number): void => {
    stepsLeft -= count;
    if (stepsLeft < 0) throw tooManySteps;
  };
  const attempt = <T>(maxSteps: number, maxWork: number, check: () => T): T => {
    stepsLeft = maxSteps;
    workLeft = maxWork;
    return check();
  };
  const run = <T>(maxSteps: number, check: () => T): T | undefined => {
    try {
      try {
        return attempt(maxSteps, maxUnwatchedPatternWork, check);
      } catch (error) {
        if (error !== tooMuchPatternWork) throw error;
        return watch(() => attempt(maxSteps, Number.POSITIVE_INFINITY, check));
      }
    } catch (error) {
      if (isTooCostly(error)) return undefined;
      throw error;
    }
  };
  return {
    step: (value, weight, passes) => steps(passes === 0 ? weight : weight + passes * breadth(value)),
    steps,
    patternWork: (work) => {
      workLeft -= work;
      if (workLeft < 0) throw tooMuchPatternWork;
    },
    run,
  };
};
