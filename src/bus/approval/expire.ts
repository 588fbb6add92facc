import type { App } from "../../app.ts";
import { expireApproval } from "./decide.ts";
import { dueApprovals } from "./store.ts";

const batch = 100;

/** Ends the approvals that nobody decided in time; gives how many. Any number of replicas may do this at once. */
export async function expireApprovals(app: App): Promise<number> {
  let expired = 0;
  while (!app.stopping.aborted) {
    const due = await dueApprovals(app.db.query, app.clock.now(), batch);
    for (const approval of due)
      if (await app.db.tx((tx) => expireApproval(tx, app, approval, app.clock.now()))) expired++;
    if (due.length < batch) break;
  }
  return expired;
}
