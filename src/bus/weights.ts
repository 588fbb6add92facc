/**
 * Weighted round robin, evenly spread ("smooth"): in each cycle of as many turns as the weights are in sum, everybody has exactly its weight in
 * turns, and they lie as far apart as can be. Turn by turn it gives what smooth weighted round robin (nginx) is for, and it is a function of
 * the turn alone, so that a dry run, a body that runs twice and a later look all see the same.
 *
 * The k-th turn (from 0) of somebody with the weight w is due at (2k + 1) / 2w of a cycle; turns are taken in the order in which they are due.
 */
const due = (k: number, weight: number): number => (2 * k + 1) / (2 * weight);

/**
 * Who is tried first at a turn, who next and so on: indexes of the weights, which are integers from 1, ordered by when each is due for the next
 * time; ties go to the lower index. `turn` counts from 0.
 */
export function inTurn(weights: readonly number[], turn: number): number[] {
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  const place = turn % Math.max(1, total);
  const taken = takenBefore(weights, total, place);
  const next = weights.map((weight, index) => due(taken[index]!, weight));
  return weights.map((_, index) => index).toSorted((a, b) => next[a]! - next[b]! || a - b);
}

/** How many of the first `place` turns of a cycle are each one's. */
function takenBefore(weights: readonly number[], total: number, place: number): number[] {
  // Of the turns due up to a time there are, by rounding, half a turn for each more or fewer than the share of that time: the rest is counted.
  const surely = Math.max(0, place - weights.length) / total;
  const surelyNot = (place + weights.length) / total;
  const taken = weights.map((weight) => Math.floor(weight * surely + 0.5));
  const near: { readonly index: number; readonly at: number }[] = [];
  for (const [index, weight] of weights.entries())
    for (let k = taken[index]!; due(k, weight) <= surelyNot; k++) near.push({ index, at: due(k, weight) });
  near.sort((a, b) => a.at - b.at || a.index - b.index);
  const left = place - taken.reduce((sum, count) => sum + count, 0);
  for (const { index } of near.slice(0, left)) taken[index]!++;
  return taken;
}
