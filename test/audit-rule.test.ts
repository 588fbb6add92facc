import { randomBytes } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import fc from "fast-check";
import { afterAll, describe, expect, test } from "vitest";
import { type Broken, checkChain, type Expected, type Unbroken } from "../clients/cli/audit-chain.ts";
import { firstLine, readFirstLine, rowText } from "../clients/cli/audit-form.ts";
import { checkFile } from "../clients/cli/audit-verify.ts";
import { Role } from "../gen/moltwire/api/v1/access_pb.ts";
import { AuditEventSchema, AuditKind } from "../gen/moltwire/ops/v1/admin_service_pb.ts";
import { auditHash, auditText, noHash } from "../src/ops/audit-text.ts";
import { type Content, chain, contentOf, exportLines, orgId, writeExport } from "./audit-fixtures/logs.ts";

const folder = mkdtempSync(join(tmpdir(), "moltwire-audit-rule-"));
afterAll(() => rmSync(folder, { recursive: true }));
const path = join(folder, "export.ndjson");

/** Checks it as `moltwire audit verify` does. */
const check = (file: Buffer | readonly string[], expected: Expected = {}): Promise<Broken | Unbroken> => {
  writeFileSync(path, file instanceof Buffer ? file : bytesOf(file as readonly string[]));
  return checkFile(path, checkChain(expected));
};
const bytesOf = (lines: readonly string[]): Buffer => Buffer.from(lines.map((line) => `${line}\n`).join(""));
const reasonOf = (found: Broken | Unbroken): string => ("reason" in found ? found.reason : "unbroken");
const swapped = (lines: readonly string[], a: number, b: number): string[] =>
  lines.with(a, lines[b]!).with(b, lines[a]!);

const text = fc.string({ unit: "grapheme", maxLength: 12 });
const content: fc.Arbitrary<Content> = fc.record({
  audit_id: text,
  time_ms: fc.nat(),
  kind: fc.constantFrom(1, 2),
  method: text,
  role: fc.constantFrom(2, 3, 4),
  key_id: text,
  agent_id: text,
  // Messages are plain objects, which cannot have that name.
  resource: fc
    .dictionary(
      text.filter((name) => name !== "__proto__"),
      text,
      { maxKeys: 3 },
    )
    .map((ids) => JSON.stringify(ids)),
  request_sha256: text,
  trace_id: text,
});
/** An export of some rows, at least so many. */
const logOf = (least: number) =>
  fc.array(content, { minLength: least, maxLength: least + 6 }).map((contents) => exportLines(contents));

