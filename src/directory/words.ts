/** What full text means here: the same words on both engines, whatever their own parsers would make of them. */
import type { Sql } from "../db/db.ts";
import { type Dialect, sql } from "../db/db.ts";

const maxWordLength = 64;
/** The most words of a search that count. */
export const maxSearchWords = 10;

/** The words of a text: runs of letters and digits, lower case, without accents; of a word longer than 64 characters the beginning. */
export const wordsOf = (text: string): string[] =>
  (
    text
      .normalize("NFKD")
      .replaceAll(/\p{M}/gu, "")
      .toLowerCase()
      .match(/[\p{L}\p{N}]+/gu) ?? []
  ).map((word) => word.slice(0, maxWordLength).toWellFormed().replaceAll("\ufffd", ""));

/**
 * A word that every profile has which a search in this scope may find, so that the index finds no others: an organisation, or undefined for the public. It only
 * narrows: whoever writes such a word in a description is still not seen by whom they must not be.
 */
export const scopeWord = (orgId: string | undefined): string =>
  orgId === undefined ? "xscopepublic" : `xscope${orgId.replaceAll("_", "")}`;

/** What an index of words is asked for all of these words, where a word is the beginning of one; in the engine's own language. */
export const matchText = (dialect: Dialect, scope: string, words: readonly string[]): string =>
  dialect.name === "sqlite"
    ? [`"${scope}"`, ...words.map((word) => `"${word}" *`)].join(" AND ")
    : [`'${scope}'`, ...words.map((word) => `'${word}':*`)].join(" & ");

/** The profiles with all of these words. */
export function wordsQuery(dialect: Dialect, scope: string, words: readonly string[]): Sql {
  const text = matchText(dialect, scope, words);
  return dialect.name === "sqlite"
    ? sql`select rowid as seq from directory_words where directory_words match ${text}`
    : sql`select seq from directory_profile where cast(words as tsvector) @@ cast(${text} as tsquery)`;
}
