import type { ServiceImpl } from "@connectrpc/connect";
import type { MaintenanceService, SetAdminPasswordRequest } from "../../gen/moltwire/ops/v1/maintenance_service_pb.ts";
import type { App } from "../app.ts";
import { checkUnbound } from "../rpc/auth.ts";
import { callerOf } from "../rpc/caller.ts";
import { runCommand } from "../rpc/command.ts";
import { hashPassword, passwordKeyId, putPassword } from "./password.ts";
import { sessionTopic } from "./session.ts";
import { deleteSessionsOf } from "./session-store.ts";

/** The password's part of MaintenanceService. */
export const passwordHandler = (app: App): Pick<ServiceImpl<typeof MaintenanceService>, "setAdminPassword"> => ({
  async setAdminPassword(req, context) {
    checkUnbound(callerOf(context), "the password");
    // Before the transaction, in which nothing else may be waited for.
    const stored = await hashPassword(req.password, app.ids);
    // Its digest would be one that it can be guessed from.
    const seen: SetAdminPasswordRequest = { ...req, password: "" };
    const { reply } = await runCommand(app, seen, context, async (_req, { tx }) => {
      await putPassword(tx, stored);
      const ended = await deleteSessionsOf(tx, app.homeOrgId, passwordKeyId);
      for (const tokenSha256 of ended) tx.ring(sessionTopic(tokenSha256));
      return { endedSessions: ended.length };
    });
    return reply;
  },
});
