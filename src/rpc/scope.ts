import { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import { type Queryable, sql } from "../db/db.ts";
import { notFound } from "../errors.ts";
import type { Caller } from "./caller.ts";

/** The organisation a request names, if its message has the field and it is set. */
export const orgNamed = (request: object): string | undefined =>
  "orgId" in request && typeof request.orgId === "string" ? request.orgId : undefined;

/**
 * The organisation a call acts in: the one it names, or the caller's own. To all but the operator any other is not found, whether it
 * exists or not.
 */
export async function orgOf(db: Queryable, caller: Caller, named: string | undefined): Promise<string> {
  if (!named || named === caller.orgId) return caller.orgId;
  if (caller.role !== Role.OPERATOR) throw notFound("organization", named);
  const found = await db.one(sql`select 1 as found from organization where org_id = ${named}`);
  if (!found) throw notFound("organization", named);
  return named;
}

/** Whether the caller sees all of its organisation, or only what is its own agent's. */
export const seesWholeOrg = (caller: Caller): boolean => caller.role >= Role.ORG;

/** The agent that looks; undefined: an administrator, who sees all of its organisation. */
export const viewerOf = (caller: Caller): string | undefined => (seesWholeOrg(caller) ? undefined : caller.agentId);
