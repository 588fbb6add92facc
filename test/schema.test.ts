import { randomBytes } from "node:crypto";
import type { JsonObject, JsonValue } from "@bufbuild/protobuf";
import { Ajv2020 } from "ajv/dist/2020.js";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { linearRegex } from "../src/bus/schema/regex.ts";
import { checkSchema, compileSchema, costKeyword, schemaCache, schemaDigest } from "../src/bus/schema/schema.ts";
import { accepts } from "./schema-fixtures/reference.ts";
import { schema as anySchema, value as anyValue } from "./schema-fixtures/schemas.ts";

const many = <T>(count: number, make: (index: number) => T): T[] =>
  Array.from({ length: count }, (_, index) => make(index));
const named = <T>(count: number, make: (index: number) => T): Record<string, T> =>
  Object.fromEntries(many(count, (index) => [`p${index}`, make(index)]));
const nested = (depth: number, leaf: JsonValue, wrap: (inner: JsonValue) => JsonValue): JsonValue =>
  many(depth, () => 0).reduce<JsonValue>(wrap, leaf);
const violations = (schema: JsonValue, value: JsonValue) => compileSchema(schema).check(value);

/** The time of this thread's own work: other processes do not count. */
const cpuMs = (work: () => void): number => {
  const before = process.threadCpuUsage();
  work();
  const { user, system } = process.threadCpuUsage(before);
  return (user + system) / 1_000;
};

describe("schemas that are refused, with the place and the reason", () => {
  test.each<[JsonValue, string, RegExp]>([
    [[], "", /must be a schema/],
    [{ type: "strin" }, "/type", /must be one or several of/],
    [{ properties: { a: { type: ["string", "text"] } } }, "/properties/a/type", /must be one or several of/],
    [{ requierd: ["a"] }, "/requierd", /did you mean `required`/],
    [{ properties: { a: { minlength: 1 } } }, "/properties/a/minlength", /did you mean `minLength`/],
    [{ banana: 1 }, "/banana", /begins with `x-`/],
    [{ nullable: true }, "/nullable", /"null"/],
    [{ items: [{}] }, "/items", /prefixItems/],
    [{ additionalItems: false }, "/additionalItems", /prefixItems/],
    [{ exclusiveMinimum: true }, "/exclusiveMinimum", /must be a number/],
    [{ required: "a" }, "/required", /array of strings/],
    [{ required: ["a", "a"] }, "/required", /twice/],
    [{ minLength: -1 }, "/minLength", /whole number/],
    [{ multipleOf: 0 }, "/multipleOf", /above 0/],
    [{ enum: [] }, "/enum", /at least one/],
    [{ anyOf: [] }, "/anyOf", /at least one/],
    [{ properties: { "a/b~c": { type: 1 } } }, "/properties/a~1b~0c/type", /must be one or several of/],
    [{ $ref: "https://example.com/schema.json" }, "/$ref", /inside of the same schema/],
    [{ $ref: "other.json#/a" }, "/$ref", /inside of the same schema/],
    [{ $ref: "file:///etc/passwd" }, "/$ref", /inside of the same schema/],
    [{ $ref: "#name", $defs: { a: { $anchor: "name" } } }, "/$ref", /inside of the same schema/],
    [{ $ref: "#/$defs/nowhere" }, "/$ref", /leads to no schema/],
    [{ $ref: "#/required/0", required: ["a"] }, "/$ref", /leads to no schema/],
    [{ $dynamicRef: "#a" }, "/$dynamicRef", /use `\$ref`/],
    [{ $defs: { a: { $id: "b" } } }, "/$defs/a/$id", /root/],
    [{ $schema: "https://example.com/own" }, "/$schema", /json-schema.org/],
    [{ unevaluatedItems: false }, "/unevaluatedItems", /not supported/],
    [{ anyOf: [{ properties: { a: {} } }], unevaluatedProperties: false }, "/unevaluatedProperties", /not in `anyOf`/],
    [JSON.parse('{"properties":{"__proto__":{"type":"string"}}}'), "/properties", /__proto__/],
    [{ required: ["__proto__"] }, "/required", /__proto__/],
  ])("%j", (schema, path, message) => {
    const fault = checkSchema(schema);
    expect(fault?.path).toBe(path);
    expect(fault?.message).toMatch(message);
    expect(() => compileSchema(schema)).toThrow(message);
  });

  test.each<[string, RegExp]>([
    ["(", /Unterminated group/],
    ["a(?=b)", /look-ahead/],
    ["(?<!a)b", /look-behind/],
    ["(a)\\1", /back-references/],
    ["(?<n>a)\\k<n>", /back-references/],
    ["(?i:a)", /flags/],
    ["\\p{Emoji}", /general categories and scripts/],
    ["a{2000}", /more than 1,000/],
    ["((a{100}){100})", /usable pattern/],
    ["a{1000}".repeat(3), /too much/],
    ["a".repeat(513), /longer than 512/],
  ])("the pattern %j", (pattern, message) => {
    expect(checkSchema({ properties: { a: { pattern } } })).toEqual({
      path: "/properties/a/pattern",
      message: expect.stringMatching(message),
    });
    expect(checkSchema({ patternProperties: { [pattern]: {} } })?.message).toMatch(message);
  });

  test.each<[string, JsonValue, RegExp]>([
    ["a schema over 64 KiB", { description: "a".repeat(65_536) }, /bytes/],
    ["a schema nested 10,000 deep", nested(10_000, {}, (inner) => ({ not: inner })), /nested deeper/],
    ["too many subschemas", { properties: named(501, () => ({})) }, /subschemas/],
    ["too many entries of enums", { enum: many(2_001, (i) => i) }, /enum/],
    ["too many patterns", { allOf: many(101, () => ({ pattern: "a" })) }, /patterns/],
    ["too large patterns", { allOf: many(20, () => ({ pattern: "[ab]{1000}" })) }, /too large together/],
    [
      "too many targets of references",
      { $defs: named(101, () => ({})), allOf: many(101, (i) => ({ $ref: `#/$defs/p${i}` })) },
      /different schemas/,
    ],
    ["a reference to itself", { $ref: "#" }, /never end/],
    [
      "a circle of references",
      { $defs: { a: { anyOf: [{ $ref: "#/$defs/b" }] }, b: { not: { $ref: "#/$defs/a" } } } },
      /never end/,
    ],
    [
      "combinations that double 20 times",
      {
        $ref: "#/$defs/p0",
        $defs: named(20, (i) =>
          i === 19 ? {} : { allOf: [{ $ref: `#/$defs/p${i + 1}` }, { $ref: `#/$defs/p${i + 1}` }] },
        ),
      },
      /too long/,
    ],
  ])("%s", (_name, schema, message) => {
    expect(checkSchema(schema)?.message).toMatch(message);
    expect(() => compileSchema(schema)).toThrow(message);
  });
});

