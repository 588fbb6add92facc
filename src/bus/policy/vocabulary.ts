/** What policies can speak of, read from `policies.cedarschema`. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Cedar } from "./cedar.ts";

/** The types that a value of a context has. */
export type ContextType = "Long" | "String" | "Bool" | "datetime";
export type ContextField = { readonly type: ContextType; readonly required: boolean };

/** Who may do an action to what, and in which circumstances it is decided. */
export type ActionShape = {
  readonly principals: readonly string[];
  readonly resources: readonly string[];
  readonly context: Readonly<Record<string, ContextField>>;
};

export type Vocabulary = {
  /** The schema's text, for people and for the validator. */
  readonly text: string;
  readonly actions: ReadonlyMap<string, ActionShape>;
  readonly types: ReadonlySet<string>;
};

export function readVocabulary(cedar: Cedar): Vocabulary {
  const text = readFileSync(join(import.meta.dirname, "policies.cedarschema"), "utf8");
  const answer = cedar.ask((wasm) => wasm.schemaToJsonWithResolvedTypes(text));
  if (answer.type === "failure") throw new Error(`policies.cedarschema: ${answer.errors[0]?.message}`);
  const schema = answer.json[""] as unknown as Schema;
  const actions = Object.entries(schema.actions).map(([name, { appliesTo }]): [string, ActionShape] => [
    name,
    {
      principals: appliesTo.principalTypes,
      resources: appliesTo.resourceTypes,
      context: Object.fromEntries(
        Object.entries(attributesOf(schema, appliesTo.context)).map(([field, { type, name: of, required = true }]) => [
          field,
          { type: (of ?? type) as ContextType, required },
        ]),
      ),
    },
  ]);
  return { text, actions: new Map(actions), types: new Set(Object.keys(schema.entityTypes)) };
}

type Attribute = { readonly type: string; readonly name?: string; readonly required?: boolean };
type ContextShape = { readonly type: string; readonly attributes?: Readonly<Record<string, Attribute>> };
type Schema = {
  readonly commonTypes: Readonly<Record<string, ContextShape>>;
  readonly entityTypes: Readonly<Record<string, unknown>>;
  readonly actions: Readonly<
    Record<string, { readonly appliesTo: { principalTypes: string[]; resourceTypes: string[]; context: ContextShape } }>
  >;
};

const attributesOf = (schema: Schema, shape: ContextShape): Readonly<Record<string, Attribute>> =>
  shape.attributes ?? schema.commonTypes[shape.type]?.attributes ?? {};
