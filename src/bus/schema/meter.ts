import { createContext, Script } from "node:vm";
import { maxUnwatchedPatternWork, maxWatchedCheckMs, stepsPerKey } from "./limits.ts";

const tooManySteps = Symbol("too many steps");
const tooMuchPatternWork = Symbol("too much pattern work");

/** Counts what a check costs, and ends it when that is too much. */
export type Meter = {
  /** Counts the application of a subschema: `weight` steps, `passes` over the keys or characters of the value, `itemSteps` for each of its items. */
  readonly step: (value: unknown, weight: number, passes: number, itemSteps: number) => void;
  /** Counts steps. */
  readonly steps: (count: number) => void;
  /** Counts work of patterns, in instructions × characters. */
  readonly patternWork: (work: number) => void;
  /** Runs a check within `maxSteps`; `undefined` = it cost too much. */
  readonly run: <T>(maxSteps: number, check: () => T) => T | undefined;
};

const watched = createContext(Object.create(null) as { check?: () => unknown });
const watchedScript = new Script("check()");

const isTimeout = (error: unknown): boolean =>
  (error as { code?: string } | undefined)?.code === "ERR_SCRIPT_EXECUTION_TIMEOUT";

/** Runs a function under a clock that can stop it anywhere: about 0.2 ms dearer than to call it. */
const watch = <T>(check: () => T): T => {
  watched.check = check;
  try {
    return watchedScript.runInContext(watched, { timeout: maxWatchedCheckMs }) as T;
  } finally {
    watched.check = undefined;
  }
};

/** Tries in all where the clock ran out while the machine was busy with others. */
const maxWatchedTries = 3;

/** Watches over a check. The clock is on the wall, so a check that had little of the processor until it was stopped is tried again. */
const watchFairly = <T>(check: () => T): T => {
  for (let tries = 1; ; tries += 1) {
    const before = process.threadCpuUsage();
    try {
      return watch(check);
    } catch (error) {
      const { user, system } = process.threadCpuUsage(before);
      const starved = (user + system) / 1_000 < 0.7 * maxWatchedCheckMs;
      if (!isTimeout(error) || !starved || tries === maxWatchedTries) throw error;
    }
  }
};

const isTooCostly = (error: unknown): boolean =>
  error === tooManySteps ||
  // The stack's end: a value nested thousands deep under a schema that follows it.
  error instanceof RangeError ||
  isTimeout(error);

const keyCount = (value: object): number => {
  let count = 0;
  for (const _ in value) count += 1;
  return count;
};

/** A meter for one compiled schema; its checks never overlap, being synchronous. */
export const createMeter = (): Meter => {
  let stepsLeft = 0;
  let workLeft = 0;
  let lastObject: object | undefined;
  let lastBreadth = 0;
  /** Steps of one pass over a value. */
  const breadth = (value: unknown): number => {
    if (typeof value === "string") return value.length >> 2;
    if (typeof value !== "object" || value === null || Array.isArray(value)) return 0;
    // Often the same again: counting keys is itself a pass.
    if (value !== lastObject) lastBreadth = stepsPerKey * keyCount(value);
    lastObject = value;
    return lastBreadth;
  };
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
        return watchFairly(() => attempt(maxSteps, Number.POSITIVE_INFINITY, check));
      }
    } catch (error) {
      if (isTooCostly(error)) return undefined;
      throw error;
    } finally {
      lastObject = undefined;
    }
  };
  return {
    step: (value, weight, passes, itemSteps) => {
      let count = weight;
      if (passes > 0) count += passes * breadth(value);
      if (itemSteps > 0 && Array.isArray(value)) count += itemSteps * value.length;
      steps(count);
    },
    steps,
    patternWork: (work) => {
      workLeft -= work;
      if (workLeft < 0) throw tooMuchPatternWork;
    },
    run,
  };
};
