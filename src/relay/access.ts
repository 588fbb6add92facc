/** Who may write to whom, and read what: the policies decide, on the agent whose inbox it is, or on the channel. Across organisations: see across.ts. */
import type { App } from "../app.ts";
import { type AgentRow, findAgent } from "../bus/agent-store.ts";
import type { Decided } from "../bus/policy/decide-task.ts";
import { agentEntity, type Entity, entityRef, orgEntity, ownedEntity } from "../bus/policy/entity.ts";
import { type Keeping, keepInTx, settle } from "../bus/policy/keeping.ts";
import type { Queryable, Tx } from "../db/db.ts";
import { badField, Fault, notFound } from "../errors.ts";
import type { Caller } from "../rpc/caller.ts";
import { seesWholeOrg } from "../rpc/scope.ts";
import { reach, type Sending } from "./across.ts";
import { type ChannelRow, findChannel, isMember } from "./channel-store.ts";

export type Action = "send_message" | "read_messages";

/** Who asks: the organisation, and the agent, empty for an administrator's own. */
export type Asking = { readonly orgId: string; readonly agentId: string; readonly now: number };

/** Whom a message goes to; `sender`, if that is of another organisation. */
export type Recipient = { readonly recipient: AgentRow; readonly sender?: AgentRow };

/**
 * The agent that a message may be sent to: here alone it is decided who can be reached. These are the agents of the sender's own organisation, if the policies
 * permit it, and those of others that {@link reach} lets be written to; whatever else is named is NOT_FOUND, whether there is such an agent or not. Throws
 * POLICY_DENIED. The decision is kept, here and in what follows.
 */
export async function recipientOf(tx: Tx, app: App, sending: Sending, toAgentId: string): Promise<Recipient> {
  const recipient = await findAgent(tx, sending.orgId, toAgentId);
  if (!recipient) return reach(tx, app, sending, toAgentId);
  const decided = await decide(tx, app, sending, "send_message", { resource: agentEntity(recipient), related: [] });
  await settle(keepInTx(tx, app, sending), decided);
  return { recipient };
}

/** The channel, to write to. Throws POLICY_DENIED. See {@link channelOf}. */
export async function channelToWrite(
  tx: Tx,
  app: App,
  asking: Asking & { readonly traceId: string },
  name: string,
): Promise<ChannelRow> {
  const channel = await knownChannel(tx, asking, name);
  const decided = await decide(tx, app, asking, "send_message", await channelEntity(tx, channel));
  await settle(keepInTx(tx, app, asking), decided);
  return channel;
}

/** The channel, to read it. Throws NOT_FOUND where the asking agent may not know of it, and POLICY_DENIED. */
export async function channelToRead(keeping: Keeping, app: App, asking: Asking, name: string): Promise<ChannelRow> {
  const { db } = keeping;
  const channel = await knownChannel(db, asking, name);
  await settle(keeping, await decide(db, app, asking, "read_messages", await channelEntity(db, channel)));
  return channel;
}

/** The channel, if the asking agent may know of it: NOT_FOUND for one that is for members only, and for none. */
export async function knownChannel(db: Queryable, asking: Asking, name: string): Promise<ChannelRow> {
  const channel = await findChannel(db, asking.orgId, name);
  if (!channel || !(await knows(db, asking, channel))) throw notFound("channel", name);
  return channel;
}

/** The channel, if the asking agent owns it: NOT_FOUND otherwise. */
export async function ownChannel(db: Queryable, asking: Asking, name: string): Promise<ChannelRow> {
  const channel = await findChannel(db, asking.orgId, name);
  if (!channel || !(asking.agentId === "" || channel.owner_agent_id === asking.agentId))
    throw notFound("channel", name);
  return channel;
}

const knows = async (db: Queryable, { agentId }: Asking, channel: ChannelRow): Promise<boolean> =>
  channel.members_only === 0 ||
  agentId === "" ||
  channel.owner_agent_id === agentId ||
  isMember(db, { orgId: channel.org_id, logId: channel.log_id }, agentId);

/** The agent whose inbox a request is about: the one it names, or the caller. INVALID_REQUEST for an administrator who names none. */
export function inboxAgentOf(caller: Caller, named: string): string {
  const agentId = named || (seesWholeOrg(caller) ? "" : caller.agentId);
  if (agentId === "") throw badField("agent_id", "an administrator names the agent");
  return agentId;
}

/** As {@link inboxAgentOf}, to act as its recipient: an agent is no other one, whosever inbox it may read. NOT_FOUND then. */
export function recipientAgentOf(caller: Caller, named: string): string {
  const agentId = inboxAgentOf(caller, named);
  if (!seesWholeOrg(caller) && agentId !== caller.agentId) throw notFound("agent", agentId);
  return agentId;
}

/**
 * Throws unless the caller may read the agent's inbox: POLICY_DENIED to the agent itself and to administrators; to any other agent NOT_FOUND, as for an
 * agent that does not exist.
 */
export async function checkInbox(
  keeping: Keeping,
  app: App,
  { orgId, caller, now }: { readonly orgId: string; readonly caller: Caller; readonly now: number },
  agentId: string,
): Promise<void> {
  const { db } = keeping;
  const owner = await findAgent(db, orgId, agentId);
  if (!owner) throw notFound("agent", agentId);
  const asking = { orgId, agentId: seesWholeOrg(caller) ? "" : caller.agentId, now };
  const decided = await decide(db, app, asking, "read_messages", { resource: agentEntity(owner), related: [] });
  const knows = seesWholeOrg(caller) || caller.agentId === agentId;
  await settle(keeping, decided, knows ? undefined : notFound("agent", agentId));
}

/** Whether it was refused because the asker may not know or may not do it, and not because something is wrong. */
export const isRefusal = (error: unknown): boolean =>
  error instanceof Fault && (error.reason === "NOT_FOUND" || error.reason === "POLICY_DENIED");

type Object = { readonly resource: Entity; readonly related: readonly Entity[] };

/** A channel as policies see it. */
export async function channelEntity(db: Queryable, channel: ChannelRow): Promise<Object> {
  const { org_id: orgId, name, owner_agent_id: ownerId } = channel;
  const owner = ownerId ? await findAgent(db, orgId, ownerId) : undefined;
  const attributes = owner ? { owner: entityRef("Agent", ownerId) } : {};
  return { resource: ownedEntity("Channel", name, orgId, attributes), related: owner ? [agentEntity(owner)] : [] };
}

async function decide(
  db: Queryable,
  app: App,
  { orgId, agentId, now }: Asking,
  action: Action,
  { resource, related }: Object,
): Promise<Decided> {
  const agent = agentId ? await findAgent(db, orgId, agentId) : undefined;
  if (agentId && !agent) throw notFound("agent", agentId);
  const context = { tokens: 0, origin: "bus", time: { ms: now } };
  const question = { principal: agent ? agentEntity(agent) : orgEntity(orgId), action, resource, context, related };
  return { question, answer: await app.policies.decide(db, orgId, question) };
}
