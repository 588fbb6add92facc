/** What pages show: their blocks of code, in their order. */
import { readFileSync } from "node:fs";

export type Block = {
  /** `sh`, `ts`, …; empty where the page does not say. */
  readonly language: string;
  readonly body: string;
  /** Where the page says to save it. */
  readonly file?: string;
};

/** The text of a file of the project. */
export const page = (file: string): string => readFileSync(new URL(`../../${file}`, import.meta.url), "utf8");

/** The blocks of a page. One is saved as the file that the line before it names: "Save this as `FILE`:". */
export const blocksOf = (file: string): Block[] =>
  [...page(file).matchAll(/(?:Save this as `([^`]+)`:\n\n)?^```(\w*)\n(.*?)^```$/gms)].map(
    ([, save, language, body]) => ({ language: language!, body: body!, ...(save && { file: save }) }),
  );
