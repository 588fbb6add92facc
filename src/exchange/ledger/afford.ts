/** Whether there is enough: a look, which others may be faster than. */
import type { Queryable } from "../../db/db.ts";
import { Fault, Refused } from "../../errors.ts";
import type { Account } from "./account.ts";
import { readStanding } from "./store.ts";

/** What an account can pay with now. */
export async function availableOf(db: Queryable, account: Account, now: number): Promise<bigint> {
  const standing = await readStanding(db, account, now);
  return standing ? standing.balance - standing.reserved + standing.lapsed : 0n;
}

/** How often it is begun. After the first race a look finds the credits gone, as a rule. */
const rounds = 3;
const retryMs = 100;

/** Another transaction has changed what was looked at; OVERLOADED to a caller who meets it again and again. */
export class Raced extends Fault {
  constructor(message: string) {
    super("OVERLOADED", message, {}, { retryAfterMs: retryMs });
  }
}

/**
 * Runs a transaction that looks whether there are enough credits and then takes them, and runs it again when another has taken them in between, or with {@link Raced}: that has undone all of
 * it, and only a look keeps what comes of too few.
 */
export async function unlessRaced<T>(run: () => Promise<T>): Promise<T> {
  for (let round = 1; ; round++)
    try {
      return await run();
    } catch (error) {
      const isShort = error instanceof Fault && !(error instanceof Refused) && error.reason === "INSUFFICIENT_CREDITS";
      if (!(isShort || error instanceof Raced) || round === rounds) throw error;
    }
}
