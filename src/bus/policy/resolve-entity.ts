/** Finds the things that a question names by type and id. */
import type { Queryable } from "../../db/db.ts";
import { Fault } from "../../errors.ts";
import { findAgent } from "../agent-store.ts";
import { findContract } from "../contract-store.ts";
import { resolveContract } from "../resolve.ts";
import { agentEntity, contractEntity, type Entity, orgEntity, toolEntity } from "./entity.ts";

/** A thing as a question names it; `version` is of a contract, empty for the latest. */
export type Wanted = { readonly type: string; readonly id: string; readonly orgId: string; readonly version: string };

/** How the things of each type are found. Those of a type that is not here are not there: its area adds it when it is built. */
const finders: Readonly<Record<string, (db: Queryable, wanted: Wanted) => Promise<Entity | undefined>>> = {
  Org: async (_db, { id, orgId }) => (id === orgId ? orgEntity(id) : undefined),
  Agent: async (db, { id, orgId }) => {
    const row = await findAgent(db, orgId, id);
    return row && agentEntity(row);
  },
  Contract: async (db, { id, orgId, version }) => {
    const exact = version ? await findContract(db, orgId, id, version) : undefined;
    const row = exact ?? (await newest(db, orgId, id, version));
    return row && contractEntity(row);
  },
  // A tool is nothing but its name.
  Tool: async (_db, { id, orgId }) => toolEntity(id, orgId),
};

/** The newest version that is meant; undefined when there is none. */
async function newest(db: Queryable, orgId: string, contractId: string, version: string) {
  try {
    return await resolveContract(db, orgId, { contractId, version });
  } catch (error) {
    if (error instanceof Fault) return undefined;
    throw error;
  }
}

/** The thing as it is now, or undefined: of another organisation than the one that asks nothing is found. */
export const findEntity = async (db: Queryable, askingOrgId: string, wanted: Wanted): Promise<Entity | undefined> =>
  wanted.orgId === askingOrgId && Object.hasOwn(finders, wanted.type) ? finders[wanted.type]!(db, wanted) : undefined;
