import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import type { DeliverySchema } from "../../gen/moltwire/webhook/v1/delivery_pb.ts";
import type { TestWebhookRequest, WebhookService } from "../../gen/moltwire/webhook/v1/webhook_service_pb.ts";
import type { App } from "../app.ts";
import type { Queryable } from "../db/db.ts";
import { Fault, notFound } from "../errors.ts";
import { callerOf } from "../rpc/caller.ts";
import { command, runCommand } from "../rpc/command.ts";
import { readBoundedPage } from "../rpc/page.ts";
import { query } from "../rpc/query.ts";
import { orgOf } from "../rpc/scope.ts";
import { lockUsableWebhook, usableWebhook } from "./access.ts";
import { attemptTimeoutMs } from "./claim.ts";
import { toDeliveries } from "./delivery-message.ts";
import {
  type DeliveryRef,
  type DeliveryRow,
  findDelivery,
  keptAttempts,
  listDeliveries,
  restart,
} from "./delivery-store.ts";
import { testEventType } from "./event-types.ts";
import { insertDelivery, sendTopic } from "./fan-out.ts";
import { sealPayload } from "./payload.ts";
import { type ReplayPosition, replayAfter } from "./replay.ts";
import { keptResponseBytes } from "./response.ts";
import { bodyOf } from "./send.ts";
import { deliveryTopic } from "./settle.ts";
import { findWebhook, type WebhookRow } from "./store.ts";

/** What a delivery of a list comes to at most, and each of its attempts, as they are stored. */
const deliveryBytes = 1_024;
const attemptBytes = 512 + keptResponseBytes;
/** Bells can be lost with a connection. */
const pollMs = 1_000;

type Handled = "testWebhook" | "listDeliveries" | "getDelivery" | "replayDelivery" | "replayDeliveries";

export const deliveryHandler = (app: App): Pick<ServiceImpl<typeof WebhookService>, Handled> => ({
  testWebhook: (req, context) => testWebhook(app, req, context),

  listDeliveries: query(app, async (req, { db, caller, orgId }) => {
    const ref = { orgId, webhookId: req.webhookId };
    const webhook = await usableWebhook(db, caller, ref);
    const page = await readBoundedPage(
      app.cursors,
      ["ListDeliveries", orgId, webhook.webhook_id, String(req.state)],
      req,
      (after, limit) => listDeliveries(db, ref, req.state, after, limit),
      (row) => [row.event_ms, row.event_id],
      (row) => deliveryBytes + row.payload.length + Math.min(row.attempts, keptAttempts) * attemptBytes,
    );
    return {
      deliveries: await toDeliveries(app, db, webhook, page.rows, false),
      nextPageToken: page.nextPageToken,
    };
  }),

  getDelivery: query(app, async (req, { db, caller, orgId }) => {
    const ref = { orgId, webhookId: req.webhookId, eventId: req.eventId };
    const webhook = await usableWebhook(db, caller, ref);
    const row = await foundDelivery(db, ref);
    return { delivery: await one(app, db, webhook, row), body: bodyOf(app, row) };
  }),

  replayDelivery: command(app, async (req, { tx, caller, orgId, now }) => {
    const ref = { orgId, webhookId: req.webhookId, eventId: req.eventId };
    // Locked before its delivery, as everywhere.
    const webhook = await lockUsableWebhook(tx, caller, ref);
    await restart(tx, ref, now);
    tx.ring(sendTopic);
    return { delivery: await one(app, tx, webhook, await foundDelivery(tx, ref)) };
  }),

  replayDeliveries: command(app, async (req, { tx, caller, orgId, now }) => {
    const ref = { orgId, webhookId: req.webhookId };
    await lockUsableWebhook(tx, caller, ref);
    const sinceMs = timestampMs(req.sinceTime!);
    const scope = ["ReplayDeliveries", orgId, req.webhookId, String(sinceMs), String(req.includeDelivered)];
    const after = req.pageToken
      ? (app.cursors.decode(scope, req.pageToken, "page_token") as unknown as ReplayPosition)
      : ([sinceMs, ""] as const);
    const { replayed, next } = await replayAfter(tx, ref, after, req.includeDelivered, now);
    return { replayedCount: replayed, nextPageToken: next ? app.cursors.encode(scope, next) : "" };
  }),
});

/** Makes an event for one webhook, and waits for its first attempt; how it went is not part of the command. */
async function testWebhook(app: App, request: TestWebhookRequest, context: HandlerContext) {
  const { reply } = await runCommand(app, request, context, async (req, { tx, caller, orgId, now, trace }) => {
    const webhook = await lockUsableWebhook(tx, caller, { orgId, webhookId: req.webhookId });
    if (webhook.disabled)
      throw new Fault("FAILED_PRECONDITION", "the webhook is disabled: enable it first", { state: "DISABLED" });
    const eventId = app.ids.next("evt");
    const payload = sealPayload(app, orgId, eventId, { webhook_id: req.webhookId });
    const event = {
      orgId,
      eventId,
      type: testEventType,
      agentId: webhook.agent_id,
      timeMs: now,
      traceId: trace.traceId,
      payload,
    };
    await tx.run(insertDelivery(event, req.webhookId));
    tx.ring(sendTopic);
    const row = await foundDelivery(tx, { orgId, webhookId: req.webhookId, eventId });
    return { delivery: await one(app, tx, webhook, row) };
  });
  const caller = callerOf(context);
  const orgId = await orgOf(app.db.query, caller, request.orgId);
  const ref = { orgId, webhookId: request.webhookId, eventId: reply.delivery.eventId ?? "" };
  return { delivery: (await firstAttempt(app, ref, context.signal)) ?? reply.delivery };
}

/** The delivery once it was tried, or as it is when an attempt should have ended; undefined when it is gone, or nobody waits any more. */
async function firstAttempt(
  app: App,
  ref: DeliveryRef,
  leaving: AbortSignal,
): Promise<MessageInitShape<typeof DeliverySchema> | undefined> {
  const over = new AbortController();
  const signal = AbortSignal.any([leaving, app.stopping, over.signal]);
  const untilMs = performance.now() + attemptTimeoutMs;
  try {
    const bell = app.db.listen(deliveryTopic(ref), signal);
    for (;;) {
      const leftMs = untilMs - performance.now();
      const webhook = await findWebhook(app.db.query, ref);
      const row = webhook && (await findDelivery(app.db.query, ref));
      const delivery = row && (await one(app, app.db.query, webhook, row));
      if (!delivery || delivery.attempts?.length || leftMs <= 0) return delivery;
      await bell.wait(Math.min(leftMs, pollMs), signal);
    }
  } catch (error) {
    if (signal.aborted) return undefined;
    throw error;
  } finally {
    over.abort();
  }
}

async function foundDelivery(db: Queryable, ref: DeliveryRef): Promise<DeliveryRow> {
  const row = await findDelivery(db, ref);
  if (!row) throw notFound("delivery", ref.eventId);
  return row;
}

const one = async (app: App, db: Queryable, webhook: WebhookRow, row: DeliveryRow) =>
  (await toDeliveries(app, db, webhook, [row], true))[0]!;
