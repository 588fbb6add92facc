/** How many requests come under a grant in a minute. */
import type { App } from "../../app.ts";
import { type Allowance, tell } from "../../rpc/limits.ts";
import { type GrantRow, termsOf } from "../grant/store.ts";

/** Counts a request under the grant that it comes under: RATE_LIMITED when that lets no more come now. Called again, as its transaction may run again, it counts nothing more. */
export type CountUnder = {
  (grant: GrantRow): void;
  /** Runs the command that counts: once more, where the count has to be asked of what replicas share, and a transaction may not wait for that. */
  around<T>(run: () => Promise<T>): Promise<T>;
};

/** Ends a transaction that has to wait for a count. */
class Counting extends Error {
  readonly count: Promise<unknown>;

  constructor(count: Promise<unknown>) {
    super("the requests under a grant are being counted");
    this.count = count;
    count.catch(() => {}); // it may fail while the transaction is still being undone
  }
}

/** For one request. The headers `grant-ratelimit-limit` and `grant-ratelimit-remaining` tell what is left, of a grant that has a limit. */
export function countUnder({ limiters }: Pick<App, "limiters">, responseHeader: Headers): CountUnder {
  let counted: { readonly grantId: string; readonly allowance: Allowance } | undefined;
  const counting = async (grantId: string, allowance: Promise<Allowance>): Promise<void> => {
    counted = { grantId, allowance: await allowance };
  };
  const count = (grant: GrantRow): void => {
    const { grant_id: grantId } = grant;
    const { requestsPerMinute } = termsOf(grant);
    if (requestsPerMinute === undefined) return;
    if (counted?.grantId !== grantId) {
      const allowance = limiters.grants.take(grantId, 1, 0, requestsPerMinute);
      if (allowance instanceof Promise) throw new Counting(counting(grantId, allowance));
      counted = { grantId, allowance };
    }
    const told = new Headers();
    try {
      tell(counted.allowance, `grant:${grantId}`, told);
    } finally {
      told.forEach((value, name) => void responseHeader.set(`grant-${name}`, value));
    }
  };
  return Object.assign(count, {
    async around<T>(run: () => Promise<T>): Promise<T> {
      for (;;) {
        try {
          return await run();
        } catch (error) {
          if (!(error instanceof Counting)) throw error;
          await error.count;
        }
      }
    },
  });
}
