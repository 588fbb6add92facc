import type { ServiceImpl } from "@connectrpc/connect";
import { GrantAct } from "../../../gen/moltwire/federation/v1/grant_pb.ts";
import type { GrantService } from "../../../gen/moltwire/federation/v1/grant_service_pb.ts";
import type { App } from "../../app.ts";
import { dayStart, dayText, parseDay } from "../../bus/cost/day.ts";
import { badField, notFound } from "../../errors.ts";
import { checkRevision, maskedFields } from "../../rpc/change.ts";
import { type Command, command } from "../../rpc/command.ts";
import { readPage } from "../../rpc/page.ts";
import { query } from "../../rpc/query.ts";
import { changeGrant } from "./change.ts";
import { listGrants } from "./list-store.ts";
import { proposeGrant } from "./propose.ts";
import type { Act } from "./rule.ts";
import {
  asOf,
  findGrant,
  type GrantRow,
  listRevisions,
  lockGrant,
  partyOf,
  termsOf,
  toGrant,
  toRevision,
} from "./store.ts";
import { changeableTerms, changedTerms, checkExpiry, type StoredTerms, toStored } from "./terms.ts";
import { listUsage, toDayUsage } from "./usage-store.ts";

export const grantHandler = (app: App): ServiceImpl<typeof GrantService> => ({
  createGrant: command(app, async (req, asked) => ({ grant: toGrant(await proposeGrant(app, req, asked)) })),

  getGrant: query(app, async (req, { db, orgId, now }) => {
    const row = await findGrant(db, orgId, req.grantId);
    if (!row) throw notFound("grant", req.grantId);
    const read = (after: Parameters<typeof listRevisions>[2], limit: number) => listRevisions(db, row, after, limit);
    const page = await readPage(app.cursors, ["GetGrant", orgId, req.grantId], req, read, ({ revision }) => [revision]);
    const reader = partyOf(row, orgId);
    const revisions = page.rows.map((one) => toRevision(one, reader));
    return { grant: toGrant(asOf(row, now)), revisions, nextPageToken: page.nextPageToken };
  }),

  listGrants: query(app, async (req, { db, orgId, now }) => {
    const scope = ["ListGrants", orgId, String(req.state), String(req.party), req.counterpartyOrgId];
    const page = await readPage(
      app.cursors,
      scope,
      req,
      (after, limit) => listGrants(db, orgId, req, now, after, limit),
      (row) => [row.grant_id],
    );
    return { grants: page.rows.map((row) => toGrant(asOf(row, now))), nextPageToken: page.nextPageToken };
  }),

  acceptGrant: command(app, doing(app, GrantAct.ACCEPT)),
  declineGrant: command(app, doing(app, GrantAct.DECLINE)),
  suspendGrant: command(app, doing(app, GrantAct.SUSPEND)),
  resumeGrant: command(app, doing(app, GrantAct.RESUME)),
  revokeGrant: command(app, doing(app, GrantAct.REVOKE)),

  updateGrant: command(app, (req, asked) => {
    const mask = maskedFields(req.updateMask, changeableTerms);
    const change = req.change!;
    if (mask.has("expire_time")) checkExpiry(change, asked.now, "change");
    return doing(app, GrantAct.UPDATE, (row) => toStored(changedTerms(termsOf(row), change, mask)))(req, asked);
  }),

  getGrantUsage: query(app, async (req, { db, orgId, now }) => {
    const row = await findGrant(db, orgId, req.grantId);
    if (!row) throw notFound("grant", req.grantId);
    const window = windowOf(req, now);
    const scope = ["GetGrantUsage", orgId, req.grantId, req.startDate, req.endDate];
    const key = { orgId: row.org_id, grantId: row.grant_id };
    const read = (after: Parameters<typeof listUsage>[3], limit: number) => listUsage(db, key, window, after, limit);
    const page = await readPage(app.cursors, scope, req, read, ({ day_ms }) => [day_ms]);
    return { days: page.rows.map(toDayUsage), nextPageToken: page.nextPageToken };
  }),
});

type Asked = { readonly grantId: string; readonly ifRevision: bigint };

/** An act of the caller's organisation on a grant that there is. */
const doing =
  (app: App, act: Act, terms?: (before: GrantRow) => StoredTerms) =>
  async (req: Asked, { tx, orgId, caller, now, trace }: Command) => {
    const locked = await lockGrant(tx, orgId, req.grantId);
    if (!locked) throw notFound("grant", req.grantId);
    const before = asOf(locked, now);
    checkRevision(req.ifRevision, before.revision);
    const deed = { act, party: partyOf(before, orgId), keyId: caller.keyId, now, traceId: trace.traceId };
    const row = await changeGrant(tx, app, before, { ...deed, ...(terms && { terms: terms(before) }) });
    return { grant: toGrant(row) };
  };

type Dates = { readonly startDate: string; readonly endDate: string };

/** INVALID_REQUEST for a date that is none, and for a window that ends before it begins. */
function windowOf({ startDate, endDate }: Dates, now: number): { readonly startMs: number; readonly endMs: number } {
  const endMs = endDate ? dayOf("end_date", endDate) : dayStart(now);
  const startMs = startDate ? dayOf("start_date", startDate) : 0;
  if (startMs > endMs) throw badField("start_date", `is after the last day, ${dayText(endMs)}`);
  return { startMs, endMs };
}

function dayOf(field: string, text: string): number {
  const day = parseDay(text);
  if (day === undefined) throw badField(field, `${text} is no date`);
  return day;
}