describe("the form", () => {
  const ids = (nth: number) => String(nth).padStart(32, "0");
  const row = {
    agentId: "",
    auditId: `aud_${ids(1)}`,
    keyId: `key_${ids(2)}`,
    kind: AuditKind.CHANGE,
    method: "moltwire.bus.v1.AgentService/RegisterAgent",
    number: 1n,
    orgId: `org_${ids(3)}`,
    requestSha256: "1f58b9145b24d108d7ac38887338b3ea3229833b9c1e418250343f907bfd1047",
    resource: { org_id: `org_${ids(3)}`, agent_id: `agt_${ids(4)}` },
    role: Role.ORG,
    time: timestampFromMs(1_767_225_600_000),
    traceId: "0af7651916cd43dd8448eb211c80319c",
  };
  /** Made by another program, in another language. */
  const vectors = [
    {
      event: row,
      previous: noHash,
      text: `{"agent_id":"","audit_id":"aud_${ids(1)}","format":"moltwire-audit/1","key_id":"key_${ids(2)}","kind":1,"method":"moltwire.bus.v1.AgentService/RegisterAgent","number":1,"org_id":"org_${ids(3)}","previous":"${noHash}","request_sha256":"1f58b9145b24d108d7ac38887338b3ea3229833b9c1e418250343f907bfd1047","resource":{"agent_id":"agt_${ids(4)}","org_id":"org_${ids(3)}"},"role":3,"time_ms":1767225600000,"trace_id":"0af7651916cd43dd8448eb211c80319c"}`,
      hash: "b7808ad227862b21386818375576769541c77daa9d8abfb310b6dc171cd05390",
    },
    {
      event: {
        ...row,
        auditId: `aud_${ids(5)}`,
        agentId: `agt_${ids(4)}`,
        keyId: "",
        kind: AuditKind.DECISION,
        method: "moltwire.federation.v1.GatewayService/SubmitTask",
        number: 2n,
        resource: { verdict: "DENY", grant_id: 'grt_ü"\\\u2028🦞\u007f\t', "10": "b", "9": "a" },
        role: Role.AGENT,
        time: timestampFromMs(1_767_225_600_001),
      },
      previous: "b7808ad227862b21386818375576769541c77daa9d8abfb310b6dc171cd05390",
      hash: "95eb6f1406cb25efc37dfe1801cd4cabb11e612fef4601857f52e0e32e15513a",
    },
  ];

  test.each(vectors)("has this text and this hash: $hash", ({ event, previous, text: wanted, hash }) => {
    const made = rowText(create(AuditEventSchema, event), previous);
    if (wanted) expect(made).toBe(wanted);
    expect(auditHash(made)).toBe(hash);
  });

  test("is the same to the server that hashes rows and to the command that writes them down", () => {
    fc.assert(
      fc.property(content, fc.nat(), (one, number) => {
        const event = create(AuditEventSchema, {
          ...{
            orgId,
            auditId: one.audit_id,
            time: timestampFromMs(one.time_ms),
            kind: one.kind as AuditKind,
            method: one.method,
          },
          ...{ role: one.role as Role, keyId: one.key_id, agentId: one.agent_id, requestSha256: one.request_sha256 },
          ...{ traceId: one.trace_id, number: BigInt(number) },
          resource: JSON.parse(one.resource) as Record<string, string>,
        });
        expect(rowText(event, noHash)).toBe(auditText({ ...one, org_id: orgId }, number, noHash));
      }),
    );
  });

  test("is JSON, whose text says all that was put into it", () => {
    fc.assert(
      fc.property(content, (one) => {
        const { resource, ...rest } = one;
        const more = { format: "moltwire-audit/1", number: 7, org_id: orgId, previous: noHash };
        expect(JSON.parse(auditText({ ...one, org_id: orgId }, 7, noHash))).toEqual({
          ...rest,
          ...more,
          resource: JSON.parse(resource),
        });
      }),
    );
  });
});

