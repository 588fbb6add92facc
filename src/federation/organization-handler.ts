import type { ServiceImpl } from "@connectrpc/connect";
import { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import type { OrganizationService } from "../../gen/moltwire/federation/v1/organization_service_pb.ts";
import type { App } from "../app.ts";
import { badField, Fault, notFound } from "../errors.ts";
import { grantStartingCredits } from "../exchange/ledger/wallet.ts";
import { moveListings } from "../exchange/listing/store.ts";
import { checkMetadata, checkRevision, maskedFields, unlessTaken } from "../rpc/change.ts";
import { command } from "../rpc/command.ts";
import { organizationTopic } from "../rpc/feed.ts";
import { readPage } from "../rpc/page.ts";
import { query } from "../rpc/query.ts";
import {
  findOrganization,
  insertOrganization,
  listOrganizations,
  lockOrganization,
  type OrganizationRow,
  toOrganization,
  updateOrganization,
} from "./organization-store.ts";

const changeable = ["name", "display_name", "metadata", "disabled", "auto_accept_grants"] as const;
const taken = (name: string) =>
  new Fault("ALREADY_EXISTS", `the name ${name} is taken`, { resource: "organization", id: name, field: "name" });

export const organizationHandler = (app: App): ServiceImpl<typeof OrganizationService> => ({
  createOrganization: command(app, async (req, { tx, now }) => {
    const row: OrganizationRow = {
      org_id: app.ids.next("org"),
      name: req.name,
      display_name: req.displayName || req.name,
      metadata: checkMetadata(req.metadata),
      disabled: 0,
      create_ms: now,
      update_ms: now,
      revision: 1,
      auto_accept_grants: 0,
    };
    if ((await insertOrganization(tx, row)) === 0) throw taken(req.name);
    await grantStartingCredits(tx, app.homeOrgId, row.org_id, now);
    return { organization: toOrganization(row) };
  }),

  getOrganization: query(app, async (_req, { db, orgId }) => {
    const row = await findOrganization(db, orgId);
    if (!row) throw notFound("organization", orgId);
    return { organization: toOrganization(row) };
  }),

  listOrganizations: query(app, async (req, { db, caller }) => {
    const only = caller.role === Role.OPERATOR ? undefined : caller.orgId;
    const read = (after: Parameters<typeof listOrganizations>[2], limit: number) =>
      listOrganizations(db, only, after, limit);
    const page = await readPage(app.cursors, ["ListOrganizations", only ?? "*"], req, read, (row) => [row.org_id]);
    return { organizations: page.rows.map(toOrganization), nextPageToken: page.nextPageToken };
  }),

  updateOrganization: command(app, async (req, { tx, caller, orgId, now }) => {
    const mask = maskedFields(req.updateMask, changeable);
    const row = await lockOrganization(tx, orgId);
    if (!row) throw notFound("organization", orgId);
    checkRevision(req.ifRevision, row.revision);
    if (mask.has("disabled") && caller.role !== Role.OPERATOR) {
      throw new Fault("ROLE_REQUIRED", "only the operator disables an organisation", {
        role: "ORG",
        required_role: "OPERATOR",
        field: "change.disabled",
      });
    }
    const change = req.change!;
    if (mask.has("disabled") && change.disabled && orgId === app.homeOrgId)
      throw badField("change.disabled", "the operator's own organisation cannot be disabled");
    if (mask.has("name") && change.name === "") throw badField("change.name", "must not be empty");
    const next: OrganizationRow = {
      ...row,
      ...(mask.has("name") && { name: change.name }),
      ...(mask.has("display_name") && { display_name: change.displayName }),
      ...(mask.has("metadata") && { metadata: checkMetadata(change.metadata, "change.metadata") }),
      ...(mask.has("disabled") && { disabled: change.disabled ? 1 : 0 }),
      ...(mask.has("auto_accept_grants") && { auto_accept_grants: change.autoAcceptGrants ? 1 : 0 }),
      update_ms: now,
      revision: row.revision + 1,
    };
    await unlessTaken(updateOrganization(tx, next), () => taken(change.name));
    if (next.disabled !== row.disabled) {
      await moveListings(tx, orgId, next.disabled ? "leave" : "enter");
      tx.ring(organizationTopic(orgId));
    }
    return { organization: toOrganization(next) };
  }),
});
