/** Whether a text is a policy: one statement that fits the schema. */
import { Fault, type FieldViolation } from "../../errors.ts";
import { type Cedar, CedarFell, type DetailedError } from "./cedar.ts";
import { maxNesting, nestingOf } from "./nesting.ts";
import { type Facts, factsOf } from "./statement.ts";
import type { Vocabulary } from "./vocabulary.ts";

/** Something wrong or odd in a text; counted from 1, in lines and characters. */
export type Remark = { readonly line: number; readonly column: number; readonly message: string };

/** A text that may be kept, or all that is wrong with it. */
export type Checked = { readonly warnings: readonly Remark[] } & (
  | { readonly facts: Facts; readonly faults?: undefined }
  | { readonly faults: readonly Remark[] }
);

const maxRemarks = 50;
const maxMessageLength = 1_024;
const annotations: ReadonlySet<string> = new Set(["id", "description", "approval"]);

export function checkPolicy(cedar: Cedar, vocabulary: Vocabulary, text: string): Checked {
  const nesting = nestingOf(text);
  const tooDeep = {
    line: 1,
    column: 1,
    message: "it is nested too deeply: compare with a set, or write several policies",
  };
  if (nesting > maxNesting) return { warnings: [], faults: [tooDeep] };
  try {
    return validate(cedar, vocabulary, text);
  } catch (error) {
    if (error instanceof CedarFell) return { warnings: [], faults: [tooDeep] };
    throw error;
  }
}

function validate(cedar: Cedar, vocabulary: Vocabulary, text: string): Checked {
  const schema = vocabulary.text;
  const answer = cedar.ask((wasm) => wasm.validate({ schema, policies: { staticPolicies: { policy: text } } }));
  if (answer.type === "failure") return { warnings: [], faults: remarks(text, answer.errors) };
  const warnings = remarks(text, [...answer.validationWarnings.map(({ error }) => error), ...answer.otherWarnings]);
  const errors = answer.validationErrors.map(({ error }) => error);
  if (errors.length > 0) return { warnings, faults: remarks(text, errors) };
  return { warnings: [...warnings, ...oddAnnotations(cedar, text)].slice(0, maxRemarks), facts: factsOf(cedar, text) };
}

/** A misspelt `@approval` would permit without asking anybody. */
function oddAnnotations(cedar: Cedar, text: string): Remark[] {
  const answer = cedar.ask((wasm) => wasm.policyToJson(text));
  if (answer.type === "failure") return [];
  const { effect, annotations: given = {} } = answer.json;
  return Object.keys(given).flatMap((name) => {
    const where = lineAndColumn(text, Buffer.byteLength(text.slice(0, Math.max(0, text.indexOf(`@${name}`)))));
    if (!annotations.has(name))
      return [{ ...where, message: `the annotation @${name.slice(0, 64)} means nothing here` }];
    if (name === "approval" && effect === "forbid")
      return [{ ...where, message: "@approval means nothing on a forbid: what is forbidden cannot be approved" }];
    return [];
  });
}

const remarks = (text: string, errors: readonly DetailedError[]): Remark[] =>
  errors.slice(0, maxRemarks).map(({ message, help, sourceLocations }) => {
    const [place] = sourceLocations ?? [];
    const plain = message
      .replace(/^for policy `policy`[,:] /, "")
      .replace(/^failed to parse policy with id `policy` from string: /, "")
      .replace(/^failed to parse (policy|template) from string: /, "");
    const expected = place?.label ? `; ${place.label}` : "";
    const advice = help ? `; ${help}` : "";
    return {
      ...lineAndColumn(text, place?.start ?? 0),
      message: `${plain}${expected}${advice}`.slice(0, maxMessageLength),
    };
  });

/** Of a place that is counted in bytes of UTF-8. */
function lineAndColumn(text: string, byte: number): { readonly line: number; readonly column: number } {
  const lines = Buffer.from(text).subarray(0, byte).toString().split("\n");
  return { line: lines.length, column: [...lines.at(-1)!].length + 1 };
}

/** INVALID_POLICY for what is wrong with the text in a field. */
export function invalidPolicy(field: string, faults: readonly Remark[]): Fault {
  const [first] = faults;
  const { line, column, message } = first!;
  const fields: FieldViolation[] = faults.map((one) => ({
    field,
    description: `line ${one.line}, column ${one.column}: ${one.message}`,
  }));
  return new Fault(
    "INVALID_POLICY",
    `${field}, line ${line}, column ${column}: ${message}`,
    { field, line: String(line), column: String(column) },
    { fields },
  );
}
