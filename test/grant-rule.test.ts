import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { GrantAct, GrantParty, GrantState } from "../gen/moltwire/federation/v1/grant_pb.ts";
import { type Act, isLive, outcomeOf, stateAt, wasAccepted } from "../src/federation/grant/rule.ts";

const states = ["PROPOSED", "ACTIVE", "SUSPENDED", "DECLINED", "REVOKED", "EXPIRED"] as const;
const acts = ["ACCEPT", "DECLINE", "UPDATE", "SUSPEND", "RESUME", "REVOKE", "EXPIRE"] as const;
const parties = ["UNSPECIFIED", "GRANTOR", "GRANTEE"] as const;
type State = (typeof states)[number];

/** What the outcome is called in the table: the next state, "same", "no", or whose it is. */
function said(act: (typeof acts)[number], party: (typeof parties)[number], state: State): string {
  const outcome = outcomeOf(GrantAct[act], GrantParty[party], GrantState[state]);
  if (outcome.kind === "changes") return states.find((name) => GrantState[name] === outcome.to)!;
  if (outcome.kind === "party") return `for ${parties.find((name) => GrantParty[name] === outcome.required)}`;
  return outcome.kind === "same" ? "same" : "no";
}

describe("the life of a grant", () => {
  // In the order of the states: PROPOSED, ACTIVE, SUSPENDED, DECLINED, REVOKED, EXPIRED.
  test.each([
    ["ACCEPT", "GRANTEE", ["ACTIVE", "same", "no", "no", "no", "no"]],
    ["ACCEPT", "GRANTOR", Array(6).fill("for GRANTEE")],
    ["DECLINE", "GRANTEE", ["DECLINED", "no", "no", "same", "no", "no"]],
    ["DECLINE", "GRANTOR", Array(6).fill("for GRANTEE")],
    ["UPDATE", "GRANTOR", ["PROPOSED", "ACTIVE", "SUSPENDED", "no", "no", "no"]],
    ["UPDATE", "GRANTEE", Array(6).fill("for GRANTOR")],
    ["SUSPEND", "GRANTOR", ["no", "SUSPENDED", "same", "no", "no", "no"]],
    ["SUSPEND", "GRANTEE", Array(6).fill("for GRANTOR")],
    ["RESUME", "GRANTOR", ["no", "same", "ACTIVE", "no", "no", "no"]],
    ["RESUME", "GRANTEE", Array(6).fill("for GRANTOR")],
    ["REVOKE", "GRANTOR", ["REVOKED", "REVOKED", "REVOKED", "no", "same", "no"]],
    ["REVOKE", "GRANTEE", ["for GRANTOR", "REVOKED", "REVOKED", "no", "same", "no"]],
    ["EXPIRE", "UNSPECIFIED", ["EXPIRED", "EXPIRED", "EXPIRED", "no", "no", "same"]],
    ["EXPIRE", "GRANTOR", Array(6).fill("for UNSPECIFIED")],
    ["EXPIRE", "GRANTEE", Array(6).fill("for UNSPECIFIED")],
  ] as const)("%s by %s", (act, party, outcomes) => {
    expect(states.map((state) => said(act, party, state))).toEqual([...outcomes]);
  });

  const doings = fc.array(fc.record({ act: fc.constantFrom(...acts), party: fc.constantFrom(...parties) }));

  test("whatever is tried: what has ended stays, nothing is in force that the grantee did not accept, and only the grantor holds it", () => {
    fc.assert(
      fc.property(doings, (tried) => {
        let state: GrantState = GrantState.PROPOSED;
        let accepted = false;
        for (const { act, party } of tried) {
          const outcome = outcomeOf(GrantAct[act] as Act, GrantParty[party], state);
          if (outcome.kind !== "changes") continue;
          expect(isLive(state)).toBe(true);
          accepted ||= act === "ACCEPT" && party === "GRANTEE";
          if (outcome.to === GrantState.SUSPENDED && act !== "UPDATE") expect(party).toBe("GRANTOR");
          state = outcome.to;
          if (wasAccepted(state)) expect(accepted).toBe(true);
        }
      }),
      { numRuns: 2_000 },
    );
  });

  test("an act that has been done once changes nothing the second time, but for an update", () => {
    for (const act of acts)
      for (const party of parties)
        for (const state of states) {
          const first = outcomeOf(GrantAct[act], GrantParty[party], GrantState[state]);
          if (first.kind !== "changes" || act === "UPDATE") continue;
          expect(outcomeOf(GrantAct[act], GrantParty[party], first.to).kind).toBe("same");
        }
  });

  test("a grant is EXPIRED from the millisecond of its time on, unless it has ended otherwise", () => {
    for (const state of states) {
      const stored = GrantState[state];
      expect(stateAt(stored, null, 10)).toBe(stored);
      expect(stateAt(stored, 11, 10)).toBe(stored);
      expect(stateAt(stored, 10, 10)).toBe(isLive(stored) ? GrantState.EXPIRED : stored);
    }
    expect(states.filter((state) => isLive(GrantState[state]))).toEqual(["PROPOSED", "ACTIVE", "SUSPENDED"]);
  });
});
