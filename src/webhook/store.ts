/** Webhooks as they are stored. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { DisableReason, type WebhookSchema } from "../../gen/moltwire/webhook/v1/webhook_pb.ts";
import type { App } from "../app.ts";
import { join, type Queryable, sql, type Tx } from "../db/db.ts";
import type { Position } from "../rpc/cursor.ts";
import { disjoint } from "./event-types.ts";

/** `agent_id` is empty for the organisation's own; `event_types` is JSON; `disable_reason` the number of DisableReason; `secrets` sealed. */
export type WebhookRow = {
  readonly org_id: string;
  readonly webhook_id: string;
  readonly agent_id: string;
  readonly url: string;
  readonly description: string;
  readonly event_types: string;
  readonly disabled: number;
  readonly disable_reason: number;
  readonly disable_ms: number | null;
  readonly failing_ms: number | null;
  readonly former_expire_ms: number | null;
  readonly create_ms: number;
  readonly update_ms: number;
  readonly revision: number;
  readonly secrets: Uint8Array;
};

/** Which webhook. */
export type WebhookRef = { readonly orgId: string; readonly webhookId: string };

const columns = sql`org_id, webhook_id, agent_id, url, description, event_types, disabled, disable_reason, disable_ms, failing_ms, former_expire_ms,
  create_ms, update_ms, revision, secrets`;

/** What a webhook's requests are signed with: at most two secrets. */
export type Secrets = { readonly current: string; readonly former?: string };

/** Where the secrets of a webhook lie. */
export const secretsPlace = ({ orgId, webhookId }: WebhookRef) => ({ orgId, table: "webhook", id: webhookId });

export const sealSecrets = (app: Pick<App, "vault">, ref: WebhookRef, secrets: Secrets): Uint8Array =>
  app.vault.seal(secretsPlace(ref), Buffer.from(JSON.stringify(secrets)));

export const openSecrets = (app: Pick<App, "vault">, row: WebhookRow): Secrets =>
  JSON.parse(
    Buffer.from(app.vault.open(secretsPlace({ orgId: row.org_id, webhookId: row.webhook_id }), row.secrets)).toString(),
  ) as Secrets;

/** The secrets to sign with now: the former one too while the overlap lasts. */
export function secretsAt(app: Pick<App, "vault">, row: WebhookRow, now: number): readonly string[] {
  const { current, former } = openSecrets(app, row);
  return former !== undefined && (row.former_expire_ms ?? 0) > now ? [current, former] : [current];
}

export async function insertWebhook(tx: Tx, row: WebhookRow): Promise<void> {
  await tx.run(sql`
    insert into webhook (${columns})
    values (${row.org_id}, ${row.webhook_id}, ${row.agent_id}, ${row.url}, ${row.description}, ${row.event_types}, ${row.disabled},
      ${row.disable_reason}, ${row.disable_ms}, ${row.failing_ms}, ${row.former_expire_ms}, ${row.create_ms}, ${row.update_ms}, ${row.revision},
      ${row.secrets})`);
  await putSubscriptions(tx, row);
}

/** Replaces what is stored of a webhook. The caller has locked it. */
export async function updateWebhook(tx: Tx, row: WebhookRow): Promise<void> {
  await tx.run(sql`
    update webhook set url = ${row.url}, description = ${row.description}, event_types = ${row.event_types}, disabled = ${row.disabled},
      disable_reason = ${row.disable_reason}, disable_ms = ${row.disable_ms}, failing_ms = ${row.failing_ms}, former_expire_ms = ${row.former_expire_ms},
      update_ms = ${row.update_ms}, revision = ${row.revision}, secrets = ${row.secrets}
    where org_id = ${row.org_id} and webhook_id = ${row.webhook_id}`);
}

/** Replaces what a webhook asks for. */
export async function putSubscriptions(tx: Tx, row: WebhookRow): Promise<void> {
  await deleteSubscriptions(tx, { orgId: row.org_id, webhookId: row.webhook_id });
  const rows = disjoint(JSON.parse(row.event_types) as string[]).map(
    (pattern) => sql`(${row.org_id}, ${pattern}, ${row.agent_id}, ${row.webhook_id})`,
  );
  await tx.run(sql`insert into webhook_subscription (org_id, pattern, agent_id, webhook_id) values ${join(rows)}`);
}

