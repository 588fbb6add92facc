import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { parseVersion, resolveVersion } from "../src/bus/version.ts";

const open = (...versions: string[]) => versions.map((version) => ({ version, deprecated: false }));
const old = (...versions: string[]) => versions.map((version) => ({ version, deprecated: true }));
const chosen = (requested: string, available: { version: string; deprecated: boolean }[]) => {
  const outcome = resolveVersion(requested, available);
  return outcome.kind === "found" ? outcome.version : outcome.kind;
};

describe("versions", () => {
  test.each(["0.0.0", "1.2.3", "1.0.0-rc.1", "1.0.0-0a.b-c", "1.0.0+build.007", "1.0.0-a+b", "9007199254740991.0.0"])(
    "%s is a version, kept as it is",
    (text) => expect(parseVersion(text)).toBe(text),
  );

  test.each([
    "",
    "1",
    "1.2",
    "v1.2.3",
    "=1.2.3",
    " 1.2.3",
    "1.2.3 ",
    "01.2.3",
    "1.2.3-01",
    "1.2.3-",
    "1.2.3+",
    "1.2.3-a..b",
    "1.2.3.4",
    "9007199254740992.0.0",
    "^1.2.3",
    `1.0.0-${"a".repeat(60)}`,
    "1.2.3\n",
  ])("%j is not a version", (text) => expect(parseVersion(text)).toBeUndefined());
});

describe("resolution of a version", () => {
  test("an exact version is answered as it is", () => expect(chosen("1.2.0", open("1.2.0", "1.3.0"))).toBe("1.2.0"));

  test("an exact version that was deprecated is answered, and says so", () =>
    expect(resolveVersion("1.2.0", [...open("1.3.0"), ...old("1.2.0")])).toEqual({
      kind: "found",
      version: "1.2.0",
      deprecated: true,
    }));

  test("an exact version that does not exist is none, whatever is near", () =>
    expect(chosen("1.2.1", open("1.2.0", "1.2.2"))).toBe("none"));

  test("build metadata has to be named exactly", () => {
    expect(chosen("1.0.0", open("1.0.0+a"))).toBe("none");
    expect(chosen("1.0.0+a", open("1.0.0", "1.0.0+a"))).toBe("1.0.0+a");
  });

  test.each([
    ["^1.2", "1.10.0"],
    ["~1.2", "1.2.9"],
    ["~1", "1.10.0"],
    ["1.x", "1.10.0"],
    [">=1 <3", "2.1.0"],
    ["1.2.0 - 1.2.5", "1.2.0"],
    ["^1.2 || ^3", "3.0.0"],
    ["*", "3.0.0"],
    ["^4", "none"],
  ])("the range %s chooses %s, the newest in it", (range, expected) =>
    expect(chosen(range, open("1.2.0", "1.10.0", "1.2.9", "3.0.0", "2.1.0", "4.0.0-rc.1"))).toBe(expected),
  );

  test("a range passes over deprecated versions", () => {
    expect(chosen("^1", [...open("1.1.0"), ...old("1.2.0")])).toBe("1.1.0");
    expect(chosen("^1", old("1.2.0"))).toBe("none");
  });

  test("a range never chooses a pre-release, even one that it names", () =>
    expect(chosen(">=2.0.0-rc.1", open("2.0.0-rc.2"))).toBe("none"));

  test("empty chooses the newest release that is not deprecated", () =>
    expect(chosen("", [...open("1.0.0", "1.1.0", "2.0.0-rc.1"), ...old("3.0.0")])).toBe("1.1.0"));

  test("empty chooses a pre-release only when there is nothing else", () => {
    expect(chosen("", open("1.0.0-rc.1", "1.0.0-rc.10", "1.0.0-rc.9"))).toBe("1.0.0-rc.10");
    expect(chosen("", [])).toBe("none");
  });

  test.each(["latest", "v", "one", "1.2.3.4", ">", "^^1", " ", "1".repeat(65), "1.2.3 || nope"])(
    "%j is neither a version nor a range",
    (text) => expect(resolveVersion(text, open("1.0.0")).kind).toBe("invalid"),
  );

  const number = fc.nat({ max: 3 });
  const version = fc
    .tuple(number, number, number, fc.constantFrom("", "", "-rc.1", "-rc.2", "+b"))
    .map(([major, minor, patch, tail]) => `${major}.${minor}.${patch}${tail}`);
  const available = fc.uniqueArray(fc.record({ version, deprecated: fc.boolean() }), {
    maxLength: 12,
    selector: (each) => each.version,
  });
  const request = fc.oneof(
    version,
    fc.constant(""),
    fc.tuple(fc.constantFrom("^", "~", ">=", "<", ""), number, number).map(([op, a, b]) => `${op}${a}.${b}`),
  );

  test("whatever is asked, the answer is one of those available, and the order of these does not matter", () =>
    fc.assert(
      fc.property(request, available, fc.nat(), (requested, versions, turn) => {
        const outcome = resolveVersion(requested, versions);
        if (outcome.kind === "found")
          expect(versions).toContainEqual({ version: outcome.version, deprecated: outcome.deprecated });
        const turned = versions.map((_, index) => versions[(index + turn) % versions.length]!);
        expect(resolveVersion(requested, turned)).toEqual(outcome);
      }),
      { numRuns: 1000 },
    ));

  test("only an exact request is answered by a deprecated version or by a pre-release while there are releases", () =>
    fc.assert(
      fc.property(request, available, (requested, versions) => {
        const outcome = resolveVersion(requested, versions);
        if (outcome.kind !== "found" || outcome.version === requested) return;
        expect(outcome.deprecated).toBe(false);
        const releases = versions.filter((each) => !each.deprecated && !each.version.includes("-"));
        if (requested !== "" || releases.length > 0) expect(outcome.version).not.toContain("-");
      }),
      { numRuns: 1000 },
    ));

  test("text of any kind has an outcome", () =>
    fc.assert(
      fc.property(fc.string({ maxLength: 80 }), (text) => void resolveVersion(text, open("1.0.0"))),
      { numRuns: 1000 },
    ));
});
