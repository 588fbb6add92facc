/** The work outside the transactions: sends what is due to webhooks, fairly, until the server stops. Any number of replicas do so at once. */
import type { App } from "../app.ts";
import { attemptTimeoutMs, claim, mostFor, type PendingRow, pendingWebhooks, releaseLeases } from "./claim.ts";
import type { DeliveryRow } from "./delivery-store.ts";
import { sendTopic } from "./fan-out.ts";
import { send } from "./send.ts";
import { settle } from "./settle.ts";
import type { WebhookRow } from "./store.ts";
import { dropOrphan, sweepOldDeliveries } from "./sweep.ts";
import { webhookMetrics } from "./webhook-metrics.ts";

/** Requests under way in all. */
export const maxSending = 512;
/** Of one organisation. */
export const maxPerOrg = 128;
/** To webhooks whose last attempt failed: half of all and half of an organisation's, so that however many are dead, those that are not find a place. */
const maxFailing = maxSending / 2;
export const maxFailingPerOrg = maxPerOrg / 2;
/** Bells can be lost with a connection, and retries come due without one. */
const pollMs = 500;
const pageSize = 200;
/** Webhooks whose deliveries are claimed at once: their transactions share a commit. */
const together = 16;
const patienceMs = 5_000;

/** Who has places, as it was when they were taken. */
type Holder = Pick<PendingRow, "org_id" | "webhook_id" | "failing_ms">;

export type Courier = {
  /** Begins to send. */
  begin(): Promise<void>;
  /** Removes what is no longer kept. */
  sweep(): Promise<void>;
  /** Waits until nothing is on its way, at most so long. To be called after `app.stopping` has aborted, so that nothing more is begun. */
  drain(graceMs: number): Promise<void>;
  /** Waits until all is written down. To be called after `app.ending` has aborted. */
  ended(): Promise<void>;
};

