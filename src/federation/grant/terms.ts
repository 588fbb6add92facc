/** What a grant allows: as it is asked for, changed and stored. */
import { create, toJsonString } from "@bufbuild/protobuf";
import { timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { type GrantTerms, GrantTermsSchema } from "../../../gen/moltwire/federation/v1/grant_pb.ts";
import { badField } from "../../errors.ts";

/** The terms that an update can name. */
export const changeableTerms = [
  "tokens_per_day",
  "requests_per_day",
  "price_cap_micros",
  "expire_time",
  "allowed_tiers",
  "allowed_tools",
  "purpose",
  "requests_per_minute",
] as const;
export type TermName = (typeof changeableTerms)[number];

/** Terms as they are stored: JSON, and the time in them. */
export type StoredTerms = { readonly terms: string; readonly expire_ms: number | null };

/** INVALID_REQUEST, naming the field under `field`, for a time to expire that is over. */
export function checkExpiry({ expireTime }: GrantTerms, now: number, field: string): void {
  if (expireTime && timestampMs(expireTime) <= now) throw badField(`${field}.expire_time`, "must be in the future");
}

/** The time is cut to milliseconds. */
export function toStored(terms: GrantTerms): StoredTerms {
  if (!terms.expireTime) return { terms: toJsonString(GrantTermsSchema, terms), expire_ms: null };
  const expireMs = timestampMs(terms.expireTime);
  const cut = { ...terms, expireTime: timestampFromMs(expireMs) };
  return { terms: toJsonString(GrantTermsSchema, cut), expire_ms: expireMs };
}

/** The terms with those that the mask names in place of what they were; one that is named and not given is emptied. */
export function changedTerms(before: GrantTerms, change: GrantTerms, mask: ReadonlySet<TermName>): GrantTerms {
  const fields = GrantTermsSchema.fields.map(({ name, localName }) => [name, localName] as const);
  const chosen = fields.map(([name, localName]) => {
    const from = mask.has(name as TermName) ? change : before;
    return [localName, from[localName as keyof GrantTerms]] as const;
  });
  return create(GrantTermsSchema, Object.fromEntries(chosen.filter(([, value]) => value !== undefined)));
}
