/** What becomes of deliveries by themselves: those of webhooks that are gone are removed, and those that are no longer kept. Any number of replicas may do this. */
import type { App } from "../app.ts";
import { join, type Queryable, sql, type Tx } from "../db/db.ts";
import type { WebhookRef } from "./store.ts";

const batch = 500;
const dayMs = 86_400_000;

/** Removes what is left of webhooks that are gone, a bounded number of rows in a transaction. */
export async function removeDroppedWebhooks(app: App): Promise<void> {
  while (!app.stopping.aborted) {
    const row = await app.db.query.one<{ org_id: string; webhook_id: string }>(
      sql`select org_id, webhook_id from webhook_drop order by org_id, webhook_id limit 1`,
    );
    if (!row) return;
    await app.db.tx((tx) => removeSome(tx, { orgId: row.org_id, webhookId: row.webhook_id }));
  }
}

/** One server at a time: another would see fewer rows go than there are, and take it for the end. */
async function removeSome(tx: Tx, { orgId, webhookId }: WebhookRef): Promise<void> {
  const held = await tx.one(
    sql`select 1 as found from webhook_drop where org_id = ${orgId} and webhook_id = ${webhookId} ${tx.dialect.forUpdate}`,
  );
  if (!held) return;
  const gone = await tx.all<Gone>(sql`
    delete from webhook_delivery where org_id = ${orgId} and webhook_id = ${webhookId} and event_id in (
      select event_id from webhook_delivery where org_id = ${orgId} and webhook_id = ${webhookId} order by event_id limit ${batch})
    returning org_id, webhook_id, event_id, state`);
  await deleteAttempts(tx, gone);
  if (gone.length < batch)
    await tx.run(sql`delete from webhook_drop where org_id = ${orgId} and webhook_id = ${webhookId}`);
}

/** An event's transaction that began before a webhook was deleted can leave it a delivery on PostgreSQL. */
export const dropOrphan = async (app: App, { orgId, webhookId }: WebhookRef): Promise<void> => {
  await app.db.tx((tx) =>
    tx.run(sql`insert into webhook_drop (org_id, webhook_id) values (${orgId}, ${webhookId}) on conflict do nothing`),
  );
};

type Gone = { readonly org_id: string; readonly webhook_id: string; readonly event_id: string; readonly state: number };

/** Deletes deliveries that nothing has happened to for as long as they are kept; gives how many of them had not ended, for their webhooks are disabled. */
export async function sweepOldDeliveries(app: App): Promise<number> {
  let unsent = 0;
  while (!app.stopping.aborted) {
    const before = app.clock.now() - app.config.webhookRetentionDays * dayMs;
    if (!(await hasOldDelivery(app.db.query, before))) break;
    const gone = await app.db.tx((tx) => deleteOld(tx, before));
    unsent += gone.filter(({ state }) => state === 1).length;
    if (gone.length < batch) break;
  }
  return unsent;
}

/** Whether there is a delivery that is no longer kept. */
export const hasOldDelivery = async (db: Queryable, before: number): Promise<boolean> =>
  (await db.one(sql`select 1 as found from webhook_delivery where touch_ms < ${before} limit 1`)) !== undefined;

async function deleteOld(tx: Tx, before: number): Promise<Gone[]> {
  const gone = await tx.all<Gone>(sql`
    delete from webhook_delivery where (org_id, webhook_id, event_id) in (
      select org_id, webhook_id, event_id from webhook_delivery where touch_ms < ${before} order by touch_ms limit ${batch} ${tx.dialect.skipLocked})
    returning org_id, webhook_id, event_id, state`);
  await deleteAttempts(tx, gone);
  return gone;
}

async function deleteAttempts(tx: Tx, gone: readonly Gone[]): Promise<void> {
  for (const [, rows] of Map.groupBy(gone, ({ webhook_id }) => webhook_id)) {
    const { org_id, webhook_id } = rows[0]!;
    await tx.run(sql`
      delete from webhook_attempt where org_id = ${org_id} and webhook_id = ${webhook_id} and event_id in (${join(rows.map(({ event_id }) => event_id))})`);
  }
}
