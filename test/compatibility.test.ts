import type { JsonValue } from "@bufbuild/protobuf";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type Change, compareSchemas, type Direction, suggestVersion } from "../src/bus/schema/compatibility.ts";
import { checkSchema, compileSchema } from "../src/bus/schema/schema.ts";
import { schema, schemaPair, value } from "./schema-fixtures/schemas.ts";

const breaks = (direction: Direction, before: JsonValue | undefined, after: JsonValue) =>
  compareSchemas(direction, before, after).some((change) => change.breaking);

const object = (properties: JsonValue, more: Record<string, JsonValue> = {}) => ({
  type: "object",
  properties,
  additionalProperties: false,
  ...more,
});
const list = (item: JsonValue) => ({ type: "array", items: item });
const tree = (leaf: JsonValue) => ({
  $defs: { node: object({ value: leaf, children: list({ $ref: "#/$defs/node" }) }) },
  $ref: "#/$defs/node",
});

describe("a schema that accepts less breaks callers, one that accepts more breaks readers", () => {
  test.each<[string, JsonValue, JsonValue]>([
    ["a type less", { type: ["string", "null"] }, { type: "string" }],
    ["integers instead of numbers", { type: "number" }, { type: "integer" }],
    ["a required property", object({ a: {} }), object({ a: {} }, { required: ["a"] })],
    ["an optional property less", object({ a: {}, b: {} }), object({ a: {} })],
    ["no more additional properties", { properties: { a: {} } }, object({ a: {} })],
    ["a type for what was open", { type: "object" }, { type: "object", properties: { a: { type: "string" } } }],
    ["a value of an enum less", { enum: ["a", "b"] }, { enum: ["a"] }],
    ["a constant instead of an enum", { enum: ["a", "b"] }, { const: "a" }],
    ["an enum instead of a type", { type: "string" }, { enum: ["a"] }],
    ["a larger minimum", { type: "integer", minimum: 1 }, { type: "integer", minimum: 2 }],
    ["an exclusive maximum", { maximum: 1 }, { exclusiveMaximum: 1 }],
    ["an exclusive minimum", { minimum: 1 }, { exclusiveMinimum: 1 }],
    [
      "a pattern for names that were named",
      object({ a1: {} }),
      { allOf: [object({ a1: {} }), { patternProperties: { "^a": { type: "string" } } }] },
    ],
    [
      "items that were named",
      { prefixItems: [{}, {}], items: false },
      {
        allOf: [
          { prefixItems: [{}, {}], items: false },
          { prefixItems: [{}], items: { type: "string" } },
        ],
      },
    ],
    ["a coarser multiple", { multipleOf: 2 }, { multipleOf: 4 }],
    ["a shorter text", { maxLength: 5 }, { maxLength: 4 }],
    ["a pattern", { type: "string" }, { type: "string", pattern: "^a" }],
    ["fewer items", { type: "array" }, { type: "array", maxItems: 3 }],
    ["unique items", { type: "array" }, { type: "array", uniqueItems: true }],
    ["narrower items", list({ type: ["string", "null"] }), list({ type: "string" })],
    ["a narrower first item", { prefixItems: [{}] }, { prefixItems: [{ type: "string" }] }],
    ["a closed tuple", { prefixItems: [{}] }, { prefixItems: [{}], items: false }],
    [
      "something deep inside",
      object({ a: list(object({ b: { type: ["string", "null"] } })) }),
      object({ a: list(object({ b: { type: "string" } })) }),
    ],
    ["something behind a reference", tree({ type: ["string", "null"] }), tree({ type: "string" })],
    ["an alternative less", { anyOf: [{ type: "string" }, { type: "null" }] }, { anyOf: [{ type: "string" }] }],
    ["one more part of allOf", { allOf: [{ type: "string" }] }, { allOf: [{ type: "string" }, { minLength: 1 }] }],
    ["everything", {}, { not: {} }],
    ["names of properties", { propertyNames: { maxLength: 5 } }, { propertyNames: { maxLength: 4 } }],
    ["a contained item", {}, { contains: { type: "string" } }],
  ])("%s", (_name, wide, narrow) => {
    expect([checkSchema(wide), checkSchema(narrow)]).toEqual([undefined, undefined]);
    expect([breaks("input", wide, narrow), breaks("input", narrow, wide)]).toEqual([true, false]);
    expect([breaks("output", wide, narrow), breaks("output", narrow, wide)]).toEqual([false, true]);
    for (const [before, after] of [
      [wide, narrow],
      [narrow, wide],
    ] as const)
      expect(compareSchemas("input", before, after).length).toBeGreaterThan(0);
  });
});

