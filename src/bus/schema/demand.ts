import type { JsonValue } from "@bufbuild/protobuf";
import { pointerTo } from "./error.ts";
import type { Facts } from "./facts.ts";
import type { SchemaNode } from "./tree.ts";

/** Something that one schema demands and another does not. */
export type Demand = {
  /** Where it is demanded. */
  readonly path: string;
  /** What is demanded, for people. */
  readonly what: string;
  /** `undecided`: the other may demand it too, in another way. `note`: it decides nothing about values. */
  readonly kind: "decided" | "undecided" | "note";
};

/** One comparison: what it may cost, and what it asks of itself on the way. */
export type Search = {
  readonly count: (comparisons: number) => void;
  readonly same: (one: SchemaNode, other: SchemaNode) => boolean;
  readonly matches: (pattern: string, name: string) => boolean;
  /** Reports what a subschema demands that facts do not imply. */
  readonly demand: (given: Facts, node: SchemaNode, report: Report) => void;
  /** Tells whether facts imply all of a subschema. */
  readonly implies: (given: Facts, node: SchemaNode) => boolean;
};

/** Takes a demand that is not implied. */
export type Report = (demand: Demand) => void;

/** Judges a keyword: reports what its value demands that facts do not imply. */
export type Judge = (search: Search, given: Facts, node: SchemaNode, value: JsonValue, report: Report) => void;

/** A demand of a keyword. */
export const say = (node: SchemaNode, keyword: string, what: string, undecided = false): Demand => ({
  path: pointerTo(node.pointer, keyword),
  what,
  kind: undecided ? "undecided" : "decided",
});

/** A value, cut short. */
export const shown = (value: JsonValue): string => {
  const text = JSON.stringify(value);
  return text.length > 100 ? `${text.slice(0, 99)}…` : text;
};

/** A subschema that only names a type. */
export const ofType = (name: string): SchemaNode => ({
  pointer: "",
  schema: { type: name },
  children: [],
  ref: undefined,
  target: false,
});
