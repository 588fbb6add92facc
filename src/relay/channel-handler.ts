import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import type { RelayService } from "../../gen/moltwire/relay/v1/relay_service_pb.ts";
import type { App } from "../app.ts";
import { lockAgent } from "../bus/agent-store.ts";
import { keepingOf } from "../bus/policy/keeping.ts";
import { actingAgent } from "../bus/submit.ts";
import type { Queryable, Tx } from "../db/db.ts";
import { badField, Fault, notFound } from "../errors.ts";
import { lockOrganization } from "../federation/organization-store.ts";
import { checkRevision, maskedFields } from "../rpc/change.ts";
import { command } from "../rpc/command.ts";
import { readPage } from "../rpc/page.ts";
import { query } from "../rpc/query.ts";
import { type Asking, channelToRead, knownChannel, ownChannel } from "./access.ts";
import {
  type ChannelRow,
  countChannels,
  countMemberships,
  deleteChannel,
  deleteMember,
  insertChannel,
  insertMember,
  isMember,
  joinedChannels,
  type ListedRow,
  listChannels,
  listMembers,
  lockChannel,
  logOf,
  shownChannel,
  toChannel,
  updateChannel,
} from "./channel-store.ts";
import { dropLog } from "./drop.ts";
import { limits } from "./limits.ts";
import { insertLog } from "./log-store.ts";
import { logTopic } from "./message.ts";

type Built =
  | "createChannel"
  | "getChannel"
  | "listChannels"
  | "updateChannel"
  | "deleteChannel"
  | "joinChannel"
  | "leaveChannel"
  | "addMember"
  | "removeMember"
  | "listMembers";

const changeable = ["description", "members_only"] as const;

export const channelHandler = (app: App): Pick<ServiceImpl<typeof RelayService>, Built> => ({
  createChannel: command(app, async (req, { tx, caller, orgId, now }) => {
    if (!req.name.isWellFormed()) throw badField("name", "half a surrogate pair");
    const agentId = await actingAgent(tx, caller, orgId, req.agentId);
    await lockOrganization(tx, orgId); // so that they are counted one after another
    if ((await countChannels(tx, orgId, limits.channels)) >= limits.channels) throw full("channels", limits.channels);
    const row: ChannelRow = {
      org_id: orgId,
      name: req.name,
      log_id: app.ids.next("chn"),
      description: req.description,
      owner_agent_id: agentId,
      members_only: req.membersOnly ? 1 : 0,
      members: 0,
      revision: 1,
      create_ms: now,
      update_ms: now,
    };
    if ((await insertChannel(tx, row)) === 0)
      throw new Fault("ALREADY_EXISTS", "the organisation has a channel of this name", {
        resource: "channel",
        id: req.name,
      });
    await insertLog(tx, logOf(row));
    if (agentId) {
      await holdAgent(tx, orgId, agentId);
      await join(tx, row, agentId, now);
    }
    return { channel: await shown(tx, row, agentId) };
  }),

  getChannel: query(app, async (req, { db, caller, orgId, now }) => {
    const agentId = await actingAgent(db, caller, orgId, req.agentId);
    const row = await knownChannel(db, { orgId, agentId, now }, req.channel);
    return { channel: await shown(db, row, agentId) };
  }),

  listChannels: query(app, async (req, { db, caller, orgId }) => {
    const agentId = await actingAgent(db, caller, orgId, req.agentId);
    const scope = ["ListChannels", orgId, agentId, caller.agentId, String(req.joinedOnly)];
    const joined = async (after: string, limit: number) =>
      (await joinedChannels(db, orgId, agentId)).filter(({ name }) => name > after).slice(0, limit);
    const all = (after: string, limit: number) => visibleChannels(db, orgId, agentId, after, limit);
    const page = await readPage(
      app.cursors,
      scope,
      req,
      (after, limit) => (req.joinedOnly ? joined : all)((after?.[0] as string) ?? "", limit),
      ({ name }) => [name],
    );
    return { channels: page.rows.map(toChannel), nextPageToken: page.nextPageToken };
  }),

  updateChannel: command(app, async (req, { tx, caller, orgId, now }) => {
    const mask = maskedFields(req.updateMask, changeable);
    const { row, agentId } = await lockOwn(tx, req, { caller, orgId, now });
    checkRevision(req.ifRevision, row.revision);
    const change = req.change!;
    const next: ChannelRow = {
      ...row,
      ...(mask.has("description") && { description: change.description }),
      ...(mask.has("members_only") && { members_only: change.membersOnly ? 1 : 0 }),
      revision: row.revision + 1,
      update_ms: now,
    };
    await updateChannel(tx, next);
    // Who reads along and may no more is to hear so.
    tx.ring(logTopic(row.log_id));
    return { channel: await shown(tx, next, agentId) };
  }),

  deleteChannel: command(app, async (req, { tx, caller, orgId, now }) => {
    const { row } = await lockOwn(tx, req, { caller, orgId, now });
    await deleteChannel(tx, row);
    return { deletedMessages: BigInt(await dropLog(tx, logOf(row))) };
  }),

  joinChannel: command(app, async (req, given) => {
    const { tx, caller, orgId, now } = given;
    const agentId = await memberOf(tx, caller, orgId, req.agentId);
    const asking = { orgId, agentId, now };
    await holdAgent(tx, orgId, agentId);
    await channelToRead(keepingOf(app, given), app, asking, req.channel);
    const row = await lockKnown(tx, asking, req.channel);
    await join(tx, row, agentId, now);
    return { channel: await shown(tx, row, agentId) };
  }),

  leaveChannel: command(app, async (req, { tx, caller, orgId, now }) => {
    const agentId = await memberOf(tx, caller, orgId, req.agentId);
    const row = await lockKnown(tx, { orgId, agentId, now }, req.channel);
    tx.ring(logTopic(row.log_id));
    return { left: await deleteMember(tx, logOf(row), agentId) };
  }),

  addMember: command(app, async (req, { tx, caller, orgId, now }) => {
    await holdAgent(tx, orgId, req.memberAgentId);
    const { row, agentId } = await lockOwn(tx, req, { caller, orgId, now });
    await join(tx, row, req.memberAgentId, now);
    return { channel: await shown(tx, row, agentId) };
  }),

  removeMember: command(app, async (req, { tx, caller, orgId, now }) => {
    const { row } = await lockOwn(tx, req, { caller, orgId, now });
    tx.ring(logTopic(row.log_id));
    return { removed: await deleteMember(tx, logOf(row), req.memberAgentId) };
  }),

  listMembers: query(app, async (req, { db, caller, orgId, now }) => {
    const agentId = await actingAgent(db, caller, orgId, req.agentId);
    const log = logOf(await knownChannel(db, { orgId, agentId, now }, req.channel));
    const page = await readPage(
      app.cursors,
      ["ListMembers", orgId, log.logId],
      req,
      (after, limit) => listMembers(db, log, (after?.[0] as string) ?? "", limit),
      (row) => [row.agent_id],
    );
    return {
      members: page.rows.map((row) => ({ agentId: row.agent_id, joinTime: timestampFromMs(row.join_ms) })),
      nextPageToken: page.nextPageToken,
    };
  }),
});

