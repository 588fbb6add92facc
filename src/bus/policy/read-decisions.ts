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
  /** This one is kept in any case; the same ones that follow need not be. */
  kept(decided: Decided, now: number): void;
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
  /** Whether it is new. */
  const take = ({ question, answer }: Decided, now: number): boolean => {
    const { principal, action, resource } = question;
    const { kept } = timeOf(`${principal.orgId} ${principal.type} ${principal.id}`, now);
    const key = JSON.stringify([action, resource.type, resource.orgId, resource.id, answer.verdict]);
    if (kept.size >= maxPerPrincipal || kept.has(key)) return false;
    kept.add(key);
    return true;
  };
  return {
    admits(decided, now) {
      const admitted = take(decided, now);
      if (!admitted) leftOut.inc();
      return admitted;
    },
    kept: (decided, now) => void take(decided, now),
  };
}
