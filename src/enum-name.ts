/** The name of an enum's number without its prefix, such as `ACTIVE`; the number itself, as text, if it has no name. */
export const nameIn = (of: Readonly<Record<string, string | number>>, number: number): string =>
  Object.keys(of).find((name) => of[name] === number) ?? String(number);
