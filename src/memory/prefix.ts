const lastCodePoint = 0x10ffff;
const [firstSurrogate, lastSurrogate] = [0xd800, 0xdfff];

/**
 * The first text after all those that begin with the prefix, in the order of the bytes of UTF-8, which is that of code points; undefined when there is none.
 * So a prefix is a range of an index, and nothing in it is a wildcard.
 */
export function endOfPrefix(prefix: string): string | undefined {
  const points = Array.from(prefix, (character) => character.codePointAt(0)!);
  while (points.at(-1) === lastCodePoint) points.pop();
  const last = points.pop();
  if (last === undefined) return undefined;
  const next = last + 1 === firstSurrogate ? lastSurrogate + 1 : last + 1;
  return String.fromCodePoint(...points, next);
}
