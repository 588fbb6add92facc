import { Fault, Refused } from "../../errors.ts";

/** How often it is begun. After the first race a look finds the credits gone, as a rule. */
const rounds = 3;

/**
 * Runs a transaction that looks whether there are enough credits and then takes them, and runs it again when another has taken them in between: that has undone all of it, and only a look keeps
 * what comes of too few.
 */
export async function unlessRaced<T>(run: () => Promise<T>): Promise<T> {
  for (let round = 1; ; round++)
    try {
      return await run();
    } catch (error) {
      const isRaced = error instanceof Fault && !(error instanceof Refused) && error.reason === "INSUFFICIENT_CREDITS";
      if (!isRaced || round === rounds) throw error;
    }
}
