/** Finding addresses in text. Each character is looked at a bounded number of times, whatever the text. */

/** No white space, quotes, angle brackets, or what RFC 3986 lets no URL hold. */
const urlPattern = /https?:\/\/[^\s<>"`{}|\\^\p{C}]+/giu;
/** What ends a sentence or a clause, and not a URL, in the scripts of East Asia too. */
const closing = new Set([..."'.,;:!?*_~…、。，．！？；：」』】》”’»"]);
const brackets: Readonly<Record<string, string>> = { ")": "(", "]": "[", "）": "（" };

/** http and https URLs, as they stand. */
export const urlsIn = (text: string): string[] =>
  [...text.matchAll(urlPattern)].map(([url]) => trimUrl(url)).filter((url) => /^https?:\/\/[^/?#]/i.test(url));

/** Without the punctuation that follows it; a closing bracket stays if it closes one inside. */
function trimUrl(url: string): string {
  const open = new Map(
    Object.entries(brackets).map(([close, opening]) => [close, count(url, close) - count(url, opening)]),
  );
  let end = url.length;
  for (; end > 0; end--) {
    const last = url[end - 1]!;
    const surplus = open.get(last);
    if (surplus !== undefined) {
      if (surplus <= 0) break;
      open.set(last, surplus - 1);
    } else if (!closing.has(last)) break;
  }
  return url.slice(0, end);
}

const count = (text: string, wanted: string): number => {
  let found = 0;
  for (const character of text) if (character === wanted) found++;
  return found;
};

/** RFC 5321, section 4.5.3.1. */
const maxLocal = 64;
const maxDomain = 255;
/** Of what RFC 5321 lets be: no signs that more often stand before an address than in it. */
const local = /[A-Za-z0-9._%+-]/;
const domain = /[A-Za-z0-9.-]/;
const hostPattern = /^(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])$/;

/**
 * E-mail addresses, as they stand: from each @ a bounded number of characters to both sides. A pattern for all of it would begin anew at every letter of a long
 * word, in the square of its length.
 */
export function emailsIn(text: string): string[] {
  const found: string[] = [];
  let taken = 0;
  for (let at = text.indexOf("@"); at !== -1; at = text.indexOf("@", at + 1)) {
    let start = at;
    while (start > taken && at - start <= maxLocal && local.test(text[start - 1]!)) start--;
    let end = at + 1;
    while (end < text.length && end - at <= maxDomain + 1 && domain.test(text[end]!)) end++;
    const user = trimUser(text.slice(start, at));
    while (end > at + 1 && /[.-]/.test(text[end - 1]!)) end--;
    const host = text.slice(at + 1, end);
    if (!isUser(user) || host.length > maxDomain || !hostPattern.test(host)) continue;
    found.push(`${user}@${host}`);
    taken = end;
  }
  return found;
}

/** Punctuation before an address is not part of it. */
const trimUser = (user: string): string => user.replace(/^[^A-Za-z0-9_]{1,65}/, "");

const isUser = (user: string): boolean =>
  user !== "" && user.length <= maxLocal && !user.endsWith(".") && !user.includes("..");
