/** How many requests come under a grant in a minute. */
import type { App } from "../../app.ts";
import { take } from "../../rpc/limits.ts";
import { type GrantRow, termsOf } from "../grant/store.ts";

/** Counts a request under the grant that it comes under: RATE_LIMITED when that lets no more come now. Called again, as its transaction may run again, it counts nothing more. */
export type CountUnder = (grant: GrantRow) => void;

/** For one request. The headers `grant-ratelimit-limit` and `grant-ratelimit-remaining` tell what is left, of a grant that has a limit. */
export function countUnder({ limiters }: Pick<App, "limiters">, responseHeader: Headers): CountUnder {
  let counted = "";
  return (grant) => {
    const { requestsPerMinute } = termsOf(grant);
    if (requestsPerMinute === undefined || counted === grant.grant_id) return;
    const told = new Headers();
    try {
      take(limiters.grants, "grant", grant.grant_id, told, 0, requestsPerMinute);
    } finally {
      told.forEach((value, name) => void responseHeader.set(`grant-${name}`, value));
    }
    counted = grant.grant_id;
  };
}