describe("schemas that say the same in other words do not differ", () => {
  test.each<[string, JsonValue, JsonValue]>([
    ["annotations", { type: "string", title: "a" }, { type: "string", description: "b", default: "c", "x-d": 1 }],
    [
      "the order of keys and names",
      { type: ["string", "null"], required: ["a", "b"] },
      { required: ["b", "a"], type: ["null", "string"] },
    ],
    [
      "a reference instead of its target",
      object({ a: { type: "string" } }),
      { $defs: { s: { type: "string" } }, ...object({ a: { $ref: "#/$defs/s" } }) },
    ],
    [
      "another name of a definition",
      tree({ type: "string" }),
      JSON.parse(JSON.stringify(tree({ type: "string" })).replaceAll("node", "knot")),
    ],
    ["allOf of one", { type: "string", minLength: 1 }, { allOf: [{ type: "string" }, { minLength: 1 }] }],
    [
      "nullable by a list of types or by anyOf",
      { type: ["string", "null"] },
      { anyOf: [{ type: "string" }, { type: "null" }] },
    ],
    [
      "a number that can be null by oneOf",
      { type: ["number", "null"] },
      { oneOf: [{ type: "null" }, { type: "number" }] },
    ],
    ["a constant or an enum of one", { const: "a" }, { enum: ["a"] }],
    ["a boolean or its two values", { type: "boolean" }, { enum: [true, false] }],
    ["keywords for other types", { type: "string" }, { type: "string", minimum: 3, required: ["a"], items: false }],
    [
      "unevaluated properties of allOf",
      { allOf: [{ properties: { a: {} } }], unevaluatedProperties: false },
      { properties: { a: {} }, additionalProperties: false },
    ],
    ["unset and anything", {}, { properties: {}, required: [] }],
  ])("%s", (_name, one, other) => {
    for (const direction of ["input", "output"] as const) {
      expect(compareSchemas(direction, one, other)).toEqual([]);
      expect(compareSchemas(direction, other, one)).toEqual([]);
    }
  });

  test("an unset schema is anything", () => {
    expect(compareSchemas("input", undefined, {})).toEqual([]);
    expect(breaks("input", undefined, { type: "object" })).toBe(true);
  });
});

describe("what a change says", () => {
  test("the direction, the place, what is demanded now or no longer", () => {
    const before = object({ q: { type: "string" }, n: { type: "integer", minimum: 0 } }, { required: ["q"] });
    const after = object(
      { q: { type: "string", minLength: 3 }, n: { type: "integer" }, extra: {} },
      { required: ["q"] },
    );
    expect(compareSchemas("input", before, after)).toEqual<Change[]>([
      {
        breaking: true,
        direction: "input",
        path: "/properties/q/minLength",
        message: "now demands a length of at least 3",
      },
      { breaking: false, direction: "input", path: "/properties/n/minimum", message: "no longer demands at least 0" },
      {
        breaking: false,
        direction: "input",
        path: "/additionalProperties",
        message: 'no longer demands that there is no property "extra"',
      },
    ]);
    expect(compareSchemas("output", before, after).map(({ breaking, path }) => [breaking, path])).toEqual([
      [true, "/properties/n/minimum"],
      [true, "/additionalProperties"],
      [false, "/properties/q/minLength"],
    ]);
  });

  test("a format is not checked, so a change of it breaks nobody", () =>
    expect(compareSchemas("input", { type: "string" }, { type: "string", format: "email" })).toEqual<Change[]>([
      {
        breaking: false,
        direction: "input",
        path: "/format",
        message: 'now demands the format "email" (which is not checked)',
      },
    ]));

  test.each<[string, JsonValue, JsonValue]>([
    ["not", { not: { required: ["a"] } }, { not: { required: ["b"] } }],
    [
      "if",
      { if: { required: ["a"] }, else: { required: ["b"] } },
      { if: { required: ["a"] }, else: { required: ["c"] } },
    ],
    ["oneOf", { oneOf: [{ minimum: 1 }, { maximum: 0 }] }, { oneOf: [{ minimum: 2 }, { maximum: 0 }] }],
  ])("%s that differs is breaking, and says that it could not be decided", (_keyword, before, after) => {
    for (const direction of ["input", "output"] as const) {
      const [change] = compareSchemas(direction, before, after);
      expect(change).toMatchObject({ breaking: true, message: expect.stringContaining("could not be decided") });
    }
  });

  test("at most 200 changes, breaking ones first", () => {
    const many = (prefix: string) => Array.from({ length: 300 }, (_, i) => `${prefix}${i}`);
    const changes = compareSchemas("input", { required: many("a") }, { required: many("b") });
    expect(changes).toHaveLength(200);
    expect(changes.every((change) => change.breaking)).toBe(true);
    const fewer = compareSchemas("input", { required: many("a") }, { required: ["b"] });
    expect(fewer.map((change) => change.breaking)).toEqual([true, ...Array.from({ length: 199 }, () => false)]);
  });

  test("schemas too entangled to compare are breaking, in bounded time, unless they are the same", () => {
    const knot = (least: number): JsonValue => ({
      $ref: "#/$defs/d0",
      $defs: Object.fromEntries(
        Array.from({ length: 60 }, (_, i) => [
          `d${i}`,
          {
            anyOf: [1, 2, 3].map((step) => ({
              items: { $ref: `#/$defs/d${(i * 7 + step) % 60}` },
              minItems: least + step,
            })),
          },
        ]),
      ),
    });
    const before = process.threadCpuUsage();
    expect(compareSchemas("input", knot(0), knot(1))).toEqual([expect.objectContaining({ breaking: true, path: "" })]);
    const { user, system } = process.threadCpuUsage(before);
    expect((user + system) / 1_000).toBeLessThan(500);
    expect(compareSchemas("input", knot(0), knot(0))).toEqual([]);
  });
});

