/** Full-text search over passages, ranked by BM25. */
import type { Passage } from "./corpus.ts";

/** A search term: a word's stem and how much it tells. */
export type Term = {
  readonly term: string;
  /** The word as it was asked. */
  readonly word: string;
  /** Its inverse document frequency: the rarer the term is in the corpus, the higher. */
  readonly weight: number;
  /** How many passages have it. */
  readonly passages: number;
};

/** A passage with its score; higher is better, and only scores of one search compare. */
export type Hit = Passage & { readonly score: number };

/** As much of a term as a search needs. */
export type Weighted = Pick<Term, "term" | "weight">;

/** What can be asked of a corpus. */
export type Index = {
  /** The terms of a question that the corpus knows, rarest first, at most `limit`; and its words that the corpus does not know. */
  readonly terms: (question: string, limit: number) => { terms: readonly Term[]; unknown: readonly string[] };
  /** The passages that have any of the terms, best first, at most `limit`. */
  readonly search: (terms: readonly Weighted[], limit: number) => readonly Hit[];
};

/**
 * BM25's usual constants (Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009): how fast repetition
 * stops to count, and how much long passages are held back.
 */
const k1 = 1.2;
const b = 0.75;

const stopWords = new Set(
  `a about after again all also an and any are as at be because been before but by can could did do does done each for
  from get go had has have he her his how i if in into is it its just let may me more most my no nor not of off on once
  only or other our out over own same she should so some such than that the their them then there these they this those
  through to too under until up upon us very was we were what when where which while who whom whose why will with would
  you your become becomes happen happens`.split(/\s+/),
);

/** The words of a text: lower case, identifiers such as `OUTCOME_UNKNOWN` and `TailTraces` taken apart, function words left out. */
export function words(text: string): string[] {
  const apart = text.replace(/(\p{Ll}|\d)(\p{Lu})/gu, "$1 $2").toLowerCase();
  return (apart.match(/[\p{L}\p{N}]+/gu) ?? []).filter((word) => word.length > 1 && !stopWords.has(word));
}

/** A word without its ending, so that "kill", "kills", "killed" and "killing" are one term. A light English stemmer, not a dictionary. */
export function stem(word: string): string {
  let root = word;
  if (/[^aeiou]ies$/.test(root)) root = `${root.slice(0, -3)}y`;
  else if (/[^sui]s$/.test(root) && root.length > 3) root = root.slice(0, -1);
  const verb = /^(.*[aeiouy].*?)(?:ing|ed)$/.exec(root)?.[1];
  if (verb && verb.length > 2) root = verb;
  return root.length > 3 ? root.replace(/e$/, "").replace(/([bdgklmnprt])\1$/, "$1") : root;
}

/** The terms of a text, in order, repetitions included. */
export const termsOf = (text: string): string[] => words(text).map(stem);

/** Makes an index in memory: for some thousands of passages. */
export function buildIndex(passages: readonly Passage[]): Index {
  const postings = new Map<string, Map<number, number>>();
  const lengths = passages.map(({ text, label }, at) => {
    const terms = termsOf(`${label} ${text}`);
    for (const term of terms) {
      const counts = postings.get(term) ?? postings.set(term, new Map()).get(term)!;
      counts.set(at, (counts.get(at) ?? 0) + 1);
    }
    return terms.length;
  });
  const averageLength = lengths.reduce((sum, length) => sum + length, 0) / Math.max(1, lengths.length);
  const frequency = (term: string): number => postings.get(term)?.size ?? 0;
  const rarity = (term: string): number =>
    Math.log(1 + (passages.length - frequency(term) + 0.5) / (frequency(term) + 0.5));

  return {
    terms(question, limit) {
      const asked = [...new Map(words(question).map((word) => [stem(word), word]))];
      const known = asked
        .filter(([term]) => frequency(term) > 0)
        .map(([term, word]) => ({ term, word, weight: round(rarity(term)), passages: frequency(term) }))
        .sort((one, other) => other.weight - one.weight);
      return {
        terms: known.slice(0, limit),
        unknown: asked.filter(([term]) => frequency(term) === 0).map(([, word]) => word),
      };
    },
    search(terms, limit) {
      const scores = new Map<number, number>();
      for (const { term, weight } of terms) {
        for (const [at, count] of postings.get(term) ?? []) {
          const held = k1 * (1 - b + (b * lengths[at]!) / averageLength);
          scores.set(at, (scores.get(at) ?? 0) + (weight * count * (k1 + 1)) / (count + held));
        }
      }
      return [...scores]
        .sort(([one, first], [other, second]) => second - first || one - other)
        .slice(0, limit)
        .map(([at, score]) => ({ ...passages[at]!, score: round(score) }));
    },
  };
}

const round = (value: number): number => Math.round(value * 100) / 100;
