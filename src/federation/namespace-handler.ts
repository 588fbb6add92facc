import type { ServiceImpl } from "@connectrpc/connect";
import type { NamespaceService } from "../../gen/moltwire/federation/v1/namespace_service_pb.ts";
import type { App } from "../app.ts";
import { Fault } from "../errors.ts";
import { command } from "../rpc/command.ts";
import { readPage } from "../rpc/page.ts";
import { query } from "../rpc/query.ts";
import { countNamespaces, insertNamespace, listNamespaces, type NamespaceRow, toNamespace } from "./namespace-store.ts";
import { lockOrganization } from "./organization-store.ts";
import { quotaExceeded } from "./quota.ts";

const maxNamespacesPerOrg = 1_000;

export const namespaceHandler = (app: App): ServiceImpl<typeof NamespaceService> => ({
  createNamespace: command(app, async (req, { tx, orgId, now }) => {
    await lockOrganization(tx, orgId); // so that they are counted one after another
    if ((await countNamespaces(tx, orgId, maxNamespacesPerOrg)) >= maxNamespacesPerOrg) {
      const message = `an organisation has at most ${maxNamespacesPerOrg} namespaces: use one of them`;
      throw quotaExceeded("namespaces", maxNamespacesPerOrg, message);
    }
    const row: NamespaceRow = { org_id: orgId, name: req.name, description: req.description, create_ms: now };
    if ((await insertNamespace(tx, row)) === 0) {
      const metadata = { resource: "namespace", id: req.name, field: "name" };
      throw new Fault("ALREADY_EXISTS", `the namespace ${req.name} exists`, metadata);
    }
    return { namespace: toNamespace(row) };
  }),

  listNamespaces: query(app, async (req, { db, orgId }) => {
    const read = (after: Parameters<typeof listNamespaces>[2], limit: number) =>
      listNamespaces(db, orgId, after, limit);
    const page = await readPage(app.cursors, ["ListNamespaces", orgId], req, read, (row) => [row.name]);
    return { namespaces: page.rows.map(toNamespace), nextPageToken: page.nextPageToken };
  }),
});
