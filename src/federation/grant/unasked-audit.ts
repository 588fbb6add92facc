/** What becomes of a grant without a call of the organisation it concerns, in that organisation's audit log. */
import { Role } from "../../../gen/moltwire/api/v1/access_pb.ts";
import { GrantService } from "../../../gen/moltwire/federation/v1/grant_service_pb.ts";
import { AuditKind } from "../../../gen/moltwire/ops/v1/admin_service_pb.ts";
import type { App } from "../../app.ts";
import type { Tx } from "../../db/db.ts";
import { insertAudit } from "../../ops/audit-store.ts";
import type { GrantRow } from "./store.ts";

/** `ExpireGrant` is no method: it has the form of one where the time did it. */
export type UnaskedAct = "CreateGrant" | "AcceptGrant" | "ExpireGrant";

export type UnaskedChange = {
  /** In whose log. */
  readonly orgId: string;
  readonly act: UnaskedAct;
  readonly now: number;
  readonly traceId: string;
};

/** Writes it, with no key and no role, in the transaction of the change. */
export const auditUnasked = (
  tx: Tx,
  app: Pick<App, "ids">,
  { grant_id, subject_kind, subject, org_id, grantee_org_id, revision }: GrantRow,
  { orgId, act, now, traceId }: UnaskedChange,
): Promise<number> =>
  insertAudit(tx, app, {
    ...{ orgId, kind: AuditKind.CHANGE, timeMs: now, method: `${GrantService.typeName}/${act}` },
    ...{ role: Role.UNSPECIFIED, keyId: "", agentId: "", requestSha256: "", traceId },
    resource: {
      ...{ grant_id, grant_revision: String(revision), other_org_id: orgId === org_id ? grantee_org_id : org_id },
      ...(subject_kind === "listingId" && { listing_id: subject }),
    },
  });
