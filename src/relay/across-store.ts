/** What messages across organisations are decided by. */
import { type AgentRow, agentColumns } from "../bus/agent-store.ts";
import { type Queryable, sql } from "../db/db.ts";
import type { GrantRow } from "../federation/grant/store.ts";

/** An agent, and whether its profile accepts messages of anybody. */
export type Found = AgentRow & { readonly accept_public_messages: number };

/** An agent of any organisation, unless it or that is disabled; by the index on ids alone. */
export const findAnywhere = (db: Queryable, agentId: string): Promise<Found | undefined> =>
  db.one<Found>(sql`
    select ${agentColumns}, p.accept_public_messages
    from agent a join organization o on o.org_id = a.org_id join directory_profile p on p.org_id = a.org_id and p.agent_id = a.agent_id
    where a.agent_id = ${agentId} and a.disabled = 0 and o.disabled = 0`);

/**
 * The grants in force by which an organisation lets another one in and whose subject the agent serves: a capability that it was granted, a contract that asks for
 * one of these, its namespace. Sifts the active grants to all, which are bounded, along the index on states: an expression keeps it off the index on the grantee,
 * which has all that ever were.
 */
export const grantsThatCover = (
  db: Queryable,
  { org_id: orgId, agent_id: agentId, namespace }: Pick<AgentRow, "org_id" | "agent_id" | "namespace">,
  granteeOrgId: string,
  now: number,
): Promise<Pick<GrantRow, "grant_id" | "terms">[]> =>
  db.all(sql`
    select g.grant_id, g.terms from federation_grant g
    where g.org_id = ${orgId} and g.state = 2 and g.grantee_org_id || '' = ${granteeOrgId} and (g.expire_ms is null or g.expire_ms + 0 > ${now}) and (
      (g.subject_kind = 'namespace' and g.subject = ${namespace})
      or (g.subject_kind = 'capability' and exists (
        select 1 from agent_capability c where c.org_id = g.org_id and c.capability = g.subject and c.agent_id = ${agentId}))
      or (g.subject_kind = 'contractId' and exists (
        select 1 from agent_capability c cross join contract k
        where c.org_id = g.org_id and c.agent_id = ${agentId} and k.org_id = c.org_id and k.capability = c.capability and k.contract_id = g.subject)))
    order by g.grant_id`);

/** Whether a message that is in an agent's inbox is of another agent; by the index on ids. */
export const wroteTo = async (
  db: Queryable,
  to: Pick<AgentRow, "org_id" | "agent_id">,
  by: Pick<AgentRow, "org_id" | "agent_id">,
  messageId: string,
): Promise<boolean> =>
  (await db.one(sql`
    select 1 as found from relay_message where org_id = ${to.org_id} and message_id = ${messageId}
      and log_id || '' = ${to.agent_id} and sender_org_id || '' = ${by.org_id} and sender_agent_id || '' = ${by.agent_id}`)) !==
  undefined;

/** What of an inbox is not read and of other organisations' agents: of all of them, and of one organisation. */
export type Strangers = {
  readonly messages: number;
  readonly bytes: number;
  readonly own_messages: number;
  readonly own_bytes: number;
};

/** By an index that has all of it. As many rows as strangers may have unread: see share.ts. */
export const countStrangers = async (
  db: Queryable,
  { orgId, logId }: { readonly orgId: string; readonly logId: string },
  fromOrgId: string,
): Promise<Strangers> =>
  (await db.one<Strangers>(sql`
    select count(*) as messages, cast(coalesce(sum(size_bytes), 0) as bigint) as bytes,
      cast(coalesce(sum(case when sender_org_id = ${fromOrgId} then 1 else 0 end), 0) as bigint) as own_messages,
      cast(coalesce(sum(case when sender_org_id = ${fromOrgId} then size_bytes else 0 end), 0) as bigint) as own_bytes
    from relay_message where org_id = ${orgId} and log_id = ${logId} and unread = 1 and sender_org_id <> ''`))!;