describe("schemas that are accepted", () => {
  test.each<[string, JsonValue]>([
    ["anything", {}],
    [
      "annotations, formats, extensions",
      {
        title: "t",
        description: "d",
        default: 1,
        examples: [],
        format: "email",
        "x-own": { a: 1 },
        $comment: "c",
        $id: "urn:a",
        $schema: "http://json-schema.org/draft-07/schema#",
      },
    ],
    [
      "`definitions`, and references to anything inside",
      { definitions: { "a b": {} }, properties: { a: { $ref: "#/definitions/a%20b" }, b: { $ref: "#/properties/a" } } },
    ],
    ["a tree that follows its value", { properties: { children: { items: { $ref: "#" } } } }],
    [
      "constants that look like schemas",
      { const: { $ref: "nowhere", $id: "x", requierd: 1 }, enum: [{ $ref: "#/nope" }] },
    ],
    ["properties called like keywords", { properties: { $ref: { type: "string" }, $id: {}, required: {}, type: {} } }],
  ])("%s", (_name, schema) => {
    expect(checkSchema(schema)).toBeUndefined();
    compileSchema(schema);
  });

  test("what is accepted is a schema by the official metaschema", () => {
    const isSchema = new Ajv2020({ strict: false }).getSchema("https://json-schema.org/draft/2020-12/schema")!;
    fc.assert(
      fc.property(anySchema, (schema) => {
        if (!checkSchema(schema)) expect(isSchema(schema), JSON.stringify(schema)).toBe(true);
      }),
      { numRuns: 500 },
    );
  });
});

