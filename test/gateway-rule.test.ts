import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { TrustTier } from "../gen/moltwire/bus/v1/agent_pb.ts";
import { Fault } from "../src/errors.ts";
import { covers, inOrder } from "../src/federation/gateway/choose.ts";
import { beyondCap, beyondTerms } from "../src/federation/gateway/terms.ts";
import { toldAcross } from "../src/federation/gateway/told.ts";

const kinds = ["contractId", "capability", "namespace"] as const;
const grant = fc.record({
  grant_id: fc.stringMatching(/^grt_[0-9a-f]{4}$/),
  subject_kind: fc.constantFrom(...kinds),
  subject: fc.constantFrom("a", "b", ""),
  expire_ms: fc.option(fc.integer({ min: 1, max: 5 })),
});

describe("the grant of a request that names none", () => {
  test("is the same whatever the order in which grants are found", () => {
    fc.assert(
      fc.property(
        fc.uniqueArray(grant, { selector: ({ grant_id }) => grant_id }),
        fc.infiniteStream(fc.nat()),
        (grants, chances) => {
          const shuffled = grants
            .map((one) => ({ one, at: chances.next().value as number }))
            .toSorted((a, b) => a.at - b.at)
            .map(({ one }) => one);
          expect(inOrder(shuffled)).toEqual(inOrder(grants));
        },
      ),
    );
  });

  test("is the closest, then the one that lasts longest, then the oldest", () => {
    const of = (grant_id: string, subject_kind: (typeof kinds)[number], expire_ms: number | null) => ({
      grant_id,
      subject_kind,
      subject: "a",
      expire_ms,
    });
    const best = [
      of("grt_5", "contractId", null),
      of("grt_9", "contractId", null),
      of("grt_1", "contractId", 9),
      of("grt_0", "contractId", 8),
      of("grt_2", "capability", null),
      of("grt_3", "namespace", null),
    ];
    expect(inOrder(best.toReversed())).toEqual(best);
  });

  test("covers a contract when its subject is the contract's own id, capability or namespace, and never by what is empty", () => {
    fc.assert(
      fc.property(
        grant,
        fc.record({
          contract_id: fc.constantFrom("a", "b"),
          capability: fc.constantFrom("a", "b"),
          namespace: fc.constantFrom("a", ""),
        }),
        (one, contract) => {
          const own = {
            contractId: contract.contract_id,
            capability: contract.capability,
            namespace: contract.namespace,
          }[one.subject_kind];
          expect(covers(one, contract)).toBe(one.subject !== "" && own === one.subject);
        },
      ),
    );
  });
});

describe("the terms of a grant", () => {
  const terms = (given: object) => ({ grant_id: "grt_a", terms: JSON.stringify(given) });
  const needs = (...tools: string[]) => ({ required_tools: JSON.stringify(tools) });

  test("that name no tiers, tools or cap allow any", () => {
    expect(beyondTerms(terms({}), TrustTier.PUBLIC_VENDOR, needs("x"))).toBeUndefined();
    expect(beyondCap(terms({}), Number.MAX_SAFE_INTEGER)).toBeUndefined();
  });

  test("that name some allow these and no others", () => {
    const narrow = terms({
      allowedTiers: ["TRUST_TIER_INTERNAL_TRUSTED"],
      allowedTools: ["x", "y"],
      priceCapMicros: "10",
    });
    expect(beyondTerms(narrow, TrustTier.INTERNAL_TRUSTED, needs("y"))).toBeUndefined();
    expect(beyondTerms(narrow, TrustTier.INTERNAL_RESTRICTED, needs())?.metadata.term).toBe("allowed_tiers");
    expect(beyondTerms(narrow, TrustTier.INTERNAL_TRUSTED, needs("x", "z"))?.metadata.actual).toBe("z");
    expect([beyondCap(narrow, 10), beyondCap(narrow, 11)?.metadata.term]).toEqual([undefined, "price_cap_micros"]);
    expect(beyondCap(narrow, undefined)?.metadata).toMatchObject({ term: "price_cap_micros", actual: "unknown" });
  });
});

test("of a fault on the other side nothing is told but its reason, unless both know of it", () => {
  const secret = { agent_id: "agt_secret", url: "http://secret" };
  const inside = toldAcross(new Fault("AGENT_UNREACHABLE", "http://secret refused", secret), "org_b");
  expect([inside.reason, inside.metadata]).toEqual(["AGENT_UNREACHABLE", { org_id: "org_b" }]);
  expect(inside.message).not.toContain("secret");
  expect(toldAcross(new Fault("NOT_FOUND", "agent not found", secret), "org_b").reason).toBe("NO_CAPABLE_AGENT");
  const output = new Fault("CONTRACT_VIOLATION", "output.secret: no", { direction: "output" });
  expect(toldAcross(output, "org_b").message).not.toContain("secret");
  for (const shared of [
    new Fault("GRANT_QUOTA_EXCEEDED", "figures", { limit: "5" }),
    new Fault("CONTRACT_VIOLATION", "input.a: no", { direction: "input", field: "input.a" }),
  ]) {
    const same = toldAcross(shared, "org_b");
    expect([same.reason, same.message, same.metadata]).toEqual([shared.reason, shared.message, shared.metadata]);
  }
});
