/** TextRank: which sentences of a text the others are most like (Mihalcea and Tarau, "TextRank: Bringing Order into Texts", 2004). */
import { termsOf } from "./search.ts";

const damping = 0.85;
const maxRounds = 100;
const enough = 1e-6;
const maxSentences = 500;

const segmenter = new Intl.Segmenter("en", { granularity: "sentence" });

/** A text as its sentences, without the blanks around them; at most 500. */
export const sentencesOf = (text: string): string[] =>
  [...segmenter.segment(text)]
    .map(({ segment }) => segment.trim())
    .filter((sentence) => sentence !== "")
    .slice(0, maxSentences);

/** The words two sentences share, by how many they have: the measure of the paper, on stems. */
function likeness(one: ReadonlySet<string>, other: ReadonlySet<string>): number {
  if (one.size < 2 || other.size < 2) return 0;
  return one.intersection(other).size / (Math.log(one.size) + Math.log(other.size));
}

/** A rank for each sentence; they add up to their number at most, and only ranks of one call compare. */
export function rank(sentences: readonly string[]): number[] {
  const terms = sentences.map((sentence) => new Set(termsOf(sentence)));
  const weights = terms.map((one, i) => terms.map((other, j) => (i === j ? 0 : likeness(one, other))));
  const sums = weights.map((row) => row.reduce((sum, weight) => sum + weight, 0));
  let ranks = sentences.map(() => 1);
  for (let round = 0; round < maxRounds; round++) {
    const next = ranks.map((_, i) =>
      weights[i]!.reduce(
        (sum, weight, j) => sum + (weight > 0 ? (damping * weight * ranks[j]!) / sums[j]! : 0),
        1 - damping,
      ),
    );
    const change = Math.max(0, ...next.map((value, i) => Math.abs(value - ranks[i]!)));
    ranks = next;
    if (change < enough) break;
  }
  return ranks;
}

/** The highest-ranked sentences of a text, in the order in which they stand. */
export function summarise(sentences: readonly string[], limit: number): string {
  const ranks = rank(sentences);
  return sentences
    .map((sentence, at) => ({ sentence, at }))
    .sort((one, other) => ranks[other.at]! - ranks[one.at]! || one.at - other.at)
    .slice(0, limit)
    .sort((one, other) => one.at - other.at)
    .map(({ sentence }) => sentence)
    .join(" ");
}