/** @param timeoutMs how long one attempt may take. */
export function createCourier(app: App, timeoutMs = attemptTimeoutMs): Courier {
  const metrics = webhookMetrics(app);
  const sending = new Set<Promise<void>>();
  /** Places taken, in all, by organisation and by webhook: by requests under way, and by claims that may find as many. Those of webhooks that fail once more. */
  let taken = 0;
  let takenByFailing = 0;
  const perOrg = new Map<string, number>();
  const failingPerOrg = new Map<string, number>();
  const perWebhook = new Map<string, number>();
  const bell = app.stopping.aborted ? undefined : app.db.listen(sendTopic, app.stopping);
  let loop = Promise.resolve();

  metrics.gauge(() => sending.size, maxSending);

  const count = (of: Map<string, number>, key: string, more: number): void => {
    const now = (of.get(key) ?? 0) + more;
    if (now > 0) of.set(key, now);
    else of.delete(key);
  };
  const release = ({ org_id: orgId, webhook_id: webhookId, failing_ms }: Holder, places: number): void => {
    taken -= places;
    count(perOrg, orgId, -places);
    count(perWebhook, webhookId, -places);
    if (failing_ms === null) return;
    takenByFailing -= places;
    count(failingPerOrg, orgId, -places);
  };
  /** How many places there are for one more of the organisation. */
  const roomFor = ({ org_id: orgId, failing_ms }: Holder): number => {
    const room = Math.min(maxPerOrg - (perOrg.get(orgId) ?? 0), maxSending - taken);
    if (failing_ms === null) return room;
    return Math.min(room, maxFailingPerOrg - (failingPerOrg.get(orgId) ?? 0), maxFailing - takenByFailing);
  };
  /** As many places as there are for the webhook: not those it has already, so that one that is slow takes none of another's. */
  const take = (row: PendingRow): number => {
    const own = mostFor(row) - (perWebhook.get(row.webhook_id) ?? 0);
    const room = Math.max(0, Math.min(own, roomFor(row)));
    release(row, -room);
    return room;
  };

  const deliver = async (webhook: WebhookRow, row: DeliveryRow): Promise<void> => {
    try {
      const sent = await send(app, webhook, row, timeoutMs);
      const settled = await app.db.tx((tx) => settle(tx, app, row, sent, app.clock.now()));
      metrics.attempt(row, sent, settled);
    } catch (error) {
      // Its lease runs out, and it is sent again.
      app.log.error({ err: error, webhook_id: row.webhook_id, event_id: row.event_id }, "a delivery could not be made");
    }
  };

  /** In a place that was taken for it, by who held it then. */
  const start = (holder: Holder, webhook: WebhookRow, row: DeliveryRow): void => {
    const run = deliver(webhook, row).finally(() => {
      sending.delete(run);
      release(holder, 1);
      // There is room for another, of this webhook or of one that waited for a place.
      bell?.ring();
    });
    sending.add(run);
  };

  const serve = async (pending: PendingRow): Promise<void> => {
    const { org_id: orgId, webhook_id: webhookId } = pending;
    if (pending.enabled === null) return dropOrphan(app, { orgId, webhookId });
    const room = take(pending);
    let used = 0;
    try {
      const { failing_ms } = pending;
      if (room === 0 && failing_ms !== null && !perWebhook.has(webhookId) && (!turnedAway || webhookId < turnedAway))
        turnedAway = webhookId;
      if (room === 0) return;
      const claimed = await app.db.tx((tx) => claim(tx, app, { orgId, webhookId }, room, app.clock.now()));
      for (const row of claimed?.deliveries ?? []) {
        used++;
        start(pending, claimed!.webhook, row);
      }
    } finally {
      release(pending, room - used);
    }
  };

  /**
   * Places of webhooks that fail go round: who was turned away first in a walk is the first to get one in the next, and whoever comes before waits for the walk after that.
   */
  let turnedAway: string | undefined;
  let failingFrom = "";
  /** One walk over all webhooks with something pending, from where the last one left off for want of room. */
  let from = "";
  const round = async (): Promise<void> => {
    for (let walked = false; !walked; ) {
      const page = await pendingWebhooks(app.db.query, from, pageSize);
      const due = page.filter(
        ({ enabled, next_ms, failing_ms, webhook_id }) =>
          enabled !== 0 && next_ms <= app.clock.now() && (failing_ms === null || webhook_id >= failingFrom),
      );
      for (let n = 0; n < due.length; n += together) {
        if (app.stopping.aborted || taken >= maxSending) return;
        const some = due.slice(n, n + together);
        await Promise.all(some.map(serve));
        from = some.at(-1)!.webhook_id;
      }
      const isEnd = page.length < pageSize;
      from = isEnd ? "" : page.at(-1)!.webhook_id;
      if (!isEnd) continue;
      // Those that were passed over have their turn at once when nobody else waits.
      walked = failingFrom === "" || turnedAway !== undefined;
      failingFrom = turnedAway ?? "";
      turnedAway = undefined;
    }
  };

  const run = async (): Promise<void> => {
    while (!app.stopping.aborted && bell) {
      try {
        await round();
        await bell.wait(pollMs, app.stopping);
      } catch (error) {
        if (app.stopping.aborted) return;
        app.log.error({ err: error }, "webhooks could not be sent");
        await app.clock.sleep(patienceMs, app.stopping).catch(() => {});
      }
    }
  };

  return {
    async begin() {
      await app.db.tx((tx) => releaseLeases(tx, app.clock.now()));
      loop = run();
    },
    sweep: async () => metrics.expired(await sweepOldDeliveries(app)),
    async drain(graceMs) {
      await loop;
      const { promise: graceOver, resolve } = Promise.withResolvers<void>();
      const timer = app.clock.after(graceMs, resolve);
      await Promise.race([Promise.all(sending), graceOver]);
      timer.cancel();
    },
    async ended() {
      await Promise.all(sending);
    },
  };
}
