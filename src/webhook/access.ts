/** Whose a webhook is, and who may use it. */
import { lockAgent } from "../bus/agent-store.ts";
import type { Queryable, Tx } from "../db/db.ts";
import { Fault, notFound } from "../errors.ts";
import { lockOrganization } from "../federation/organization-store.ts";
import type { Caller } from "../rpc/caller.ts";
import { seesWholeOrg } from "../rpc/scope.ts";
import { countWebhooks, findWebhook, lockWebhook, type WebhookRef, type WebhookRow } from "./store.ts";

/** Of one agent, or of the organisation itself. */
const maxWebhooks = 50;

const missing = ({ webhookId }: WebhookRef): Fault => notFound("webhook", webhookId);
const mayUse = (caller: Caller, row: WebhookRow): boolean => seesWholeOrg(caller) || row.agent_id === caller.agentId;

/** The webhook, if it is the caller's or the caller administers its organisation: else NOT_FOUND, whether it exists or not. */
export async function usableWebhook(db: Queryable, caller: Caller, ref: WebhookRef): Promise<WebhookRow> {
  const row = await findWebhook(db, ref);
  if (!row || !mayUse(caller, row)) throw missing(ref);
  return row;
}

/** As {@link usableWebhook}, locked in order to be changed. */
export async function lockUsableWebhook(tx: Tx, caller: Caller, ref: WebhookRef): Promise<WebhookRow> {
  const row = await lockWebhook(tx, ref);
  if (!row || !mayUse(caller, row)) throw missing(ref);
  return row;
}

/**
 * The owner of a webhook to be made, with room for one more: the agent named, or the caller; empty: the organisation. Locked, so that two that are made at once are both
 * counted, and none is made for an agent that is being deleted.
 */
export async function lockOwner(tx: Tx, caller: Caller, orgId: string, named: string): Promise<string> {
  const agentId = named || (seesWholeOrg(caller) ? "" : caller.agentId);
  if (agentId === "") await lockOrganization(tx, orgId);
  else if (!(seesWholeOrg(caller) || agentId === caller.agentId) || !(await lockAgent(tx, orgId, agentId)))
    throw notFound("agent", agentId);
  if ((await countWebhooks(tx, orgId, agentId)) < maxWebhooks) return agentId;
  throw new Fault(
    "QUOTA_EXCEEDED",
    `an agent has at most ${maxWebhooks} webhooks, and so has the organisation itself`,
    {
      resource: "webhooks",
      limit: String(maxWebhooks),
    },
  );
}
