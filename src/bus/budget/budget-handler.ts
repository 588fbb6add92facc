import type { ServiceImpl } from "@connectrpc/connect";
import { BudgetScope } from "../../../gen/moltwire/bus/v1/budget_pb.ts";
import type { BudgetService, SetBudgetRequest } from "../../../gen/moltwire/bus/v1/budget_service_pb.ts";
import type { App } from "../../app.ts";
import type { Queryable, Tx } from "../../db/db.ts";
import { badField, Fault, notFound } from "../../errors.ts";
import { findOrgKey } from "../../federation/api-key-store.ts";
import { findGrant } from "../../federation/grant/store.ts";
import { lockOrganization } from "../../federation/organization-store.ts";
import type { Caller } from "../../rpc/caller.ts";
import { command } from "../../rpc/command.ts";
import { readPage } from "../../rpc/page.ts";
import { query } from "../../rpc/query.ts";
import { seesWholeOrg } from "../../rpc/scope.ts";
import { findAgent } from "../agent-store.ts";
import {
  anySubject,
  type BudgetName,
  type BudgetRow,
  countBudgets,
  deleteBudget,
  effectiveBudget,
  insertBudget,
  listBudgets,
  lockBudget,
  mayRead,
  toBudget,
  updateBudget,
} from "./budget-store.ts";
import { scopeName } from "./refusal.ts";
import { findUse, forgetUses, type UseRow } from "./use-store.ts";

const maxBudgetsPerOrg = 10_000;
/** How many counts a removal deletes with the budget. Those of a `*` beyond them stay unread: their budget's id is gone. */
const maxForgotten = 10_000;

export const budgetHandler = (app: App): ServiceImpl<typeof BudgetService> => ({
  setBudget: command(app, async (req, { tx, orgId, now }) => {
    const name = nameOf(req, orgId);
    const before = await lockBudget(tx, name);
    checkIfRevision(req.ifRevision, before);
    if (req.limitTokens === undefined && req.limitCreditsMicros === undefined) {
      if (before) await removeBudget(tx, before);
      return {};
    }
    const row = before ? await changeBudget(tx, before, req, now) : await addBudget(tx, app, name, req, now);
    return { budget: toBudget(row, row.subject_id, await useOf(tx, row, row.subject_id), now) };
  }),

  getBudget: query(app, async (req, { db, caller, orgId, now }) => {
    const name = nameOf(req, orgId);
    const row = (await isReadable(db, caller, name)) ? await effectiveBudget(db, name) : undefined;
    if (!row) throw notFound("budget", `${scopeName(name.scope)} ${name.subjectId}`.trim());
    return { budget: toBudget(row, name.subjectId, standing(row), now) };
  }),

  listBudgets: query(app, async (req, { db, caller, orgId, now }) => {
    const { scope, subjectId, period, minUsedPercent } = req;
    const viewer = seesWholeOrg(caller) ? undefined : caller;
    const filter = { scope, subjectId, period, minUsedPercent };
    const cursor = ["ListBudgets", orgId, viewer?.keyId ?? "", ...Object.values(filter).map(String)];
    const page = await readPage(
      app.cursors,
      cursor,
      req,
      (after, limit) => listBudgets(db, orgId, filter, viewer, now, after, limit),
      (row) => [row.scope, row.subject_id, row.period],
    );
    const budgets = page.rows.map((row) => toBudget(row, row.subject_id, standing(row), now));
    return { budgets, nextPageToken: page.nextPageToken };
  }),
});

/** A budget of which nothing was used yet comes without a count. */
const standing = (row: Partial<UseRow>): UseRow | undefined =>
  typeof row.start_ms === "number" ? (row as UseRow) : undefined;

type Named = Pick<SetBudgetRequest, "scope" | "subjectId" | "period">;

const forms: Readonly<Record<number, { readonly form: RegExp; readonly say: string }>> = {
  [BudgetScope.AGENT]: { form: /^agt_[0-9a-f]{32}$/, say: "the id of an agent (agt_…)" },
  [BudgetScope.ORG]: { form: /^$/, say: "empty: there is one organisation" },
  [BudgetScope.GRANT]: { form: /^grt_[0-9a-f]{32}$/, say: "the id of a grant (grt_…)" },
  [BudgetScope.TRACE]: { form: /^[0-9a-f]{32}$/, say: "a trace id: 32 hexadecimal digits" },
  [BudgetScope.KEY]: { form: /^key_[0-9a-f]{32}$/, say: "the id of a key (key_…)" },
  [BudgetScope.MODEL]: { form: /^.+$/s, say: "the name of a model" },
};