describe("any two schemas", () => {
  const values = fc.array(value, { minLength: 15, maxLength: 25 });
  const pairs = fc.oneof({ weight: 3, arbitrary: schemaPair }, { weight: 1, arbitrary: fc.tuple(schema, schema) });

  test("no breaking change means that what one accepts the other accepts", () => {
    const judged = { pairs: 0, harmless: 0, accepted: 0 };
    fc.assert(
      fc.property(pairs, values, ([before, after], samples) => {
        if (checkSchema(before) || checkSchema(after)) return;
        judged.pairs += 1;
        const [earlier, later] = [compileSchema(before), compileSchema(after)];
        for (const [direction, from, to] of [
          ["input", earlier, later],
          ["output", later, earlier],
        ] as const) {
          if (breaks(direction, before, after)) continue;
          judged.harmless += 1;
          for (const sample of samples.filter((each) => from.check(each).length === 0)) {
            judged.accepted += 1;
            expect([direction, sample, to.check(sample)]).toEqual([direction, sample, []]);
          }
        }
      }),
      { numRuns: 3_000 },
    );
    // Not by refusing everything.
    expect(judged.pairs).toBeGreaterThan(2_000);
    expect(judged.harmless).toBeGreaterThan(1_500);
    expect(judged.accepted).toBeGreaterThan(10_000);
  });

  test("a schema has no changes against itself, nor against itself with its keys in another order", () => {
    const turned = (node: JsonValue): JsonValue => {
      if (Array.isArray(node)) return node.map(turned);
      if (typeof node !== "object" || node === null) return node;
      return Object.fromEntries(
        Object.entries(node)
          .reverse()
          .map(([key, inner]) => [key, turned(inner)]),
      );
    };
    fc.assert(
      fc.property(schema, (one) => {
        if (!checkSchema(one)) expect(compareSchemas("input", one, turned(one))).toEqual([]);
      }),
      { numRuns: 500 },
    );
  });

  test("breaking changes come first, and the other direction sees the reverse", () =>
    fc.assert(
      fc.property(schemaPair, ([before, after]) => {
        if (checkSchema(before) || checkSchema(after)) return;
        const changes = compareSchemas("input", before, after);
        expect(changes.map((change) => change.breaking)).toEqual(
          changes.map((change) => change.breaking).sort((a, b) => Number(b) - Number(a)),
        );
        expect(breaks("output", after, before)).toBe(changes.some((change) => change.breaking));
      }),
      { numRuns: 500 },
    ));
});

describe("the version suggested", () => {
  const change = (breaking: boolean): Change => ({ breaking, direction: "input", path: "", message: "" });
  test.each([
    ["1.2.3", [], "1.2.4"],
    ["1.2.3", [change(false)], "1.3.0"],
    ["1.2.3", [change(true), change(false)], "2.0.0"],
    ["0.2.3", [], "0.2.4"],
    ["0.2.3", [change(false)], "0.2.4"],
    ["0.2.3", [change(true)], "0.3.0"],
    ["1.0.0-rc.1", [change(true)], "1.0.0"],
    ["1.2.3+build", [change(false)], "1.3.0"],
  ] as const)("after %s with %j: %s", (before, changes, expected) =>
    expect(suggestVersion(before, changes)).toBe(expected),
  );
});
