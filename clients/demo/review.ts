/** A review by counting: how much of a question some quotes speak of, and the gist of them in their own sentences. */
import { sentencesOf, summarise } from "./rank.ts";
import { stem, termsOf, words } from "./search.ts";

/** What is to be reviewed. */
export type Findings = { readonly question: string; readonly quotes: readonly { readonly text: string }[] };

/** What `research/review` answers. */
export type Review = {
  readonly verdict: "answered" | "partly" | "open";
  /** The gist of the quotes. */
  readonly summary: string;
  /** Words of the question that no quote speaks of. */
  readonly missing: string[];
};

const summarySentences = 2;
/** From this part of the question's words on, it is partly answered. */
const partly = 0.5;

/** Reviews the findings. */
export function review({ question, quotes }: Findings): Review {
  const asked = [...new Map(words(question).map((word) => [stem(word), word]))];
  const found = new Set(quotes.flatMap(({ text }) => termsOf(text)));
  const missing = asked.filter(([term]) => !found.has(term)).map(([, word]) => word);
  const part = asked.length === 0 ? 0 : 1 - missing.length / asked.length;
  const verdict = part === 1 ? "answered" : part >= partly ? "partly" : "open";
  return {
    verdict,
    summary: summarise(
      quotes.flatMap(({ text }) => sentencesOf(text)),
      summarySentences,
    ),
    missing,
  };
}

/** The findings in a message, if it is JSON of that form. */
export function findingsIn(message: string): Findings | undefined {
  try {
    const { question, quotes } = JSON.parse(message) as Findings;
    const good = typeof question === "string" && Array.isArray(quotes) && quotes.length > 0;
    return good && quotes.every((quote) => typeof quote?.text === "string") ? { question, quotes } : undefined;
  } catch {
    return undefined;
  }
}
