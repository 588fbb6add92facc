/** A whole number from 1 from the environment. */
export function wholeNumber(name: string, fallback: number): number {
  const value = Number(process.env[name] || fallback);
  if (!Number.isSafeInteger(value) || value < 1) throw new Error(`${name} must be a whole number from 1`);
  return value;
}

/** FULL: as many kills on PostgreSQL as on SQLite. */
export const full = Boolean(process.env.FULL);

/** Chooses what happens, so that it can be had again: CRASH_SEED, or any. */
export const seed = wholeNumber("CRASH_SEED", Math.floor(Math.random() * 2 ** 31));
