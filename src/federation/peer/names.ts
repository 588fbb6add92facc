/** The name of an enum's number, as ErrorReason and TaskState have them; the number itself for one that this program does not know. */
export const nameIn = (of: Readonly<Record<string, number>>, number: number): string =>
  Object.keys(of).find((name) => of[name] === number) ?? String(number);
