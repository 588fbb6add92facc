/**
 * Reputation: the weighted mean of what ratings are worth, where the weight of a rating halves with every 180 days.
 *
 *     worth      = 0.7 × rating + 0.3 × (5 for SUCCESS, 2.5 for PARTIAL, 0 for FAILURE)      from 0.7 to 5
 *     weight     = 2 ^ (−age / 180 days)
 *     reputation = Σ weight × worth / Σ weight                                               0 without ratings
 *
 * Both sums shrink alike with time, so that their quotient changes only with a new rating: it is kept, and no list of ratings is walked.
 */
import { Outcome } from "../../gen/moltwire/directory/v1/collaboration_pb.ts";

export const halfLifeMs = 180 * 86_400_000;
const ratingShare = 0.7;
const best = 5;

/** Both sums as they stood at `atMs`. */
export type Standing = {
  readonly sum: number;
  readonly weight: number;
  readonly atMs: number;
  readonly ratings: number;
};

export const unrated: Standing = { sum: 0, weight: 0, atMs: 0, ratings: 0 };

const outcomeWorth: Partial<Record<Outcome, number>> = {
  [Outcome.SUCCESS]: best,
  [Outcome.PARTIAL]: best / 2,
  [Outcome.FAILURE]: 0,
};

/** What a rating of 1 to 5 is worth. */
export const worthOf = (rating: number, outcome: Outcome): number =>
  ratingShare * rating + (1 - ratingShare) * (outcomeWorth[outcome] ?? 0);

/** The standing with one rating more. One that is older than the last (a clock stepped back) counts as much less. */
export function addRating(standing: Standing, worth: number, atMs: number): Standing {
  const ratings = standing.ratings + 1;
  if (standing.ratings === 0) return { sum: worth, weight: 1, atMs, ratings };
  const faded = 2 ** (-Math.abs(atMs - standing.atMs) / halfLifeMs);
  if (atMs < standing.atMs)
    return { ...standing, sum: standing.sum + worth * faded, weight: standing.weight + faded, ratings };
  return { sum: standing.sum * faded + worth, weight: standing.weight * faded + 1, atMs, ratings };
}

/** In thousandths, from 0 to 5,000. */
export const reputationMilli = ({ sum, weight }: Standing): number =>
  weight > 0 ? Math.min(best * 1_000, Math.max(0, Math.round((1_000 * sum) / weight))) : 0;