describe("an export", () => {
  test("that is whole is unbroken, and holds each of its rows", async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(content, { maxLength: 8 }), async (contents) => {
        const lines = exportLines(contents);
        expect(await check(lines)).toEqual({ file: readFirstLine(lines[0]!) });
        for (let count = 0; count <= contents.length; count++) {
          const { head } = chain(contents.slice(0, count));
          expect(await check(lines, { head })).toEqual({ file: readFirstLine(lines[0]!) });
          expect(await check(lines, { head: { hash: head.hash } })).toEqual({ file: readFirstLine(lines[0]!) });
        }
      }),
      { numRuns: 50 },
    );
  });

  test("is broken by any bit that is flipped", async () => {
    await fc.assert(
      fc.asyncProperty(logOf(1), fc.nat(), fc.nat(7), async (lines, where, bit) => {
        const bytes = bytesOf(lines);
        const at = where % bytes.length;
        bytes[at] = bytes[at]! ^ (1 << bit);
        const found = await check(bytes);
        expect(reasonOf(found)).toMatch(/^AUDIT_/);
        // Where the bit is in a row, that row is named. A line end that is gone joins the row with the next one.
        const line = bytesOf(lines).subarray(0, at).toString("latin1").split("\n").length;
        if (line > 1) expect(found).toMatchObject({ number: line - 1 });
      }),
      { numRuns: 300 },
    );
  });

  test("is broken by any other text in place of a part of it, at any place", async () => {
    const part = fc.oneof(fc.string({ maxLength: 3 }), fc.constantFrom("\n", " ", "{}", '"', ',"role":4', "\u0000"));
    await fc.assert(
      fc.asyncProperty(logOf(1), fc.nat(), fc.nat(3), part, async (lines, where, length, inserted) => {
        const bytes = bytesOf(lines);
        const at = where % bytes.length;
        const made = Buffer.concat([bytes.subarray(0, at), Buffer.from(inserted), bytes.subarray(at + length)]);
        fc.pre(!made.equals(bytes));
        expect(reasonOf(await check(made))).toMatch(/^AUDIT_/);
      }),
      { numRuns: 300 },
    );
  });

  test("names the row whose content was changed, also where its hash was computed anew", async () => {
    await fc.assert(
      fc.asyncProperty(logOf(2), fc.nat(), fc.boolean(), content, async (lines, which, rehashed, other) => {
        const nth = 1 + (which % (lines.length - 2)); // the last one's hash stands in the first line as well
        const line = lines[nth]!;
        const previous = (JSON.parse(line) as { row: { previous: string } }).row.previous;
        const forged = chain([other], { number: nth - 1, hash: previous }).lines[0]!;
        fc.pre(forged !== line);
        const changed = rehashed ? forged : line.slice(0, 73) + forged.slice(73);
        expect(await check(lines.with(nth, changed))).toMatchObject({ reason: "AUDIT_CHANGED", number: nth });
      }),
    );
  });

  test("names the row that was removed, or says that its end is cut", async () => {
    await fc.assert(
      fc.asyncProperty(logOf(2), fc.nat(), async (lines, which) => {
        const nth = 1 + (which % (lines.length - 1));
        const isLast = nth === lines.length - 1;
        expect(await check(lines.toSpliced(nth, 1))).toMatchObject({
          reason: isLast ? "AUDIT_CUT" : "AUDIT_REMOVED",
          number: nth,
        });
      }),
    );
  });

  test("names the rows that were moved", async () => {
    await fc.assert(
      fc.asyncProperty(logOf(2), fc.nat(), fc.nat(), async (lines, one, other) => {
        const [a, b] = [1 + (one % (lines.length - 1)), 1 + (other % (lines.length - 1))];
        fc.pre(a !== b);
        const first = Math.min(a, b);
        expect(await check(swapped(lines, a, b))).toMatchObject({ reason: "AUDIT_REORDERED", number: first });
        const moved = lines.toSpliced(a, 1).toSpliced(b, 0, lines[a]!);
        expect(await check(moved)).toMatchObject({ reason: "AUDIT_REORDERED", number: first });
      }),
    );
  });

  test("names a row that was inserted: a second one of the same, and a new one however well it was hashed", async () => {
    await fc.assert(
      fc.asyncProperty(logOf(2), fc.nat(), fc.nat(), content, async (lines, one, other, forged) => {
        const [from, to] = [1 + (one % (lines.length - 1)), 1 + (other % lines.length)];
        const doubled = await check(lines.toSpliced(to, 0, lines[from]!));
        expect(reasonOf(doubled)).toMatch(/^AUDIT_(INSERTED|REORDERED)$/);
        const hash = to === 1 ? noHash : lines[to - 1]!.slice(9, 73);
        const { lines: made } = chain([forged], { number: to - 1, hash });
        fc.pre(made[0] !== lines[to]);
        expect(reasonOf(await check(lines.toSpliced(to, 0, made[0]!)))).toMatch(/^AUDIT_(INSERTED|CHANGED)$/);
      }),
    );
  });

  test("is broken by a row of another organisation", async () => {
    const lines = exportLines([contentOf(1), contentOf(2)]);
    const foreign = `org_${"8".repeat(32)}`;
    const made = auditText({ ...contentOf(2), org_id: foreign }, 2, lines[1]!.slice(9, 73));
    const hash = auditHash(made);
    const file = { ...readFirstLine(lines[0]!)!, headHash: hash };
    const found = await check([firstLine(file), lines[1]!, `{"hash":"${hash}","row":${made}}`]);
    expect(found).toMatchObject({ reason: "AUDIT_INSERTED", line: 3 });
  });

  test("that was cut anywhere says so", async () => {
    await fc.assert(
      fc.asyncProperty(logOf(1), fc.nat(), async (lines, where) => {
        const bytes = bytesOf(lines);
        expect(reasonOf(await check(bytes.subarray(0, where % bytes.length)))).toBe("AUDIT_CUT");
      }),
      { numRuns: 300 },
    );
  });

  test("that was cut or written anew with another first line fits in itself, and not with a head that was noted", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(content, { minLength: 2, maxLength: 7 }),
        fc.nat(),
        content,
        async (all, which, other) => {
          const { head } = chain(all);
          const kept = which % all.length;
          const cut = exportLines(all.slice(0, kept));
          expect(reasonOf(await check(cut))).toBe("unbroken");
          expect(await check(cut, { head })).toMatchObject({ reason: "AUDIT_CUT", number: kept + 1 });
          expect(reasonOf(await check(cut, { head: { hash: head.hash } }))).toBe("AUDIT_CHANGED");
          fc.pre(JSON.stringify(all[kept]) !== JSON.stringify(other));
          const anew = exportLines(all.with(kept, other));
          expect(reasonOf(await check(anew))).toBe("unbroken");
          expect(await check(anew, { head })).toMatchObject({ reason: "AUDIT_CHANGED", number: all.length });
          expect(reasonOf(await check(anew, { head: { hash: head.hash } }))).toBe("AUDIT_CHANGED");
        },
      ),
    );
  });

  test("goes on after the one before, and after no other", async () => {
    const contents = Array.from({ length: 6 }, (_, nth) => contentOf(nth));
    const { head: after } = chain(contents.slice(0, 4));
    const lines = exportLines(contents.slice(4), after);
    const { head } = chain(contents);
    expect(await check(lines, { after, head })).toEqual({ file: readFirstLine(lines[0]!) });
    // What was noted before is no row of it, but the one that it goes on after.
    expect(reasonOf(await check(lines, { after, head: after }))).toBe("unbroken");
    // A beginning that is missing is found, also where the whole was cut and line 1 says what was noted.
    expect(await check(lines, { head })).toMatchObject({ reason: "AUDIT_CUT", line: 1 });
    expect(await check(exportLines([], head), { head })).toMatchObject({ reason: "AUDIT_CUT", line: 1 });
    const other = { number: 4, hash: randomBytes(32).toString("hex") };
    expect(await check(lines, { after: other })).toMatchObject({ reason: "AUDIT_OTHER", line: 1 });
    expect(await check(lines, { after: { ...after, number: 3 } })).toMatchObject({ reason: "AUDIT_OTHER" });
    expect(await check(exportLines(contents), { after })).toMatchObject({ reason: "AUDIT_OTHER" });
  });
});

test("a log of 20,000 rows is read in pieces, and one flipped bit of it is found", async () => {
  const large = join(folder, "large.ndjson");
  const head = await writeExport(large, 20_000);
  expect(reasonOf(await checkFile(large, checkChain({ head })))).toBe("unbroken");
  const bytes = readFileSync(large);
  const at = bytes.lastIndexOf("UpdateAgent");
  bytes[at] = bytes[at]! ^ 1;
  writeFileSync(large, bytes);
  const line = bytes.subarray(0, at).toString("latin1").split("\n").length;
  expect(line).toBeGreaterThan(19_990);
  expect(await checkFile(large, checkChain())).toMatchObject({ reason: "AUDIT_CHANGED", line, number: line - 1 });
});
