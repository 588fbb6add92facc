/*
 * Schemas and patterns come from anybody, and run in the one process that serves everybody. Every limit is far above what people write
 * by hand, and low enough that neither compiling a schema nor checking a value holds the event loop for more than about 100 ms.
 */

/** A schema as JSON, in UTF-8. What the API documents. */
export const maxSchemaBytes = 65_536;

/** Nesting of JSON inside a schema: about 40 levels of objects in objects. Compiling recurses. */
export const maxSchemaDepth = 80;

/** Subschemas in a schema, and keys of `dependentRequired`: each becomes code, about 0.1 ms to generate and to compile. */
export const maxSubschemas = 500;

/** Entries of all `enum`s of a schema together: each is compared with at every check. */
export const maxEnumEntries = 2_000;

/** Properties that all `unevaluatedProperties` of a schema have to tell from others: schemas that include each other multiply them. */
export const maxUnevaluatedNames = 2_000;

/** Different targets of `$ref` in a schema: each becomes a function, about 0.3 ms to compile. */
export const maxRefTargets = 100;

/** UTF-16 units of one `pattern`, or key of `patternProperties`. */
export const maxPatternLength = 512;

/** Patterns in a schema. */
export const maxPatterns = 100;

/** Instructions of one pattern's program: `^.{0,500}$` has about 1,000. A pattern's time is its program × its text, at worst. */
export const maxPatternProgram = 1_100;

/** Instructions of all patterns of a schema. */
export const maxPatternPrograms = 5_000;

/** Steps that any value needs before a schema looks inside of it: `allOf` of `$ref`s to `allOf` of `$ref`s doubles at each level. */
export const maxInPlaceSteps = 20_000;

/** Steps of one check: a subschema applied to a value is at least one. A value of 1 MiB has at most 500,000 parts. */
export const maxCheckSteps = 1_500_000;

/** Subschemas above which the generated code is too large for the engine to optimise, and a step takes four times as long. */
export const maxOptimizedSubschemas = 60;

/** Steps that each key of an object counts, each time that a keyword goes over all of them. */
export const stepsPerKey = 8;

/** Steps of a second look at a refused value, for all of its violations and not just the first. */
export const maxDetailSteps = 20_000;

/** Subschemas up to which that second look is worth its compiling. */
export const maxDetailSubschemas = 300;

/**
 * Program instructions × characters that patterns may need in a check, at worst (about 0.1 µs each), before a clock watches over it. Counted
 * rather than timed, so that no ordinary check depends on how busy the machine is.
 */
export const maxUnwatchedPatternWork = 100_000;

/** How long a check with more pattern work than that may take, in all. */
export const maxWatchedCheckMs = 65;

/** Pattern work in the whole process after which all matchers forget what they remember: it bounds their memory. */
export const maxRememberedPatternWork = 4_000_000;

/** Violations that a check answers. */
export const maxViolations = 20;

/** Weight of the compiled schemas that a cache keeps: a subschema weighs 1 and takes about 2 KB, a pattern 50. */
export const maxCachedWeight = 50_000;