describe("checks", () => {
  test("schemas mean what a plain reading of the specification says", () =>
    fc.assert(
      fc.property(anySchema, fc.array(anyValue, { minLength: 10, maxLength: 20 }), (schema, values) => {
        if (checkSchema(schema)) return;
        const checker = compileSchema(schema);
        for (const value of values)
          expect([value, checker.check(value).length === 0]).toEqual([value, accepts(schema, schema, value)]);
      }),
      { numRuns: 1_500 },
    ));

  test("an array shorter than `prefixItems` is still held to the rest", () =>
    expect(violations({ prefixItems: [{ type: "string" }], contains: { const: 1 } }, [])).toHaveLength(1));

  test("what one array contains says nothing about the next", () =>
    expect(violations({ additionalProperties: { contains: { type: "string" } } }, { a: ["x"], b: [] })).toHaveLength(
      1,
    ));

  test("violations name the field, the keyword and what is wanted", () => {
    const schema: JsonValue = {
      type: "object",
      properties: {
        query: { type: "string", minLength: 3 },
        mode: { enum: ["fast", "deep"] },
        items: {
          items: { properties: { name: { type: ["string", "null"] }, "a b": { const: 1 } }, required: ["name"] },
        },
        byNumber: { additionalProperties: { type: "integer" } },
      },
      required: ["query"],
      additionalProperties: false,
    };
    const value = { mode: "slow", items: [{ name: "x" }, { name: 3, "a b": 2 }, {}], byNumber: { "3": "x" }, extra: 1 };
    expect(
      new Set(violations(schema, value).map(({ path, keyword, message }) => `${path}|${keyword}|${message}`)),
    ).toEqual(
      new Set([
        "query|required|is required",
        "extra|additionalProperties|is not allowed here",
        'mode|enum|must be one of "fast", "deep"',
        "items[1].name|type|must be string or null",
        'items[1]["a b"]|const|must be 1',
        "items[2].name|required|is required",
        'byNumber["3"]|type|must be integer',
      ]),
    );
    expect(violations(schema, [])).toEqual([{ path: "", keyword: "type", message: "must be object" }]);
  });

  test("at most 20 violations are answered, of bounded length, and never the value", () => {
    const wide = violations(
      { additionalProperties: { type: "integer" }, propertyNames: { maxLength: 5 } },
      named(500, () => "secret"),
    );
    expect(wide).toHaveLength(20);
    const long = violations(
      { properties: { ["k".repeat(5_000)]: { enum: many(1_000, (i) => `v${i}`) } } },
      { ["k".repeat(5_000)]: "secret" },
    );
    expect(JSON.stringify([wide, long])).not.toContain("secret");
    expect(JSON.stringify(long).length).toBeLessThan(700);
  });

  test("names that every object inherits are ordinary names", () => {
    expect(violations({ required: ["constructor", "toString"] }, {})).toHaveLength(2);
    expect(
      violations({ properties: { constructor: { type: "string" }, hasOwnProperty: { type: "string" } } }, {}),
    ).toEqual([]);
    expect(violations({ properties: { constructor: { type: "string" } } }, { constructor: 1 })).toHaveLength(1);
    const polluting = JSON.parse(
      '{"__proto__":{"polluted":1},"constructor":{"prototype":{"polluted":1}}}',
    ) as JsonValue;
    expect(
      violations({ additionalProperties: false, properties: { constructor: {} } }, polluting).map((each) => each.path),
    ).toEqual(["__proto__"]);
    expect(
      violations(
        { uniqueItems: true, allOf: [{ properties: { a: {} } }], unevaluatedProperties: { type: "object" } },
        polluting,
      ),
    ).toEqual([]);
    expect(({} as { polluted?: unknown }).polluted).toBeUndefined();
  });

  test("text of a schema never becomes code", () => {
    const global = globalThis as { broken?: unknown };
    const attacks = [
      '"];globalThis.broken=1;//',
      "`$" + "{globalThis.broken=1}`",
      "'+(globalThis.broken=1)+'",
      "*/globalThis.broken=1;/*",
      "\u2028globalThis.broken=1\u2028",
      "\\u0022]+(globalThis.broken=1)",
      "\n;globalThis.broken=1;\n",
    ];
    for (const text of attacks) {
      const pattern = text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");
      const schema: JsonObject = {
        $id: text,
        $comment: text,
        title: text,
        $defs: { [text]: { const: text } },
        properties: { [text]: { enum: [text, { [text]: text }], pattern, description: text } },
        patternProperties: {
          [pattern]: { $ref: `#/$defs/${encodeURIComponent(text).replaceAll("~", "~0").replaceAll("%2F", "~1")}` },
        },
        required: [text],
        dependentRequired: { [text]: [text, `${text}2`] },
        dependentSchemas: { [text]: { propertyNames: { const: text } } },
        [`x-${text}`]: text,
      };
      const checker = compileSchema(schema);
      for (const value of [{}, { [text]: text }, { [text]: 1, [`${text}2`]: 1 }, text]) checker.check(value);
      expect(checker.check({ [text]: text, [`${text}2`]: 1 }).length).toBeGreaterThan(0);
    }
    expect(global.broken).toBeUndefined();
  });

  test("a multiple of 0.01 is one, whatever the binary fractions", () => {
    expect(violations({ multipleOf: 0.01 }, 19.99)).toEqual([]);
    expect(violations({ multipleOf: 0.01 }, 19.995)).toHaveLength(1);
  });
});

