import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import type { BackupRequest } from "../../gen/moltwire/ops/v1/maintenance_service_pb.ts";
import { BackupRequestSchema, type MaintenanceService } from "../../gen/moltwire/ops/v1/maintenance_service_pb.ts";
import type { App } from "../app.ts";
import { Fault } from "../errors.ts";
import { callerOf, traceOf } from "../rpc/caller.ts";
import { watched } from "../rpc/feed.ts";
import { requestDigest } from "../rpc/idempotency.ts";
import { writeAudit } from "./audit-store.ts";
import { makeBackup } from "./backup.ts";

const retryMs = 5_000;

/** The audit row is on disk before anything is read, and so in the backup itself. */
export function backupHandler(app: App): Pick<ServiceImpl<typeof MaintenanceService>, "backup"> {
  let isBusy = false;
  return {
    async *backup(request, context) {
      if (isBusy) {
        const options = { retryAfterMs: retryMs };
        throw new Fault("OVERLOADED", "this server is making another backup: one at a time", {}, options);
      }
      isBusy = true;
      try {
        await audit(app, request, context);
        yield* watched(app, context, (signal) => makeBackup(app, signal));
      } finally {
        isBusy = false;
      }
    },
  };
}

const audit = (app: App, request: BackupRequest, context: HandlerContext): Promise<number> =>
  app.db.tx((tx) => {
    const caller = callerOf(context);
    const digest = requestDigest(BackupRequestSchema, request);
    const { method } = context;
    const act = { caller, orgId: caller.orgId, now: app.clock.now(), trace: traceOf(context), method, digest, request };
    return writeAudit(tx, app, { ...act, reply: {} });
  });
