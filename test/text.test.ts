import { createHash } from "node:crypto";
import type { MessageInitShape } from "@bufbuild/protobuf";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type ProcessRequestSchema, TextOperation } from "../gen/moltwire/text/v1/text_service_pb.ts";
import { decodeBase64 } from "../src/text/base64.ts";
import { emailsIn, urlsIn } from "../src/text/extract.ts";
import { charCount, sentencesOf, uniqueLines, wordCount } from "../src/text/measure.ts";
import { type Clients, refusal, start, type World } from "./harness.ts";

describe("over the wire", () => {
  let world: World;
  let text: Clients["text"];
  beforeAll(async () => {
    world = await start();
    text = (await (await world.org()).agent()).as.text;
  });
  afterAll(() => world[Symbol.asyncDispose]());
  const ask = async (operation: TextOperation, value: string) =>
    (await text.process({ operation, input: { case: "text", value } })).result;

  test("each operation answers what it is for", async () => {
    const said = "Mail ada@example.org, or see https://example.org/a(b). Twice? Yes!";
    expect(await ask(TextOperation.WORD_COUNT, said)).toEqual({ case: "wordCount", value: 7 });
    expect(await ask(TextOperation.CHAR_COUNT, "a 😀\n")).toMatchObject({ value: { total: 4, withoutSpaces: 2 } });
    expect(await ask(TextOperation.EXTRACT_URLS, said)).toMatchObject({
      value: { items: ["https://example.org/a(b)"] },
    });
    expect(await ask(TextOperation.EXTRACT_EMAILS, said)).toMatchObject({ value: { items: ["ada@example.org"] } });
    expect(await ask(TextOperation.TOKENIZE_SENTENCES, said)).toMatchObject({
      value: { items: ["Mail ada@example.org, or see https://example.org/a(b).", "Twice?", "Yes!"] },
    });
    expect(await ask(TextOperation.DEDUPLICATE_LINES, "b\na\r\nb\n\n\na")).toEqual({
      case: "text",
      value: "b\na\n",
    });
    expect(await ask(TextOperation.HASH_SHA256, "abc")).toMatchObject({
      value: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    });
    expect(await ask(TextOperation.BASE64_ENCODE, "é?>")).toMatchObject({ value: "w6k/Pg==" });
    expect(await ask(TextOperation.BASE64_DECODE, "w6k_Pg")).toMatchObject({ value: { text: "é?>" } });
    expect(await ask(TextOperation.WORD_COUNT, "")).toEqual({ case: "wordCount", value: 0 });
  });

  test("any bytes go into base64 and come out of it, and what is no UTF-8 is answered without a text", async () => {
    const value = Uint8Array.from({ length: 256 }, (_, n) => n);
    const { result } = await text.process({ operation: TextOperation.BASE64_ENCODE, input: { case: "data", value } });
    const back = await ask(TextOperation.BASE64_DECODE, result.value as string);
    expect(back).toMatchObject({ case: "decoded", value: { data: value } });
    expect((back.value as { text?: string }).text).toBeUndefined();
    const hashed = await text.process({ operation: TextOperation.HASH_SHA256, input: { case: "data", value } });
    expect(hashed.result.value).toBe(createHash("sha256").update(value).digest("hex"));
  });

  test.each<[string, MessageInitShape<typeof ProcessRequestSchema>, string]>([
    ["no operation", { input: { case: "text", value: "a" } }, "operation"],
    ["50,001 characters", { operation: 1, input: { case: "text", value: "a".repeat(50_001) } }, "text"],
    ["what is not base64", { operation: 9, input: { case: "text", value: "a*b=" } }, "text"],
    ["bytes where a text is needed", { operation: 1, input: { case: "data", value: Buffer.from("a") } }, "data"],
  ])("refuses %s", async (_what, request, field) => {
    const { reason, metadata } = await refusal(text.process(request));
    expect([reason, metadata.field]).toEqual(["INVALID_REQUEST", field]);
  });

  test("50,000 characters of four bytes are a text like any other", async () => {
    const long = "😀".repeat(50_000);
    expect(await ask(TextOperation.CHAR_COUNT, long)).toMatchObject({ value: { total: 50_000 } });
    expect((await refusal(world.as(undefined).text.process({ operation: 1 }))).reason).toBe("KEY_MISSING");
  });
});

test.each([
  ["See https://a.example/x?y=1#z, then http://b.example.", ["https://a.example/x?y=1#z", "http://b.example"]],
  ["(https://a.example/wiki/B_(c)) [HTTPS://D.example]!?", ["https://a.example/wiki/B_(c)", "HTTPS://D.example"]],
  [
    '"https://a.example/" <http://b.example:80/> https://a.example/…',
    ["https://a.example/", "http://b.example:80/", "https://a.example/"],
  ],
  ["見よ https://例え.example/道。次", ["https://例え.example/道。次"]],
  ["https:// http://. ftp://a.example https://?", []],
  ["https://user:pw@a.example/(", ["https://user:pw@a.example/("]],
])("URLs of %j", (text, urls) => {
  expect(urlsIn(text)).toEqual(urls);
});