describe("patterns", () => {
  const atom = fc.constantFrom(
    ..."a|b|é|😀|\\s|\\S|\\d|\\w|\\W|.|\\b|[a-c]|[^a]|[\\s\\d]|[^\\S]|[\\b-z]|[]|[^]|\\u{1F600}|\\uD83D\\uDE00|\\n|\\0|\\cJ|\\/|\\$|[\\]\\-a]|[-a]|[a-]|[&&a]|[[:a]|\\p{L}|[\\p{Letter}]|\\P{L}|[^\\P{L}a]|\\p{Script=Greek}|\\p{ASCII}|\\x41|^|$|\\v|[😀-😂]|\\p{Sc}|\\p{Any}".split(
      "|",
    ),
  );
  const pattern = fc.letrec<{ pattern: string }>((tie) => ({
    pattern: fc.oneof(
      { maxDepth: 4 },
      atom,
      fc.tuple(tie("pattern"), tie("pattern")).map((parts) => parts.join("")),
      fc.tuple(tie("pattern"), tie("pattern")).map(([one, other]) => `(${one}|${other})`),
      fc
        .tuple(tie("pattern"), fc.constantFrom("*", "+", "?", "{2}", "{0,2}", "*?", "{1,}"))
        .map(([inner, repeat]) => `(?:${inner})${repeat}`),
      tie("pattern").map((inner) => `(?<name>${inner})`),
    ),
  })).pattern;
  const text = fc
    .array(fc.constantFrom(..."abcéA😀😁 \u00a0\n\r\u2028\ufeff1_-$/\bαΩ][&:.\0\v€"), { maxLength: 5 })
    .map((chars) => chars.join(""));

  test.each([
    "^a{0,1000}$",
    "^[^x]*",
    "^\\u{61}+$",
    "^(a*)*$",
    "^a*a*a*a*a*$",
    "a*b",
    "^(a|a)*$",
    "^a?a?a?a?$",
    "^[a]{5}a+b",
  ])("%s takes time in proportion to the text", (pattern) => {
    const { test } = linearRegex(pattern, () => {});
    const time = (length: number) => Math.min(...many(5, () => cpuMs(() => test(`${"a".repeat(length)}!`))));
    time(1_000);
    // A few; of the square it would be many seconds.
    expect(time(1 << 17)).toBeLessThan(500);
  });

  test.each(["^(a)", "^\\u{61}", "^\\p{L}", "^[a]{2}", "^a{2,3}"])("a pattern of many %s is judged at once", (part) => {
    const pattern = `${part}${part.slice(1).repeat(60)}`;
    expect(cpuMs(() => checkSchema({ pattern }))).toBeLessThan(1_000);
  });

  test("match what ECMAScript matches", () => {
    let compared = 0;
    fc.assert(
      fc.property(pattern, fc.array(text, { minLength: 5, maxLength: 10 }), (source, texts) => {
        // The same name twice, for one, is no pattern.
        if (checkSchema({ pattern: source })) return;
        const native = new RegExp(source, "u");
        const linear = linearRegex(source, () => {});
        compared += 1;
        for (const each of texts) expect([source, each, linear.test(each)]).toEqual([source, each, native.test(each)]);
      }),
      { numRuns: 3_000 },
    );
    expect(compared).toBeGreaterThan(2_000);
  });
});

