import type { ServiceImpl } from "@connectrpc/connect";
import type { AdminService } from "../../gen/moltwire/ops/v1/admin_service_pb.ts";
import type { App } from "../app.ts";
import { callerOf } from "../rpc/caller.ts";
import { watched } from "../rpc/feed.ts";
import { readPage } from "../rpc/page.ts";
import { query } from "../rpc/query.ts";
import { orgOf } from "../rpc/scope.ts";
import { findHeadAndUnsealed } from "./audit-chain-store.ts";
import { exportAudit, toHead } from "./audit-export.ts";
import { listAudit, toAuditEvent } from "./audit-store.ts";
import { readOverview } from "./overview-store.ts";

const mostCounted = 10_000;

export const adminHandler = (app: App): Omit<ServiceImpl<typeof AdminService>, "revealPayload"> => ({
  getOverview: query(app, (_req, { db, orgId, now }) => readOverview(db, orgId, now)),

  listAuditEvents: query(app, async (req, { db, orgId }) => {
    const read = (after: Parameters<typeof listAudit>[2], limit: number) => listAudit(db, orgId, after, limit);
    const page = await readPage(app.cursors, ["ListAuditEvents", orgId], req, read, (row) => [row.xid, row.seq]);
    return { auditEvents: page.rows.map(toAuditEvent), nextPageToken: page.nextPageToken };
  }),

  getAuditHead: query(app, async (_req, { db, orgId }) => {
    const { head, unsealed } = await findHeadAndUnsealed(db, orgId, mostCounted);
    return { head: toHead(head), unsealed };
  }),

  async *exportAuditEvents(req, context) {
    const db = app.db.query;
    const orgId = await orgOf(db, callerOf(context), req.orgId);
    yield* watched(app, context, (signal) => exportAudit(db, orgId, Number(req.afterNumber), signal));
  },
});