const deleteSubscriptions = (tx: Tx, { orgId, webhookId }: WebhookRef): Promise<number> =>
  tx.run(sql`delete from webhook_subscription where org_id = ${orgId} and webhook_id = ${webhookId}`);

/** Ends a webhook: nothing is sent to it from the commit on, but for what is under way. Its deliveries are removed in the background. */
export async function dropWebhook(tx: Tx, ref: WebhookRef): Promise<void> {
  const { orgId, webhookId } = ref;
  await tx.run(sql`delete from webhook where org_id = ${orgId} and webhook_id = ${webhookId}`);
  await deleteSubscriptions(tx, ref);
  await tx.run(
    sql`insert into webhook_drop (org_id, webhook_id) values (${orgId}, ${webhookId}) on conflict do nothing`,
  );
}

/** Ends the webhooks of an agent that is deleted, at most 50 by their index; gives how many. */
export async function dropWebhooksOf(tx: Tx, orgId: string, agentId: string): Promise<number> {
  const rows = await tx.all<{ webhook_id: string }>(
    sql`select webhook_id from webhook where org_id = ${orgId} and agent_id = ${agentId}`,
  );
  for (const { webhook_id: webhookId } of rows) await dropWebhook(tx, { orgId, webhookId });
  return rows.length;
}

export const findWebhook = (db: Queryable, { orgId, webhookId }: WebhookRef): Promise<WebhookRow | undefined> =>
  db.one<WebhookRow>(sql`select ${columns} from webhook where org_id = ${orgId} and webhook_id = ${webhookId}`);

export const lockWebhook = (tx: Tx, { orgId, webhookId }: WebhookRef): Promise<WebhookRow | undefined> =>
  tx.one<WebhookRow>(
    sql`select ${columns} from webhook where org_id = ${orgId} and webhook_id = ${webhookId} ${tx.dialect.forUpdate}`,
  );

/** As {@link lockWebhook}, but nothing when another transaction has it: that one is sending to it already. */
export const lockWebhookUnlessTaken = (tx: Tx, { orgId, webhookId }: WebhookRef): Promise<WebhookRow | undefined> =>
  tx.one<WebhookRow>(
    sql`select ${columns} from webhook where org_id = ${orgId} and webhook_id = ${webhookId} ${tx.dialect.skipLocked}`,
  );

/** How many webhooks an owner has, by their index. */
export const countWebhooks = async (db: Queryable, orgId: string, agentId: string): Promise<number> =>
  (await db.one<{ n: number }>(
    sql`select count(*) as n from webhook where org_id = ${orgId} and agent_id = ${agentId}`,
  ))!.n;

/** Oldest first: ids sort by time. Of one agent along its index; `agentId` undefined: of all the organisation. */
export function listWebhooks(
  db: Queryable,
  orgId: string,
  agentId: string | undefined,
  after: Position | undefined,
  limit: number,
): Promise<WebhookRow[]> {
  const [afterId = ""] = (after ?? []) as string[];
  const owned = agentId === undefined ? sql`` : sql`and agent_id = ${agentId}`;
  return db.all<WebhookRow>(
    sql`select ${columns} from webhook where org_id = ${orgId} ${owned} and webhook_id > ${afterId} order by webhook_id limit ${limit}`,
  );
}

const optionalTime = (ms: number | null) => (ms === null ? undefined : timestampFromMs(ms));

export const toWebhook = (row: WebhookRow, now: number): MessageInitShape<typeof WebhookSchema> => ({
  webhookId: row.webhook_id,
  orgId: row.org_id,
  agentId: row.agent_id,
  url: row.url,
  eventTypes: JSON.parse(row.event_types) as string[],
  description: row.description,
  disabled: row.disabled !== 0,
  disableReason: row.disabled ? (row.disable_reason as DisableReason) : DisableReason.UNSPECIFIED,
  disableTime: optionalTime(row.disable_ms),
  failingSinceTime: optionalTime(row.failing_ms),
  formerSecretExpireTime: optionalTime((row.former_expire_ms ?? 0) > now ? row.former_expire_ms : null),
  createTime: timestampFromMs(row.create_ms),
  updateTime: timestampFromMs(row.update_ms),
  revision: BigInt(row.revision),
});
