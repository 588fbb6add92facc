import { timestampMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import type { DirectoryService } from "../../gen/moltwire/directory/v1/directory_service_pb.ts";
import { Availability, Visibility } from "../../gen/moltwire/directory/v1/profile_pb.ts";
import type { App } from "../app.ts";
import { lockAgent } from "../bus/agent-store.ts";
import type { Tx } from "../db/db.ts";
import { badField, notFound } from "../errors.ts";
import { agentOf } from "../memory/owner.ts";
import type { Caller } from "../rpc/caller.ts";
import { checkRevision, maskedFields } from "../rpc/change.ts";
import { command } from "../rpc/command.ts";
import { query } from "../rpc/query.ts";
import { seesWholeOrg } from "../rpc/scope.ts";
import { indexProfile } from "./index-store.ts";
import {
  findProfile,
  findPublicProfile,
  lockProfile,
  type ProfileRow,
  toProfile,
  updateProfile,
} from "./profile-store.ts";

const profileFields = ["description", "capabilities", "visibility", "accept_public_messages"] as const;
const statusFields = ["availability", "busy_until_time", "looking_for"] as const;
const maxBusyMs = 366 * 86_400_000;

export const profiles = (
  app: App,
): Pick<ServiceImpl<typeof DirectoryService>, "getProfile" | "updateProfile" | "updateStatus"> => ({
  getProfile: query(app, async (req, { db, caller, orgId, now }) => {
    const agentId = agentOf(caller, req.agentId);
    const own = await findProfile(db, orgId, agentId);
    const seen = own && (seesWholeOrg(caller) || agentId === caller.agentId || own.visibility >= Visibility.ORG);
    const row = own ? (seen ? own : undefined) : await findPublicProfile(db, agentId);
    if (!row) throw notFound("agent", agentId);
    return { profile: toProfile(row, now, !own) };
  }),

  updateProfile: command(app, async (req, { tx, caller, orgId, now }) => {
    const mask = maskedFields(req.updateMask, profileFields);
    const row = await ownProfile(tx, caller, orgId, req.agentId);
    checkRevision(req.ifRevision, row.revision);
    const change = req.change!;
    if (mask.has("visibility") && change.visibility === Visibility.UNSPECIFIED)
      throw badField("change.visibility", "must not be empty");
    const next: ProfileRow = {
      ...row,
      ...(mask.has("description") && { description: change.description }),
      ...(mask.has("capabilities") && { capabilities: JSON.stringify(change.capabilities) }),
      ...(mask.has("visibility") && { visibility: change.visibility }),
      ...(mask.has("accept_public_messages") && { accept_public_messages: change.acceptPublicMessages ? 1 : 0 }),
      revision: row.revision + 1,
    };
    await updateProfile(tx, next);
    await indexProfile(tx, orgId, row.agent_id);
    return { profile: toProfile(next, now, false) };
  }),

  updateStatus: command(app, async (req, { tx, caller, orgId, now }) => {
    const mask = maskedFields(req.updateMask, statusFields);
    const row = await ownProfile(tx, caller, orgId, req.agentId);
    const change = req.change!;
    const busyUntilMs = change.busyUntilTime && timestampMs(change.busyUntilTime);
    const next: ProfileRow = {
      ...row,
      ...statusOf(row, mask, change.availability, busyUntilMs, now),
      ...(mask.has("looking_for") && { looking_for: JSON.stringify(change.lookingFor) }),
      revision: row.revision + 1,
    };
    await updateProfile(tx, next);
    if (mask.has("looking_for")) await indexProfile(tx, orgId, row.agent_id);
    return { profile: toProfile(next, now, false) };
  }),
});

/** The profile that a call changes, held with its agent, in the order in which everything holds the two. NOT_FOUND for another's. */
async function ownProfile(tx: Tx, caller: Caller, orgId: string, named: string): Promise<ProfileRow> {
  const agentId = agentOf(caller, named);
  const may = seesWholeOrg(caller) || agentId === caller.agentId;
  const held = may && (await lockAgent(tx, orgId, agentId)) && (await lockProfile(tx, orgId, agentId));
  const row = held ? await findProfile(tx, orgId, agentId) : undefined;
  if (!row) throw notFound("agent", agentId);
  return row;
}

/** What becomes of the availability. INVALID_REQUEST for a time that means nothing. */
function statusOf(
  row: ProfileRow,
  mask: ReadonlySet<(typeof statusFields)[number]>,
  wanted: Availability,
  busyUntilMs: number | undefined,
  now: number,
): Pick<ProfileRow, "availability" | "busy_until_ms"> {
  if (mask.has("availability") && wanted === Availability.UNSPECIFIED)
    throw badField("change.availability", "must not be empty");
  if (!mask.has("busy_until_time"))
    return mask.has("availability")
      ? { availability: wanted, busy_until_ms: null }
      : { availability: row.availability, busy_until_ms: row.busy_until_ms };
  if (busyUntilMs === undefined)
    return { availability: mask.has("availability") ? wanted : row.availability, busy_until_ms: null };
  if (mask.has("availability") && wanted !== Availability.BUSY)
    throw badField("change.busy_until_time", "only an agent that is BUSY is so until a time");
  if (busyUntilMs <= now) throw badField("change.busy_until_time", "must be in the future");
  if (busyUntilMs > now + maxBusyMs) throw badField("change.busy_until_time", "at most a year ahead");
  return { availability: Availability.BUSY, busy_until_ms: busyUntilMs };
}