/** INVALID_REQUEST for a subject that is not of the scope's form. */
function nameOf({ scope, subjectId, period }: Named, orgId: string): BudgetName {
  const { form, say } = forms[scope]!;
  const isAny = subjectId === anySubject && scope !== BudgetScope.ORG;
  if (!isAny && !form.test(subjectId)) {
    const orAny = scope === BudgetScope.ORG ? "" : ", or * for each one that has no budget of its own";
    throw badField("subject_id", `for ${scopeName(scope)} write ${say}${orAny}`);
  }
  return { orgId, scope, subjectId, period };
}

/** Refuses a lost update; unlike elsewhere 0 is a demand too, that there be none. */
function checkIfRevision(ifRevision: bigint | undefined, before: BudgetRow | undefined): void {
  const revision = before?.revision ?? 0;
  if (ifRevision === undefined || ifRevision === BigInt(revision)) return;
  const is = before ? `the revision is ${revision}` : "there is no such budget";
  throw new Fault("FAILED_PRECONDITION", `it was changed meanwhile: ${is}, not ${ifRevision}`, {
    field: "if_revision",
    revision: String(revision),
  });
}

async function removeBudget(tx: Tx, { org_id, budget_id }: BudgetRow): Promise<void> {
  await deleteBudget(tx, org_id, budget_id);
  await forgetUses(tx, org_id, budget_id, maxForgotten);
}

const limitsOf = (req: SetBudgetRequest) => ({
  limit_tokens: req.limitTokens === undefined ? null : Number(req.limitTokens),
  limit_micros: req.limitCreditsMicros === undefined ? null : Number(req.limitCreditsMicros),
});

async function changeBudget(tx: Tx, before: BudgetRow, req: SetBudgetRequest, now: number): Promise<BudgetRow> {
  const limits = limitsOf(req);
  if (limits.limit_tokens === before.limit_tokens && limits.limit_micros === before.limit_micros) return before;
  const row = { ...before, ...limits, update_ms: now, revision: before.revision + 1 };
  await updateBudget(tx, row);
  return row;
}

async function addBudget(tx: Tx, app: App, name: BudgetName, req: SetBudgetRequest, now: number): Promise<BudgetRow> {
  const { orgId, scope, subjectId, period } = name;
  if (!(await isThere(tx, name))) throw notFound(scopeName(scope).toLowerCase(), subjectId);
  await lockOrganization(tx, orgId); // so that they are counted one after another
  if ((await countBudgets(tx, orgId, maxBudgetsPerOrg)) >= maxBudgetsPerOrg) {
    const message = `an organisation has at most ${maxBudgetsPerOrg} budgets: remove some, or let one of * stand for many`;
    const quota = { subject: `organization:${orgId}`, description: message };
    throw new Fault("QUOTA_EXCEEDED", message, { resource: "budgets", limit: String(maxBudgetsPerOrg) }, { quota });
  }
  const row: BudgetRow = {
    org_id: orgId,
    scope,
    subject_id: subjectId,
    period,
    budget_id: app.ids.next("bdg"),
    ...limitsOf(req),
    create_ms: now,
    update_ms: now,
    revision: 1,
  };
  if ((await insertBudget(tx, row)) === 1) return row;
  const other = (await lockBudget(tx, name))!; // somebody else's, a moment ago
  checkIfRevision(req.ifRevision, other);
  return changeBudget(tx, other, req, now);
}

/** Whether the subject exists, where that can be told; of a grant the organisation may be either party. */
async function isThere(db: Queryable, { orgId, scope, subjectId }: BudgetName): Promise<boolean> {
  if (subjectId === anySubject) return true;
  if (scope === BudgetScope.AGENT) return (await findAgent(db, orgId, subjectId)) !== undefined;
  if (scope === BudgetScope.KEY) return (await findOrgKey(db, orgId, subjectId)) !== undefined;
  if (scope === BudgetScope.GRANT) return (await findGrant(db, orgId, subjectId)) !== undefined;
  return true;
}

const isReadable = async (db: Queryable, caller: Caller, name: BudgetName): Promise<boolean> =>
  seesWholeOrg(caller) || mayRead(db, name, caller);

const useOf = (db: Queryable, { org_id: orgId, budget_id: budgetId }: BudgetRow, subjectId: string) =>
  findUse(db, { orgId, budgetId, subjectId });
