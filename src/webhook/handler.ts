import { durationMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { DisableReason } from "../../gen/moltwire/webhook/v1/webhook_pb.ts";
import type { WebhookService } from "../../gen/moltwire/webhook/v1/webhook_service_pb.ts";
import type { App } from "../app.ts";
import { checkUrl } from "../bus/endpoint-check.ts";
import { badField } from "../errors.ts";
import { checkRevision, maskedFields } from "../rpc/change.ts";
import { command } from "../rpc/command.ts";
import { readPage } from "../rpc/page.ts";
import { query } from "../rpc/query.ts";
import { seesWholeOrg } from "../rpc/scope.ts";
import { lockOwner, lockUsableWebhook, usableWebhook } from "./access.ts";
import { deliveryHandler } from "./delivery-handler.ts";
import { checkPatterns } from "./event-types.ts";
import { sendTopic } from "./fan-out.ts";
import { checkSecret, newSecret } from "./signature.ts";
import {
  dropWebhook,
  insertWebhook,
  listWebhooks,
  openSecrets,
  putSubscriptions,
  sealSecrets,
  toWebhook,
  updateWebhook,
  type WebhookRow,
} from "./store.ts";

const defaultOverlapMs = 24 * 3_600_000;
const changeable = ["url", "event_types", "description", "disabled"] as const;

export const webhookHandler = (app: App): ServiceImpl<typeof WebhookService> => ({
  async createWebhook(request, context) {
    await checkEndpoint(app, request.url, "url");
    return command(app, async (req: typeof request, { tx, caller, orgId, now }) => {
      checkPatterns(req.eventTypes, "event_types");
      const agentId = await lockOwner(tx, caller, orgId, req.agentId);
      const webhookId = app.ids.next("whk");
      const secret = secretOf(app, req.secret);
      const row: WebhookRow = {
        org_id: orgId,
        webhook_id: webhookId,
        agent_id: agentId,
        url: req.url,
        description: req.description,
        event_types: JSON.stringify(req.eventTypes),
        disabled: 0,
        disable_reason: 0,
        disable_ms: null,
        failing_ms: null,
        former_expire_ms: null,
        create_ms: now,
        update_ms: now,
        revision: 1,
        secrets: sealSecrets(app, { orgId, webhookId }, { current: secret }),
      };
      await insertWebhook(tx, row);
      return { webhook: toWebhook(row, now), secret };
    })(request, context);
  },

  getWebhook: query(app, async (req, { db, caller, orgId, now }) => ({
    webhook: toWebhook(await usableWebhook(db, caller, { orgId, webhookId: req.webhookId }), now),
  })),

  listWebhooks: query(app, async (req, { db, caller, orgId, now }) => {
    const named = req.agentId || undefined;
    const owner = seesWholeOrg(caller) ? named : caller.agentId;
    // Another agent's are to an agent like those of one that does not exist.
    if (named !== undefined && named !== owner) return {};
    const page = await readPage(
      app.cursors,
      ["ListWebhooks", orgId, owner ?? ""],
      req,
      (after, limit) => listWebhooks(db, orgId, owner, after, limit),
      (row) => [row.webhook_id],
    );
    return { webhooks: page.rows.map((row) => toWebhook(row, now)), nextPageToken: page.nextPageToken };
  }),

  async updateWebhook(request, context) {
    if (request.updateMask?.paths.includes("url")) await checkEndpoint(app, request.change?.url ?? "", "change.url");
    return command(app, async (req: typeof request, { tx, caller, orgId, now }) => {
      const mask = maskedFields(req.updateMask, changeable);
      const change = req.change!;
      if (mask.has("event_types")) checkPatterns(change.eventTypes, "change.event_types");
      const row = await lockUsableWebhook(tx, caller, { orgId, webhookId: req.webhookId });
      checkRevision(req.ifRevision, row.revision);
      const next: WebhookRow = {
        ...row,
        // Another endpoint has not failed yet.
        ...(mask.has("url") && { url: change.url, failing_ms: null }),
        ...(mask.has("event_types") && { event_types: JSON.stringify(change.eventTypes) }),
        ...(mask.has("description") && { description: change.description }),
        ...(mask.has("disabled") && enabling(row, change.disabled, now)),
        update_ms: now,
        revision: row.revision + 1,
      };
      await updateWebhook(tx, next);
      if (mask.has("event_types")) await putSubscriptions(tx, next);
      if (row.disabled && !next.disabled) tx.ring(sendTopic);
      return { webhook: toWebhook(next, now) };
    })(request, context);
  },

  deleteWebhook: command(app, async (req, { tx, caller, orgId }) => {
    const { webhook_id: webhookId } = await lockUsableWebhook(tx, caller, { orgId, webhookId: req.webhookId });
    await dropWebhook(tx, { orgId, webhookId });
    return {};
  }),

  rotateSecret: command(app, async (req, { tx, caller, orgId, now }) => {
    const ref = { orgId, webhookId: req.webhookId };
    const row = await lockUsableWebhook(tx, caller, ref);
    const { current: former } = openSecrets(app, row);
    const secret = secretOf(app, req.secret);
    if (secret === former) throw badField("secret", "is the one that the webhook has");
    const overlapMs = req.overlap ? durationMs(req.overlap) : defaultOverlapMs;
    const next: WebhookRow = {
      ...row,
      former_expire_ms: overlapMs > 0 ? now + overlapMs : null,
      update_ms: now,
      revision: row.revision + 1,
      secrets: sealSecrets(app, ref, overlapMs > 0 ? { current: secret, former } : { current: secret }),
    };
    await updateWebhook(tx, next);
    return { webhook: toWebhook(next, now), secret };
  }),

  ...deliveryHandler(app),
});

/** Before the transaction begins, since a name has to be resolved for it. */
const checkEndpoint = (app: App, url: string, field: string): Promise<void> =>
  checkUrl(app.webhookEgress, url, field, "an https URL");

function secretOf(app: App, given: string): string {
  if (given === "") return newSecret(app.ids);
  checkSecret(given, "secret");
  return given;
}

/** What is to be disabled already stays as it is; what is enabled has a clean slate. */
function enabling(row: WebhookRow, disabled: boolean, now: number): Partial<WebhookRow> {
  if (!disabled) return { disabled: 0, disable_reason: 0, disable_ms: null, failing_ms: null };
  return row.disabled ? {} : { disabled: 1, disable_reason: DisableReason.OWNER, disable_ms: now };
}
