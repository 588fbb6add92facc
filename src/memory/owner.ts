/** Whose memory a call is about, and whether the caller may use it. */
import type { App } from "../app.ts";
import { findAgent } from "../bus/agent-store.ts";
import { type AgentFacts, agentEntity, entityRef, orgEntity, ownedEntity } from "../bus/policy/entity.ts";
import { type Keeping, settle } from "../bus/policy/keeping.ts";
import { type Queryable, type Sql, sql } from "../db/db.ts";
import { badField, notFound } from "../errors.ts";
import type { Caller } from "../rpc/caller.ts";
import { seesWholeOrg } from "../rpc/scope.ts";
import { entryColumns, type FoundRow, type HeadRow, headColumns } from "./store.ts";
import type { EntryPlace } from "./wish.ts";

/** The agent whose memory it is, and how often the policies of its organisation were changed. */
export type OwnerRow = AgentFacts & { readonly policy_revision: number };

/** The agent that a request is about: the one it names, or the caller. INVALID_REQUEST for an administrator who names none. */
export function agentOf(caller: Caller, named: string): string {
  const agentId = named || (seesWholeOrg(caller) ? "" : caller.agentId);
  if (agentId === "") throw badField("agent_id", "an administrator names the agent");
  return agentId;
}

const ownerColumns = sql`a.org_id, a.agent_id, a.name, a.trust_tier, a.capabilities, a.allowed_tools, a.disabled, coalesce(p.revision, 0) as policy_revision`;
const ownMemory = sql`join agent a on a.org_id = k.org_id and a.agent_id = k.agent_id
      left join policy_set p on p.org_id = a.org_id left join memory m on m.org_id = a.org_id and m.memory_id = a.agent_id`;

/**
 * The keys are a row of their own: SQLite, as it is built here (STAT4), plans a join anew at each run when one of its conditions is a parameter, which takes
 * five times as long as the run.
 */
const findOwnerWith = <Row>(db: Queryable, keys: Sql, columns: Sql, joined: Sql) =>
  db.one<OwnerRow & Row>(sql`select ${ownerColumns}, ${columns} from (select ${keys}) k ${ownMemory} ${joined}`);

/** The agent with its memory's head. */
export const findOwner = (db: Queryable, orgId: string, agentId: string): Promise<(OwnerRow & HeadRow) | undefined> =>
  findOwnerWith<HeadRow>(db, sql`${orgId} as org_id, ${agentId} as agent_id`, headColumns, sql``);

/** The agent with its memory's head and one entry: all that a call about one entry needs, in one statement, by the primary keys. */
export const findOwnerAndEntry = (
  db: Queryable,
  orgId: string,
  agentId: string,
  { namespace, key }: EntryPlace,
  withValue: boolean,
): Promise<(OwnerRow & HeadRow & FoundRow) | undefined> =>
  findOwnerWith<HeadRow & FoundRow>(
    db,
    sql`${orgId} as org_id, ${agentId} as agent_id, ${namespace} as namespace, ${key} as key`,
    sql`${headColumns}, ${entryColumns(withValue)}`,
    sql`left join memory_entry e on e.org_id = a.org_id and e.memory_id = a.agent_id and e.namespace = k.namespace and e.key = k.key`,
  );

/** A use of an agent's memory, as policies are asked about it. */
export type Use = {
  readonly orgId: string;
  readonly caller: Caller;
  readonly agentId: string;
  readonly action: "read_memory" | "write_memory";
  readonly now: number;
};

/**
 * Whether the policies permit the use in each of the namespaces. Where one is denied, `refuse` throws: POLICY_DENIED to the agent itself and to
 * administrators; to any other agent NOT_FOUND, as for an agent that does not exist. That is thrown at once when there is none. Its decisions are kept; `permits`
 * sifts what a call shows.
 */
export async function decideUse(
  app: App,
  keeping: Keeping,
  { orgId, caller, agentId, action, now }: Use,
  owner: OwnerRow | undefined,
): Promise<{
  readonly permits: (namespaces: Iterable<string>) => Promise<ReadonlySet<string>>;
  readonly refuse: (namespaces: Iterable<string>) => Promise<void>;
}> {
  const { db } = keeping;
  const missing = () => notFound("agent", agentId);
  if (!owner) throw missing();
  const ownerEntity = agentEntity(owner);
  const itself = caller.agentId === agentId;
  const asking = seesWholeOrg(caller) || itself ? undefined : await findAgent(db, orgId, caller.agentId);
  if (!seesWholeOrg(caller) && !itself && !asking) throw missing();
  const principal = seesWholeOrg(caller) ? orgEntity(orgId) : asking ? agentEntity(asking) : ownerEntity;
  const set = await app.policies.at(db, orgId, owner.policy_revision);
  const attributes = { owner: entityRef("Agent", agentId) };
  const decide = (namespace: string) => {
    const question = {
      principal,
      action,
      // As people name it, also to TestPolicy: a name alone is a shared one's.
      resource: { ...ownedEntity("Namespace", namespace, orgId, attributes), id: `${agentId}/${namespace}` },
      context: { tokens: 0, origin: "bus", time: { ms: now } },
      related: [ownerEntity],
    };
    return { question, answer: app.policies.answer(set, question) };
  };
  return {
    async permits(namespaces) {
      const decisions = [...new Set(namespaces)].map((namespace) => [namespace, decide(namespace)] as const);
      await keeping.note(decisions.map(([, decided]) => decided));
      return new Set(decisions.flatMap(([name, { answer }]) => (answer.verdict === "ALLOW" ? [name] : [])));
    },
    async refuse(namespaces) {
      for (const namespace of new Set(namespaces))
        await settle(keeping, decide(namespace), asking ? missing() : undefined);
    },
  };
}
