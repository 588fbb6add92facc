/** What the demo's researcher can do, by capability. Inputs have passed the contracts' schemas (contracts.ts). */
import { compose, type Quote } from "./compose.ts";
import type { Passage } from "./corpus.ts";
import { buildIndex, type Hit, type Term, type Weighted } from "./search.ts";

/** What `research/outline` answers: what to search for. */
export type Outline = {
  readonly terms: Term[];
  /** Words of the question that no passage has. */
  readonly unknown: string[];
};
/** What `research/search` answers: the passages, best first, out of how many. */
export type Found = { readonly passages: Hit[]; readonly searched: number; readonly files: number };
/** What `research/compose` answers: the sentences, best first. */
export type Composed = { readonly quotes: Quote[] };
/** What `research/answer` answers: all of it in one go. */
export type Answered = Composed & Pick<Found, "searched" | "files">;

const maxTerms = 8;
const passageLimit = 8;
const quoteLimit = 4;

/**
 * Indexes a corpus.
 *
 * @returns a function from input to output for each capability; each throws an Error with a sentence if there is nothing to find.
 */
export function research(corpus: {
  readonly files: number;
  readonly passages: readonly Passage[];
}): ReadonlyMap<string, (input: never) => Outline | Found | Composed | Answered> {
  const index = buildIndex(corpus.passages);
  const abilities = {
    "research/outline"({ question }: { question: string }): Outline {
      const { terms, unknown } = index.terms(question, maxTerms);
      if (terms.length === 0) throw new Error("the documents have no word of the question");
      return { terms: [...terms], unknown: [...unknown] };
    },
    "research/search"({ terms, limit }: { terms: Weighted[]; limit: number }): Found {
      const passages = index.search(terms, limit);
      if (passages.length === 0) throw new Error("no passage has any of the terms");
      return { passages: [...passages], searched: corpus.passages.length, files: corpus.files };
    },
    "research/compose"({ terms, passages, limit }: { terms: Weighted[]; passages: Hit[]; limit: number }): Composed {
      const quotes = compose(terms, passages, limit);
      if (quotes.length === 0) throw new Error("no passage has a whole sentence with any of the terms");
      return { quotes };
    },
    "research/answer"({ question }: { question: string }): Answered {
      const { terms } = abilities["research/outline"]({ question });
      const { passages, searched, files } = abilities["research/search"]({ terms, limit: passageLimit });
      return { ...abilities["research/compose"]({ terms, passages, limit: quoteLimit }), searched, files };
    },
  };
  return new Map(Object.entries(abilities));
}