test.each([
  [
    "Ask ada@example.org, bob.b+c@mail.example.co.uk. Or <x_1@a-b.example>!",
    ["ada@example.org", "bob.b+c@mail.example.co.uk", "x_1@a-b.example"],
  ],
  ["mailto:ada@example.org?to=eve@example.org", ["ada@example.org", "eve@example.org"]],
  ["a@b @example.org a@ a.@example.org a..b@example.org a@-b.example a@b.c a@1.2.3.4", []],
  [".-ada@example.org...", ["ada@example.org"]],
  ["ada@example.org@example.com", ["ada@example.org"]],
  [`${"a".repeat(64)}@example.org ${"a".repeat(65)}@example.org`, [`${"a".repeat(64)}@example.org`]],
])("e-mail addresses of %j", (text, emails) => {
  expect(emailsIn(text)).toEqual(emails);
});

const anyText = fc.string({ unit: "grapheme", maxLength: 300 });

test("what is found stands in the text, in order, and ends in no punctuation", () => {
  const piece = fc.constantFrom(
    "https://a.example",
    "http://b.example/c",
    "x@y.example",
    "@",
    "://",
    ".",
    ",",
    ")",
    "(",
    " ",
    "a",
    "é",
    "-",
    "\n",
  );
  fc.assert(
    fc.property(
      fc.array(piece, { maxLength: 40 }).map((pieces) => pieces.join("")),
      (text) => {
        for (const found of [urlsIn(text), emailsIn(text)]) {
          let from = 0;
          for (const one of found) {
            const at = text.indexOf(one, from);
            expect(at).toBeGreaterThanOrEqual(0);
            from = at + one.length;
            expect(one).not.toMatch(/[.,;:!?]$/);
          }
        }
        for (const email of emailsIn(text)) expect(emailsIn(email)).toEqual([email]);
        for (const url of urlsIn(text)) expect(urlsIn(url)).toEqual([url]);
      },
    ),
  );
});

test("counts, sentences and lines are of the whole text", () => {
  fc.assert(
    fc.property(anyText, (text) => {
      expect(charCount(text).total).toBe([...text].length);
      expect(charCount(text).withoutSpaces).toBe([...text.replaceAll(/\s/g, "")].length);
      expect(wordCount(text)).toBe(text.split(/\s+/).filter(Boolean).length);
      expect(sentencesOf(text).join("").replaceAll(/\s/g, "")).toBe(text.replaceAll(/\s/g, ""));
      const lines = uniqueLines(text).split("\n");
      expect(new Set(lines).size).toBe(lines.length);
      expect(new Set(lines)).toEqual(new Set(text.split(/\r\n|\n|\r/)));
    }),
  );
});

test("base64 of any bytes comes back in every spelling, and nothing else is taken for it", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 100 }), (bytes) => {
      const plain = Buffer.from(bytes).toString("base64");
      for (const spelling of [
        plain,
        plain.replace(/=+$/, ""),
        Buffer.from(bytes).toString("base64url"),
        `${plain.slice(0, 3)}\n ${plain.slice(3)}`,
      ])
        expect(decodeBase64(spelling)).toEqual(Buffer.from(bytes));
    }),
  );
  for (const text of ["A", "AB=", "A===", "AB=C", "A*BC", "AB==AB==", "AR==", "é"])
    expect(decodeBase64(text)).toBeUndefined();
});

const operations: Readonly<Record<string, (text: string) => unknown>> = {
  ...{ wordCount, charCount, urlsIn, emailsIn, sentencesOf, uniqueLines, decodeBase64 },
};
/** Texts that make a careless pattern begin anew at each character. */
const worst = [
  "a",
  " ",
  "a.",
  "@",
  "a@",
  "a@a.",
  "a-",
  "https://",
  "http",
  "https://a(",
  "https://a/.",
  "https://a)",
  "A. ",
  "A.1 ",
  "\r",
  "a\n",
  "=",
  "\"'",
  "é",
];

test.each(Object.keys(operations))("%s takes no more than linear time for the worst of texts", (name) => {
  const run = operations[name]!;
  // The time of this process: others on the machine do not count.
  const cpuMs = (text: string) => {
    const began = process.cpuUsage();
    run(text);
    const { user, system } = process.cpuUsage(began);
    return (user + system) / 1_000;
  };
  for (const unit of [...worst, ...worst.map((one) => `https://x${one}`)])
    for (const shape of [
      (length: number) => unit.repeat(length / unit.length),
      (length: number) => `https://a${unit.repeat(length / unit.length)}`,
    ]) {
      // Three times the limit: some milliseconds if linear, and many seconds if square.
      expect([unit, cpuMs(shape(160_000)) < 1_000]).toEqual([unit, true]);
    }
});
