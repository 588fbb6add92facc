import type { App } from "../../app.ts";
import { expireApproval } from "./decide.ts";
import { type ApprovalRow, dueApprovals } from "./store.ts";

const batch = 100;

/** Ends the approvals that nobody decided in time; gives how many. One that cannot be ended now keeps no other waiting. Any number of replicas may do this at once. */
export async function expireApprovals(app: App): Promise<number> {
  let expired = 0;
  let after: readonly [number, string] = [0, ""];
  while (!app.stopping.aborted) {
    const due = await dueApprovals(app.db.query, app.clock.now(), after, batch);
    for (const approval of due) if (await endOne(app, approval)) expired++;
    const last = due.at(-1);
    if (!last || due.length < batch) break;
    after = [last.expire_ms, last.approval_id];
  }
  return expired;
}

const endOne = (app: App, approval: ApprovalRow): Promise<boolean> =>
  app.db
    .tx((tx) => expireApproval(tx, app, approval, app.clock.now()))
    .catch((error: unknown) => {
      app.log.error({ err: error, approval_id: approval.approval_id }, "an approval could not be ended");
      return false;
    });