/** Channels that an agent may know of: all to an administrator. An organisation has a bounded number, so that the walk ends. */
async function visibleChannels(
  db: Queryable,
  orgId: string,
  agentId: string,
  after: string,
  limit: number,
): Promise<ListedRow[]> {
  const seen: ListedRow[] = [];
  let from = after;
  for (;;) {
    const rows = await listChannels(db, orgId, agentId, from, limit);
    const visible = rows.filter(
      (row) => row.members_only === 0 || agentId === "" || row.joined !== 0 || row.owner_agent_id === agentId,
    );
    seen.push(...visible);
    if (seen.length >= limit || rows.length < limit) return seen.slice(0, limit);
    from = rows.at(-1)!.name;
  }
}

type Naming = { readonly channel: string; readonly agentId: string };
type By = { readonly caller: Parameters<typeof actingAgent>[1]; readonly orgId: string; readonly now: number };

/** The channel that a request names, held, if its agent owns it. */
async function lockOwn(
  tx: Tx,
  req: Naming,
  { caller, orgId, now }: By,
): Promise<{ readonly row: ChannelRow; readonly agentId: string }> {
  const agentId = await actingAgent(tx, caller, orgId, req.agentId);
  await lockChannel(tx, orgId, req.channel);
  return { row: await ownChannel(tx, { orgId, agentId, now }, req.channel), agentId };
}

async function lockKnown(tx: Tx, asking: Asking, name: string): Promise<ChannelRow> {
  await lockChannel(tx, asking.orgId, name);
  return knownChannel(tx, asking, name);
}

/** The agent that joins or leaves; an administrator names one. */
async function memberOf(db: Queryable, caller: By["caller"], orgId: string, named: string): Promise<string> {
  const agentId = await actingAgent(db, caller, orgId, named);
  if (agentId === "") throw badField("agent_id", "an administrator names the agent");
  return agentId;
}

/** Holds the agent, so that it is not deleted meanwhile. Before the channel, as who deletes an agent has it. */
async function holdAgent(tx: Tx, orgId: string, agentId: string): Promise<void> {
  if (!(await lockAgent(tx, orgId, agentId))) throw notFound("agent", agentId);
}

/** Makes an agent a member of a channel, unless it is one. Both are held. */
async function join(tx: Tx, row: ChannelRow, agentId: string, now: number): Promise<void> {
  if (await isMember(tx, logOf(row), agentId)) return;
  if (row.members >= limits.members) throw full("members", limits.members);
  if ((await countMemberships(tx, row.org_id, agentId)) >= limits.memberships)
    throw full("memberships", limits.memberships);
  await insertMember(tx, logOf(row), agentId, now);
}

async function shown(db: Queryable, row: ChannelRow, agentId: string) {
  const found = await shownChannel(db, row, agentId);
  if (!found) throw notFound("channel", row.name);
  return toChannel(found);
}

/** QUOTA_EXCEEDED with the limit. */
export function full(resource: string, limit: number): Fault {
  const message = `there are at most ${limit} ${resource}: let go of some`;
  return new Fault(
    "QUOTA_EXCEEDED",
    message,
    { resource, limit: String(limit) },
    { quota: { subject: resource, description: message } },
  );
}
