/** What crosses between organisations, in the audit log of each: that a decision was made, and which. Why stands in its decision log, under the same trace. */
import type { DescMethod } from "@bufbuild/protobuf";
import { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import { AuditKind } from "../../gen/moltwire/ops/v1/admin_service_pb.ts";
import type { App } from "../app.ts";
import type { Tx } from "../db/db.ts";
import { insertAudit } from "../ops/audit-store.ts";
import { methodName } from "../rpc/access.ts";

/** A decision of one of the two organisations. */
export type CrossingDecision = {
  /** Whose decision it is, and whose log it goes into. */
  readonly orgId: string;
  readonly otherOrgId: string;
  /** `out`: that of the organisation that asks; `in`: that of the one that is asked. */
  readonly direction: "in" | "out";
  readonly method: DescMethod;
  /** Of the policies, as PolicyVerdict names it; UNSPECIFIED where they were not asked, since the grant does not cover it. */
  readonly verdict: string;
  /** Empty for an administrator's own; on the side that is asked it is an agent of the other. */
  readonly callerAgentId: string;
  /** Of the caller, on its own side. */
  readonly keyId: string;
  /** What it was about, by names in snake case: ids such as `grant_id`. Empty ones are left out. */
  readonly about: Readonly<Record<string, string>>;
  readonly traceId: string;
  readonly now: number;
};

/** Writes it, in the transaction of the decision. */
export const auditCrossing = (tx: Tx, app: Pick<App, "ids">, of: CrossingDecision): Promise<number> =>
  insertAudit(tx, app, {
    orgId: of.orgId,
    kind: AuditKind.DECISION,
    timeMs: of.now,
    method: methodName(of.method),
    role: Role.UNSPECIFIED,
    keyId: of.keyId,
    agentId: of.direction === "out" ? of.callerAgentId : "",
    resource: {
      ...Object.fromEntries(Object.entries(of.about).filter(([, id]) => id !== "")),
      ...{ direction: of.direction, verdict: of.verdict, other_org_id: of.otherOrgId },
    },
    requestSha256: "",
    traceId: of.traceId,
  });
