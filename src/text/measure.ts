/** Counting, splitting and thinning out text. */

/** Runs of what is not white space. */
export const wordCount = (text: string): number => text.match(/\S+/g)?.length ?? 0;

/** Code points, and those that are no white space. */
export function charCount(text: string): { total: number; withoutSpaces: number } {
  let [total, spaces] = [0, 0];
  for (const character of text) {
    total++;
    if (/\s/.test(character)) spaces++;
  }
  return { total, withoutSpaces: total - spaces };
}

/** The rules of Unicode (UAX #29), which are the same for all languages. */
const sentences = new Intl.Segmenter("und", { granularity: "sentence" });

/** The sentences without the white space around them. */
export const sentencesOf = (text: string): string[] =>
  Array.from(sentences.segment(text), ({ segment }) => segment.trim()).filter((sentence) => sentence !== "");

/** The first of equal lines, in their order. */
export const uniqueLines = (text: string): string => [...new Set(text.split(/\r\n|\n|\r/))].join("\n");
