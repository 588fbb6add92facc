import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import type { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import type { AdminService } from "../../gen/moltwire/ops/v1/admin_service_pb.ts";
import type { App } from "../app.ts";
import { readPage } from "../rpc/page.ts";
import { query } from "../rpc/query.ts";
import { listAudit } from "./audit-store.ts";
import { readOverview } from "./overview-store.ts";

export const adminHandler = (app: App): ServiceImpl<typeof AdminService> => ({
  getOverview: query(app, (_req, { db, orgId, now }) => readOverview(db, orgId, now)),

  listAuditEvents: query(app, async (req, { db, orgId }) => {
    const read = (after: Parameters<typeof listAudit>[2], limit: number) => listAudit(db, orgId, after, limit);
    const page = await readPage(app.cursors, ["ListAuditEvents", orgId], req, read, (row) => [row.xid, row.seq]);
    const auditEvents = page.rows.map((row) => ({
      auditId: row.audit_id,
      orgId: row.org_id,
      time: timestampFromMs(row.time_ms),
      method: row.method,
      role: row.role as Role,
      keyId: row.key_id,
      agentId: row.agent_id,
      resource: JSON.parse(row.resource) as Record<string, string>,
      requestSha256: row.request_sha256,
      traceId: row.trace_id,
    }));
    return { auditEvents, nextPageToken: page.nextPageToken };
  }),
});
