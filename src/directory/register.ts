/** How somebody without a key joins. */
import { durationMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import type { TrustTier } from "../../gen/moltwire/bus/v1/agent_pb.ts";
import { DirectoryService } from "../../gen/moltwire/directory/v1/directory_service_pb.ts";
import type { App } from "../app.ts";
import { checkAgentQuota, insertAgent } from "../bus/agent-store.ts";
import type { Tx } from "../db/db.ts";
import { badField, Fault, notFound } from "../errors.ts";
import { issueKey } from "../federation/issue-key.ts";
import {
  findOrganization,
  findOrganizationNamed,
  insertOrganization,
  lockOrganization,
} from "../federation/organization-store.ts";
import { writeAudit } from "../ops/audit-store.ts";
import { command } from "../rpc/command.ts";
import { requestDigest } from "../rpc/idempotency.ts";
import { readPage } from "../rpc/page.ts";
import { query } from "../rpc/query.ts";
import {
  countLiveInvites,
  deleteInvite,
  deleteOldInvites,
  insertInvite,
  listInvites,
  newInviteText,
  toInvite,
  useInvite,
} from "./invite-store.ts";

const defaultTtlMs = 7 * 86_400_000;
const maxLiveInvites = 1_000;
const sweepBatch = 1_000;
const suffixLength = 12;

type Handled = "register" | "createInvite" | "listInvites" | "revokeInvite";

export const registration = (app: App): Pick<ServiceImpl<typeof DirectoryService>, Handled> => ({
  register: command(app, async (req, { tx, caller, now, trace }) => {
    const { orgId, tier, isOwn, allowedNetworks } = await placeFor(tx, app, req.invite, req.name, now);
    await checkAgentQuota(tx, orgId);
    const agentId = app.ids.next("agt");
    const name = isOwn ? req.name : `${req.name}-${agentId.slice(-suffixLength)}`;
    const added = await insertAgent(tx, newcomer({ orgId, agentId, name, tier, now }));
    if (added === 0) throw new Error(`the name ${name} was made and is taken`);
    const key = { orgId, name: "", scopes: [], createMs: now, expireMs: null, rotatedFrom: null, allowedNetworks };
    const { text: apiKey } = await issueKey(tx, app.ids, { ...key, role: Role.AGENT, agentId });
    const admin = isOwn ? await issueKey(tx, app.ids, { ...key, role: Role.ORG, agentId: "" }) : undefined;
    const digest = requestDigest(DirectoryService.method.register.input, req);
    const act = { caller, orgId, now, trace, method: DirectoryService.method.register, digest };
    await writeAudit(tx, app, { ...act, request: {}, reply: { agent: { agentId, orgId } } });
    return { agentId, apiKey, orgId, name, trustTier: tier, orgApiKey: admin?.text ?? "" };
  }),

  createInvite: command(app, async (req, { tx, caller, orgId, now }) => {
    if (app.config.registration === "closed") throw closed();
    await lockOrganization(tx, orgId); // so that they are counted one after another
    if ((await countLiveInvites(tx, orgId, now, maxLiveInvites)) >= maxLiveInvites)
      throw new Fault(
        "QUOTA_EXCEEDED",
        `an organisation has at most ${maxLiveInvites} invites that can still be used`,
        { resource: "invites", limit: String(maxLiveInvites) },
      );
    const { text, digest } = newInviteText(app.ids);
    const invite = {
      ...{ orgId, inviteId: app.ids.next("inv"), digest, maxUses: req.maxUses || 1, createMs: now },
      tier: req.trustTier || app.config.registrationTier,
      expireMs: now + (req.ttl ? durationMs(req.ttl) : defaultTtlMs),
      // Or who is bound to networks could make keys by it that are not.
      allowedNetworks: caller.networks ?? [],
    };
    await insertInvite(tx, invite);
    const { inviteId, maxUses, tier, expireMs, allowedNetworks } = invite;
    const [createTime, expireTime] = [timestampFromMs(now), timestampFromMs(expireMs)];
    const told = { inviteId, orgId, maxUses, trustTier: tier as TrustTier, createTime, expireTime };
    return { invite: { ...told, allowedNetworks: [...allowedNetworks] }, secret: text };
  }),

  listInvites: query(app, async (req, { db, orgId, now }) => {
    const page = await readPage(
      app.cursors,
      ["ListInvites", orgId],
      req,
      (after, limit) => listInvites(db, orgId, now, after, limit),
      (row) => [row.invite_id],
    );
    return { invites: page.rows.map(toInvite), nextPageToken: page.nextPageToken };
  }),

  revokeInvite: command(app, async (req, { tx, orgId, now }) => {
    if ((await deleteInvite(tx, orgId, req.inviteId, now)) === 0) throw notFound("invite", req.inviteId);
    return {};
  }),
});

type Newcomer = {
  readonly orgId: string;
  readonly agentId: string;
  readonly name: string;
  readonly tier: TrustTier;
  readonly now: number;
};

/** An agent that only calls, until its organisation gives it more. */
const newcomer = ({ orgId, agentId, name, tier, now }: Newcomer): Parameters<typeof insertAgent>[1] => ({
  org_id: orgId,
  agent_id: agentId,
  name,
  description: "",
  trust_tier: tier,
  capabilities: "[]",
  allowed_tools: "[]",
  endpoint: null,
  metadata: "{}",
  disabled: 0,
  create_ms: now,
  update_ms: now,
  revision: 1,
  weight: 1,
  breaker: "",
  namespace: "",
});

type Place = {
  readonly orgId: string;
  readonly tier: TrustTier;
  readonly isOwn: boolean;
  /** Where the keys may be used from; none: anywhere. */
  readonly allowedNetworks: readonly string[];
};

/** Into which organisation a registration leads, by its invite or by the operator's settings. */
async function placeFor(tx: Tx, app: App, invite: string, name: string, now: number): Promise<Place> {
  const { registration: mode, registrationTier: tier, registrationOrg } = app.config;
  if (mode === "closed") throw closed();
  if (invite !== "") {
    const used = await useInvite(tx, invite, now);
    const org = used && (await findOrganization(tx, used.org_id));
    // One answer, whatever is wrong with it, and without the secret.
    if (!used || !org || org.disabled !== 0) throw notFound("invite", "");
    const allowedNetworks = JSON.parse(used.allowed_networks) as string[];
    return { orgId: used.org_id, tier: used.trust_tier as TrustTier, isOwn: false, allowedNetworks };
  }
  if (mode === "invite")
    throw badField("invite", "registration needs an invite: ask an administrator of the organisation");
  const free = { tier, allowedNetworks: [] };
  if (mode === "open-own-org") return { orgId: await ownOrganization(tx, app, name, now), isOwn: true, ...free };
  const org =
    registrationOrg === ""
      ? await findOrganization(tx, app.homeOrgId)
      : await findOrganizationNamed(tx, registrationOrg);
  if (org?.disabled !== 0)
    throw new Fault("FAILED_PRECONDITION", "the organisation for newcomers is not there: the operator has to make it", {
      setting: "MOLTWIRE_REGISTRATION_ORG",
    });
  return { orgId: org.org_id, isOwn: false, ...free };
}

/** Its name is made of its id: names of organisations are everybody's, and must not tell which there are. */
async function ownOrganization(tx: Tx, app: App, displayName: string, now: number): Promise<string> {
  const orgId = app.ids.next("org");
  const times = { create_ms: now, update_ms: now };
  const row = { org_id: orgId, name: orgId.replace("_", "-"), display_name: displayName, metadata: "{}", disabled: 0 };
  if ((await insertOrganization(tx, { ...row, ...times, revision: 1, auto_accept_grants: 0 })) === 0)
    throw new Error(`the name ${row.name} was made and is taken`);
  return orgId;
}

const closed = (): Fault =>
  new Fault("FAILED_PRECONDITION", "registration is closed: the operator opens it with MOLTWIRE_REGISTRATION", {
    setting: "MOLTWIRE_REGISTRATION",
  });

/** Removes invites that are past their time. */
export async function sweepInvites(app: App): Promise<void> {
  while ((await app.db.tx((tx) => deleteOldInvites(tx, app.clock.now(), sweepBatch))) === sweepBatch);
}
