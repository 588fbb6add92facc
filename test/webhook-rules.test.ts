import fc from "fast-check";
import { Webhook } from "standardwebhooks";
import { describe, expect, test } from "vitest";
import { randomIds } from "../src/ids.ts";
import { concerns } from "../src/ops/visible.ts";
import { checkPatterns, disjoint, patternsOf } from "../src/webhook/event-types.ts";
import {
  failingLimitMs,
  givenUp,
  maxAttempts,
  maxRetryAfterMs,
  nextAttemptMs,
  retryAfterMs,
} from "../src/webhook/schedule.ts";
import { checkSecret, newSecret, signedHeaders } from "../src/webhook/signature.ts";

const hour = 3_600_000;
const types = ["task.completed", "task.failed", "job.completed", "job.failed", "webhook.disabled", "grant.revoked"];
const pattern = fc.constantFrom("*", ...types, "task.*", "job.*", "webhook.*");

describe("the schedule", () => {
  test("8 attempts spread over some 28 hours, whatever chance says", () => {
    fc.assert(
      fc.property(fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { minLength: 8, maxLength: 8 }), (chances) => {
        let now = 0;
        const waits: number[] = [];
        for (let failures = 1; ; failures++) {
          const next = nextAttemptMs(failures, now, chances[failures - 1]!, 0);
          if (next === undefined) break;
          waits.push(next - now);
          now = next;
        }
        expect(waits).toHaveLength(maxAttempts - 1);
        expect(now).toBeGreaterThan(24 * hour);
        expect(now).toBeLessThan(31 * hour);
        for (const [n, ms] of [5_000, 300_000, 0.5 * hour, 2 * hour, 5 * hour, 10 * hour, 10 * hour].entries())
          expect(Math.abs(waits[n]! - ms)).toBeLessThanOrEqual(ms / 10 + 1);
      }),
    );
  });

  test("an endpoint can only ask for later, and for ten hours at most", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 7 }),
        fc.nat(2 ** 40),
        fc.double({ min: 0, max: 1, noNaN: true }),
        (failures, asked, chance) => {
          const own = nextAttemptMs(failures, 0, chance, 0)!;
          expect(nextAttemptMs(failures, 0, chance, asked)).toBe(Math.max(own, Math.min(asked, maxRetryAfterMs)));
        },
      ),
    );
    expect(nextAttemptMs(8, 0, 0.5, 1_000)).toBeUndefined();
  });

  test.each([
    ["120", 120_000],
    [" 0 ", 0],
    ["Thu, 01 Jan 1970 01:00:00 GMT", hour],
    ["Wed, 31 Dec 1969 23:00:00 GMT", 0],
    ["", 0],
    ["-1", 0],
    ["1.5", 0],
    ["1e9", 0],
    ["soon", 0],
    ["99999999999", 0],
    ["1970-01-01T01:00:00Z", 0],
    [undefined, 0],
  ])("retry-after: %j asks for %i ms", (header, ms) => expect(retryAfterMs(header, 0)).toBe(ms));

  test("410 gives a webhook up at once, anything else after five days", () => {
    expect(givenUp(410, 1, 0, 0)).toBe("GONE");
    expect(givenUp(500, 8, 0, failingLimitMs - 1)).toBeUndefined();
    expect(givenUp(0, 3, 0, failingLimitMs)).toBe("FAILING");
    expect(givenUp(0, 2, 0, 10 * failingLimitMs)).toBeUndefined();
  });
});

describe("event types", () => {
  test("made disjoint, they let through what they did, and nothing twice", () => {
    fc.assert(
      fc.property(fc.array(pattern, { minLength: 1, maxLength: 8 }), fc.constantFrom(...types), (patterns, type) => {
        const fitting = (of: readonly string[]) => of.filter((one) => patternsOf(type).includes(one)).length;
        expect(fitting(disjoint(patterns))).toBe(fitting(patterns) > 0 ? 1 : 0);
      }),
    );
  });

  test("one that no event can fit is named", () => {
    checkPatterns(["*", "marketplace.*", "message.received"], "event_types");
    for (const wrong of ["message.sent", "nothing.*", "webhook.test"])
      expect(() => checkPatterns(["*", wrong], "event_types")).toThrow(`event_types[1]: there is no event ${wrong}`);
  });
});

test("who sees an event: its agent, those who see all, and everybody what concerns the whole organisation", () => {
  const seen = (wholeOrg: boolean, agentId: string, event: string) => concerns({ wholeOrg, agentId }, event);
  expect([
    seen(false, "a", "a"),
    seen(false, "a", "b"),
    seen(false, "a", ""),
    seen(true, "", "b"),
    seen(true, "", ""),
  ]).toEqual([true, false, true, true, true]);
});

describe("signatures", () => {
  test("are what the independent implementation makes, for any secret, id, time and body", () => {
    fc.assert(
      fc.property(
        fc.uint8Array({ minLength: 24, maxLength: 64 }),
        fc.stringMatching(/^[\w-]{1,40}$/),
        fc.integer({ min: 0, max: 4_000_000_000_000 }),
        fc.string({ unit: "grapheme" }),
        (key, id, atMs, body) => {
          const secret = `whsec_${Buffer.from(key).toString("base64")}`;
          checkSecret(secret, "secret");
          const other = newSecret(randomIds());
          const headers = signedHeaders([secret, other], { id, atMs, body });
          const at = new Date(Math.floor(atMs / 1_000) * 1_000);
          expect(headers).toEqual({
            "webhook-id": id,
            "webhook-timestamp": String(at.getTime() / 1_000),
            "webhook-signature": `${new Webhook(secret).sign(id, at, body)} ${new Webhook(other).sign(id, at, body)}`,
          });
        },
      ),
    );
  });
});
