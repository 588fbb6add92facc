import { GrantAct, GrantParty } from "../../../gen/moltwire/federation/v1/grant_pb.ts";
import type { App } from "../../app.ts";
import type { Tx } from "../../db/db.ts";
import { changeGrant } from "./change.ts";
import { dueGrants } from "./list-store.ts";
import { asOf, type GrantRow, lockGrantOf } from "./store.ts";

const batch = 100;

/** Writes down that grants have expired, as they are read since, and tells of it. One of which that cannot be written now keeps no other waiting. Any number of replicas may do this at once. */
export async function expireGrants(app: App): Promise<void> {
  let after: readonly [number, string] = [0, ""];
  while (!app.stopping.aborted) {
    const due = await dueGrants(app.db.query, app.clock.now(), after, batch);
    for (const one of due)
      await app.db
        .tx((tx) => expireGrant(tx, app, one, app.clock.now()))
        .catch((error: unknown) => app.log.error({ err: error, grant_id: one.grant_id }, "a grant could not be ended"));
    const last = due.at(-1);
    if (!last || due.length < batch) return;
    after = [last.expire_ms, last.grant_id];
  }
}

/** Nothing, if it was changed meanwhile. The revision is of the time that ended it. */
async function expireGrant(tx: Tx, app: App, one: Pick<GrantRow, "org_id" | "grant_id">, now: number): Promise<void> {
  const row = await lockGrantOf(tx, one);
  if (!row || asOf(row, now) === row) return;
  const deed = { act: GrantAct.EXPIRE, party: GrantParty.UNSPECIFIED, keyId: "" } as const;
  await changeGrant(tx, app, row, { ...deed, now: row.expire_ms!, traceId: app.ids.trace() });
}
