/** What policies say to a question, with why. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { type PolicyAnswerSchema, PolicyEffect, PolicyVerdict } from "../../../gen/moltwire/bus/v1/policy_pb.ts";
import type { CedarOutcome } from "./cedar.ts";
import type { Entity } from "./entity.ts";
import type { Statement } from "./statement.ts";

export type Verdict = "ALLOW" | "DENY" | "REQUIRE_APPROVAL";

export type Determining = {
  readonly policyId: string;
  readonly revision: number;
  readonly effect: "permit" | "forbid";
  /** Empty unless it asks for an approval. */
  readonly approval: string;
};

export type Answer = {
  readonly verdict: Verdict;
  /** In the order of their ids, at most {@link maxNamed}. */
  readonly determining: readonly Determining[];
  /** Sentences for people. */
  readonly reasons: readonly string[];
  readonly faults: readonly {
    readonly policyId: string;
    readonly effect: "permit" | "forbid";
    readonly message: string;
  }[];
  /** Which policy set answered. */
  readonly setRevision: number;
};

/** How many policies and how many faults an answer names. */
export const maxNamed = 50;
const maxMessageLength = 512;
const maxGistLength = 160;

/** Who, what, with what. */
type Asked = { readonly principal: Entity; readonly action: string; readonly resource: Entity };

/** One answer from what the parts of a policy set said. */
export function toAnswer(
  asked: Asked,
  outcomes: readonly CedarOutcome[],
  find: (policyId: string) => Statement,
  setRevision: number,
): Answer {
  const failed = new Map(
    outcomes
      .flatMap(({ errors }) => errors)
      .toSorted(byId)
      .map(({ policyId, message }) => [policyId, message]),
  );
  const matched = (allowed: boolean) =>
    outcomes.filter((one) => one.allowed === allowed).flatMap(({ reasons }) => reasons);
  const failedForbids = [...failed.keys()].filter((policyId) => find(policyId).facts.effect === "forbid");
  // In a part that is denied the reasons are its forbids.
  const forbids = [...matched(false), ...failedForbids];
  const says = (forbids.length > 0 ? forbids : matched(true)).toSorted().map(find);
  const asks = says.filter(({ facts }) => facts.approval !== null);
  const permitted = asks.length > 0 ? "REQUIRE_APPROVAL" : "ALLOW";
  const verdict = forbids.length > 0 || says.length === 0 ? "DENY" : permitted;
  // Those that ask for an approval first, so that none of what has to be approved is cut off.
  const named = [...asks, ...says.filter(({ facts }) => facts.approval === null)].slice(0, maxNamed);
  return {
    verdict,
    determining: named
      .map(({ policyId, revision, facts }) => ({
        policyId,
        revision,
        effect: facts.effect,
        approval: facts.approval ?? "",
      }))
      .toSorted(byId),
    reasons: named.length === 0 ? [nothingPermits(asked)] : named.map((one) => sentence(one, failed.get(one.policyId))),
    faults: [...failed].slice(0, maxNamed).map(([policyId, message]) => ({
      policyId,
      effect: find(policyId).facts.effect,
      message: message.slice(0, maxMessageLength),
    })),
    setRevision,
  };
}

const byId = (a: { readonly policyId: string }, b: { readonly policyId: string }): number =>
  a.policyId < b.policyId ? -1 : 1;

function sentence({ policyId, description, facts }: Statement, failure: string | undefined): string {
  const what = description && `: ${gist(description)}`;
  if (failure !== undefined)
    return `${policyId} forbids it, because it could not be evaluated: ${failure.slice(0, maxMessageLength)}`;
  if (facts.effect === "forbid") return `${policyId} forbids it${what}`;
  if (facts.approval === null) return `${policyId} permits it${what}`;
  return `${policyId} permits it once it is approved: ${facts.approval}`;
}

/** The first sentence, which is kept with every decision. */
const gist = (description: string): string => {
  const end = description.search(/[.:;]\s/);
  return (end === -1 ? description : description.slice(0, end)).slice(0, maxGistLength).replace(/\.$/, "");
};

const nothingPermits = ({ principal, action, resource }: Asked): string => {
  const { uid: who } = principal;
  const { uid: what } = resource;
  const policy = `permit (principal == ${who.type}::${JSON.stringify(who.id)}, action == Action::"${action}", resource == ${what.type}::${JSON.stringify(what.id)});`;
  return `no policy permits ${nameOf(principal)} to ${action} ${nameOf(resource)}; this one would: ${policy} Try it as a draft with TestPolicy, then put it with PutPolicy`;
};

const nameOf = ({ type, id }: Entity): string => `the ${type.toLowerCase()} ${id}`;

export const toPolicyAnswer = (answer: Answer): MessageInitShape<typeof PolicyAnswerSchema> => ({
  verdict: PolicyVerdict[answer.verdict],
  determiningPolicies: answer.determining.map(({ revision, effect, ...rest }) => ({
    ...rest,
    revision: BigInt(revision),
    effect: effects[effect],
  })),
  reasons: [...answer.reasons],
  faults: answer.faults.map(({ effect, ...rest }) => ({ ...rest, effect: effects[effect] })),
});

export const effects = { permit: PolicyEffect.PERMIT, forbid: PolicyEffect.FORBID } as const;
