/** Keeps reads from writing much: a flood of them must not become a flood of rows in the decision log. */
import type { Metrics } from "../../ops/metrics.ts";
import type { Decided } from "./decide-task.ts";

/** How long a decision on a read stands for the same ones that follow, and how many different ones of one principal are kept in that time. */
export const standsMs = 10_000;
export const maxPerPrincipal = 100;
/** Beyond, whose time began first is forgotten, and may then be kept again too soon. */
const maxPrincipals = 1_000;

/** Which decisions on reads are kept, in this process. */
export type ReadDecisions = {
  /** Whether to keep this one: the first of its principal, action, resource and verdict within {@link standsMs}, and not beyond {@link maxPerPrincipal}. The others are counted. */
  admits(decided: Decided, now: number): boolean;
  /** Whether it would, for whoever does not know yet whether it will be kept; `pending` others are in the same position. */
  wouldAdmit(decided: Decided, now: number, pending: number): boolean;
  /** This one is kept in any case; the same ones that follow need not be. */
  kept(decided: Decided, now: number): void;
  /** This one was admitted and could not be kept: the next one like it is to be. */
  lost(decided: Decided, now: number): void;
};

type Time = { readonly untilMs: number; readonly kept: Set<string> };

export function createReadDecisions(metrics: Pick<Metrics, "counter">): ReadDecisions {
  const leftOut = metrics.counter(
    "moltwire_policy_decisions_left_out_total",
    "Decisions on reads that were not kept, because one like them just was",
  );
  const times = new Map<string, Time>();
  const timeOf = (principal: string, now: number): Time => {
    const known = times.get(principal);
    if (known && now < known.untilMs && now >= known.untilMs - standsMs) return known;
    const begun = { untilMs: now + standsMs, kept: new Set<string>() };
    times.delete(principal); // last in the order of insertion = begun last
    times.set(principal, begun);
    if (times.size > maxPrincipals) times.delete(times.keys().next().value!);
    return begun;
  };
  const keptBy = ({ question: { principal } }: Decided, now: number): Set<string> =>
    timeOf(`${principal.orgId} ${principal.type} ${principal.id}`, now).kept;
  const wouldAdmit = (decided: Decided, now: number, pending: number): boolean => {
    const kept = keptBy(decided, now);
    const admitted = kept.size + pending < maxPerPrincipal && !kept.has(keyOf(decided));
    if (!admitted) leftOut.inc();
    return admitted;
  };
  const keep = (decided: Decided, now: number): void => {
    const kept = keptBy(decided, now);
    if (kept.size < maxPerPrincipal) kept.add(keyOf(decided));
  };
  return {
    admits(decided, now) {
      const admitted = wouldAdmit(decided, now, 0);
      if (admitted) keep(decided, now);
      return admitted;
    },
    wouldAdmit,
    kept: keep,
    lost: (decided, now) => void keptBy(decided, now).delete(keyOf(decided)),
  };
}

/** What makes two decisions on one principal the same. */
export const keyOf = ({ question: { action, resource }, answer }: Decided): string =>
  JSON.stringify([action, resource.type, resource.orgId, resource.id, answer.verdict]);
