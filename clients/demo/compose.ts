/** An answer made of the sources' own sentences: nothing is said that a file does not say. */
import { type Hit, termsOf, type Weighted } from "./search.ts";

/** A sentence of a source, with the line it begins at. */
export type Quote = {
  readonly text: string;
  readonly source: string;
  readonly line: number;
  /** What it is said of: the heading above it, or the declaration that it comments. */
  readonly label: string;
  readonly score: number;
};

const minSentenceChars = 30;
const maxSentenceChars = 400;
/** A sentence that adds less than this part of what the best one tells is left out. */
const leastPart = 0.25;
/** How much a term still counts for each time that it was covered before. */
const repeated = 0.4;

const segmenter = new Intl.Segmenter("en", { granularity: "sentence" });

/** Cuts a passage into sentences, each with the line of the file that it begins at. */
export function sentences(hit: Omit<Hit, "score">): Omit<Quote, "score">[] {
  // A line break inside a paragraph ends no sentence; replacing it by one blank keeps every offset.
  const flowing = hit.text.replace(/(?<!\n)\n(?!\n)/g, " ");
  return [...segmenter.segment(flowing)].flatMap(({ segment, index }) => {
    const begin = index + segment.length - segment.trimStart().length;
    const line = hit.line + hit.text.slice(0, begin).split("\n").length - 1;
    const text = segment.replace(/\s+/g, " ").trim();
    return text.length < minSentenceChars || text.length > maxSentenceChars ? [] : [{ ...hit, text, line }];
  });
}

/**
 * Chooses at most `limit` sentences, best first. Each is worth the weights of the terms it has, less for terms that a
 * chosen sentence has already, times how well its passage ranked. Long sentences are held back by the root of their length.
 */
export function compose(terms: readonly Weighted[], hits: readonly Hit[], limit: number): Quote[] {
  const weights = new Map(terms.map(({ term, weight }) => [term, weight]));
  const best = Math.max(...hits.map(({ score }) => score));
  const left = hits.flatMap((hit) =>
    sentences(hit).map((sentence) => {
      const all = termsOf(sentence.text);
      const factor = hit.score / best / Math.sqrt(8 + all.length);
      return { sentence, found: new Set(all.filter((term) => weights.has(term))), factor };
    }),
  );
  const covered = new Map<string, number>();
  const worth = ({ found, factor }: (typeof left)[number]): number =>
    factor * [...found].reduce((sum, term) => sum + weights.get(term)! * repeated ** (covered.get(term) ?? 0), 0);

  const chosen: Quote[] = [];
  while (chosen.length < limit && left.length > 0) {
    const next = left.reduce((one, other) => (worth(other) > worth(one) ? other : one));
    const score = Math.round(worth(next) * 100) / 100;
    if (score === 0 || score < leastPart * (chosen[0]?.score ?? 0)) break;
    chosen.push({ ...next.sentence, score });
    for (const term of next.found) covered.set(term, (covered.get(term) ?? 0) + 1);
    left.splice(left.indexOf(next), 1);
  }
  return chosen;
}