describe("hostile schemas and values", () => {
  const numbers = many(500_000, (i) => i % 10);
  const objects = many(90_000, (i) => ({ a: i }));
  const keys = named(60_000, () => 1);
  const bits = [...randomBytes(1 << 17)]
    .map((byte) => byte.toString(2).padStart(8, "0"))
    .join("")
    .replaceAll("0", "a")
    .replaceAll("1", "b");
  const refs = (count: number, make: (next: JsonObject, index: number) => JsonObject) => ({
    $ref: "#/$defs/p0",
    $defs: named(count, (i) => make({ $ref: `#/$defs/p${(i + 1) % count}` }, i)),
  });

  test.each<[string, JsonValue, JsonValue]>([
    ["nested repetition", { pattern: "^(a+)+$" }, `${"a".repeat(1 << 20)}!`],
    ["a pattern with 2^200 states", { pattern: "(a|b)*a(a|b){200}[cd]" }, bits],
    [
      "that pattern on 5,000 texts",
      { items: { not: { pattern: "(a|b)*a(a|b){150}[cd]" } } },
      many(5_000, (i) => bits.slice(i * 200, i * 200 + 200)),
    ],
    [
      "100 patterns on a long text",
      { allOf: many(100, (i) => ({ pattern: `^[\\p{L}\\p{N}${i}]+$` })) },
      "é".repeat(1 << 19),
    ],
    ["90 pattern properties on 60,000 keys", { patternProperties: named(90, () => ({})) }, keys],
    ["a huge enum for each of 500,000 items", { items: { not: { enum: many(2_000, (i) => -i - 1) } } }, numbers],
    ["a huge enum of objects", { items: { not: { enum: many(1_900, (i) => ({ a: -i - 1 })) } } }, objects],
    ["450 alternatives for each item", { items: { not: { anyOf: many(450, (i) => ({ const: -i - 1 })) } } }, numbers],
    ["450 schemas of which one", { items: { oneOf: many(450, (i) => ({ minimum: -i })) } }, numbers],
    ["240 times contains", { allOf: many(240, () => ({ contains: { const: -1 }, minContains: 0 })) }, numbers],
    [
      "unique items, nested",
      { $defs: { a: { uniqueItems: true, items: { $ref: "#/$defs/a" } } }, $ref: "#/$defs/a" },
      nested(90, objects, (inner) => [inner]),
    ],
    ["unique items, 150,000", { uniqueItems: true }, many(150_000, (i) => i)],
    ["450 counts of 60,000 keys", { allOf: many(450, () => ({ minProperties: 1 })) }, keys],
    ["450 dependent schemas", { dependentSchemas: named(240, () => ({ minProperties: 1 })) }, keys],
    [
      "240 kinds of additional properties",
      { allOf: many(240, () => ({ additionalProperties: { minimum: 0 } })) },
      keys,
    ],
    ["450 lengths of a long text", { allOf: many(450, () => ({ maxLength: 1 << 21 })) }, "é".repeat(1 << 19)],
    [
      "references that double at each level of the value",
      {
        $defs: {
          a: {
            anyOf: [
              { items: { $ref: "#/$defs/a" }, minItems: 2 },
              { items: { $ref: "#/$defs/a" }, minItems: 2 },
              { type: "null" },
            ],
          },
        },
        $ref: "#/$defs/a",
      },
      nested(90, 1, (inner) => [inner, inner].slice(0, 2)),
    ],
    [
      "references in circles through a deep value",
      refs(90, (next) => ({ items: next, allOf: [{ items: next }] })),
      nested(99, 1, (inner) => [inner]),
    ],
    ["a value nested 10,000 deep", { items: { $ref: "#" } }, nested(10_000, 1, (inner) => [inner])],
    ["450 multiples", { items: { allOf: many(450, () => ({ multipleOf: 0.01 })) } }, numbers],
    ["39 nested conditions", nested(39, { minimum: 0 }, (inner) => ({ if: inner, else: { type: "null" } })), 1],
    [
      "2^20 in one value",
      {
        $defs: named(12, (i) =>
          i === 11 ? {} : { anyOf: [{ $ref: `#/$defs/p${i + 1}` }, { $ref: `#/$defs/p${i + 1}` }], minimum: 0 },
        ),
        items: { $ref: "#/$defs/p0" },
      },
      numbers,
    ],
  ])("%s: neither compiling nor checking holds the thread", (_name, schema, value) => {
    expect(checkSchema(schema)).toBeUndefined();
    const compiling = Math.min(...many(3, () => cpuMs(() => compileSchema(schema))));
    const checker = compileSchema(schema);
    const checking = Math.min(...many(3, () => cpuMs(() => checker.check(value))));
    // 100 ms is the promise on a machine of its own; one that is shared counts waiting for memory as CPU time, so half as much again passes.
    // The first times, which the engine spends on its own compilers, are not measured.
    expect(compiling).toBeLessThan(150);
    expect(checking).toBeLessThan(150);
  });

  test("a value that costs too much is refused as such, and the next one is checked as ever", () => {
    const checker = compileSchema({ items: { not: { pattern: "(a|b)*a(a|b){150}[cd]" } } });
    expect(checker.check(many(5_000, (i) => bits.slice(i * 200, i * 200 + 200)))).toEqual([
      { path: "", keyword: costKeyword, message: expect.any(String) },
    ]);
    expect(checker.check(["b", `a${"b".repeat(150)}d`]).map((each) => each.keyword)).toEqual(["not"]);
    expect(checker.check(["ab"])).toEqual([]);
  });

  test("large honest values are checked", () => {
    const honest: JsonValue = {
      type: "array",
      items: {
        type: "object",
        properties: { a: { type: "integer", minimum: 0 } },
        required: ["a"],
        additionalProperties: false,
      },
    };
    expect(violations(honest, objects)).toEqual([]);
    expect(violations({ type: "array", items: { type: "integer" } }, numbers)).toEqual([]);
    expect(violations({ additionalProperties: { type: "integer" }, propertyNames: { pattern: "^p" } }, keys)).toEqual(
      [],
    );
    expect(
      violations(
        { items: { pattern: "^[a-z0-9]+(?:-[a-z0-9]+)*$" } },
        many(10_000, (i) => `slug-${i}`),
      ),
    ).toEqual([]);
  });
});

