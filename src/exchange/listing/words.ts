/** By what listings are found. */
import type { Offer } from "../../../gen/moltwire/exchange/v1/listing_pb.ts";
import { type Dialect, type Sql, sql } from "../../db/db.ts";
import { matchText, scopeWord, wordsOf } from "../../directory/words.ts";
import { pricesOf } from "./offer.ts";
import { mostOf } from "./price.ts";
import type { Indexed } from "./store.ts";

/** A word that every listing has which has the tag; perhaps others, as it has no hyphens. */
const tagWord = (tag: string): string => `xtag${tag.replaceAll("-", "")}`;

/** What of an offer is searched, once it is published. */
export function indexOf(offer: Offer): Indexed {
  const { title, description, category, tags, pricing } = offer;
  const titleWords = [...new Set(wordsOf(title))];
  const text = [title, description, category, ...tags].flatMap(wordsOf);
  return {
    category,
    tags: JSON.stringify(tags),
    price_micros: mostOf(pricesOf(pricing!)),
    title_words: ` ${titleWords.join(" ")} `,
    words: [...new Set([scopeWord(undefined), ...tags.map(tagWord), ...text])].join(" "),
  };
}

/** The published listings with all of these words, where a word is the beginning of one, and tags; in the engine's own language. */
export function listingsWith(dialect: Dialect, words: readonly string[], tags: readonly string[]): Sql {
  const text = matchText(dialect, scopeWord(undefined), [...words, ...tags.map(tagWord)]);
  return dialect.name === "sqlite"
    ? sql`select rowid as seq from exchange_words where exchange_words match ${text}`
    : sql`select seq from exchange_listing where cast(words as tsvector) @@ cast(${text} as tsquery)`;
}
