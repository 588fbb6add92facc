import type { JsonValue } from "@bufbuild/protobuf";
import type { App } from "../app.ts";
import type { Queryable } from "../db/db.ts";
import { Fault } from "../errors.ts";
import type { ContractRef, ContractRow } from "./contract-store.ts";
import { resolveContract } from "./resolve.ts";
import { type Route, type RouteQuery, route } from "./route.ts";
import { inputViolations } from "./violations.ts";

/** What a fallback is to do, and for whom to look. */
export type FallbackWish = Omit<RouteQuery, "contract"> & {
  readonly input: JsonValue;
  /** Which contracts it may be done under; not set: under any. */
  readonly allows?: ((contract: ContractRow) => boolean) | undefined;
};

/** A contract that can stand in for another, and the agents that can do it now, at least one. */
export type Fallback = Route & { readonly contract: ContractRow };

/** The fallback's version and its agents, if it is allowed, takes this input and somebody can do it now. */
export async function usableFallback(
  app: App,
  db: Queryable,
  wish: FallbackWish,
  ref: ContractRef,
): Promise<Fallback | undefined> {
  try {
    const contract = await resolveContract(db, wish.orgId, ref);
    const fits =
      contract.deprecate_ms === null &&
      contract.approval_required === 0 &&
      (wish.allows?.(contract) ?? true) &&
      inputViolations(app, contract, wish.input).length === 0;
    if (!fits) return undefined;
    const found = await route(db, { ...wish, contract });
    return found.candidates.length > 0 ? { ...found, contract } : undefined;
  } catch (error) {
    if (error instanceof Fault) return undefined;
    throw error;
  }
}