describe("the cache of compiled schemas", () => {
  test("a schema is compiled once, and loaded only then", () => {
    const cache = schemaCache(10);
    const first = cache.checker("a", () => ({ type: "string" }));
    expect(cache.checker("a", () => expect.unreachable())).toBe(first);
    expect(first.check(1)).toHaveLength(1);
  });

  test("the least recently used is dropped", () => {
    const cache = schemaCache(2);
    const a = cache.checker("a", () => ({}));
    cache.checker("b", () => ({}));
    cache.checker("a", () => expect.unreachable());
    cache.checker("c", () => ({}));
    expect(cache.size()).toBe(2);
    expect(cache.checker("a", () => expect.unreachable())).toBe(a);
    let loaded = false;
    cache.checker("b", () => {
      loaded = true;
      return {};
    });
    expect(loaded).toBe(true);
  });

  test("large schemas take the room of many", () => {
    const cache = schemaCache(1_000);
    for (let i = 0; i < 30; i += 1)
      cache.checker(String(i), () => ({ allOf: many(50, (j) => ({ pattern: `^${i}x${j}` })) }));
    expect(cache.size()).toBeGreaterThan(10);
    expect(cache.size()).toBeLessThan(25);
  });

  test("what cannot be loaded or compiled is not kept", () => {
    const cache = schemaCache(2);
    expect(() => cache.checker("a", () => ({ type: 1 }))).toThrow();
    expect(cache.size()).toBe(0);
  });

  test("the digest is that of the content, not of the order of keys", () => {
    expect(schemaDigest({ a: 1, b: { c: [1, 2], d: 3 } })).toBe(schemaDigest({ b: { d: 3, c: [1, 2] }, a: 1 }));
    expect(schemaDigest({ a: [1, 2] })).not.toBe(schemaDigest({ a: [2, 1] }));
  });
});
