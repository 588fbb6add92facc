import type { ServiceImpl } from "@connectrpc/connect";
import { PolicyEffect, PolicyOrigin } from "../../../gen/moltwire/bus/v1/policy_pb.ts";
import type { PolicyService, PutPolicyRequest } from "../../../gen/moltwire/bus/v1/policy_service_pb.ts";
import type { App } from "../../app.ts";
import { Fault, notFound } from "../../errors.ts";
import { type Command, command } from "../../rpc/command.ts";
import { readPage } from "../../rpc/page.ts";
import { query } from "../../rpc/query.ts";
import { effects } from "./answer.ts";
import { checkPolicy, invalidPolicy } from "./check.ts";
import { listDecisionsPage } from "./decision-list.ts";
import { checkQuota } from "./limits.ts";
import {
  builtinToPolicy,
  deletePolicy,
  findPolicy,
  listPolicies,
  lockPolicySet,
  type PolicyRow,
  setPolicySet,
  toPolicy,
  upsertPolicy,
} from "./policy-store.ts";
import { testPolicy } from "./test-policy.ts";

export function policyHandler(app: App): ServiceImpl<typeof PolicyService> {
  const running = { count: 0 };
  return {
    putPolicy: command(app, async (req, { tx, orgId, now }) => {
      const { cedar, vocabulary } = app.policies;
      const checked = checkPolicy(cedar, vocabulary, req.cedarText);
      if (checked.faults) throw invalidPolicy("cedar_text", checked.faults);
      const set = await lockPolicySet(tx, orgId);
      const before = await findPolicy(tx, orgId, req.policyId);
      checkRevision(req.ifRevision, before?.revision ?? 0);
      const warnings = [...checked.warnings];
      if (before && sameContent(before, req))
        return { policy: toPolicy(before), policySetRevision: BigInt(set.revision), warnings };
      const row: PolicyRow = {
        org_id: orgId,
        policy_id: req.policyId,
        cedar_text: req.cedarText,
        description: req.description,
        effect: effects[checked.facts.effect],
        disabled: req.disabled ? 1 : 0,
        facts: JSON.stringify(checked.facts),
        create_ms: before?.create_ms ?? now,
        update_ms: now,
        revision: (before?.revision ?? 0) + 1,
      };
      const next = {
        revision: set.revision + 1,
        policies: set.policies + (before ? 0 : 1),
        text_bytes: set.text_bytes + bytesOf(row) - (before ? bytesOf(before) : 0),
      };
      checkQuota(next.policies, next.text_bytes);
      await upsertPolicy(tx, row);
      await setPolicySet(tx, orgId, next);
      return { policy: toPolicy(row), policySetRevision: BigInt(next.revision), warnings };
    }),

    getPolicy: query(app, async (req, { db, orgId }) => {
      const builtin = app.policies.builtins.statements.get(req.policyId);
      if (builtin) return { policy: builtinToPolicy(orgId, builtin) };
      const row = await findPolicy(db, orgId, req.policyId);
      if (!row) throw notFound("policy", req.policyId);
      return { policy: toPolicy(row) };
    }),

    listPolicies: query(app, async (req, { db, orgId }) => {
      const scope = ["ListPolicies", orgId, String(req.origin), String(req.effect)];
      const builtins = [...app.policies.builtins.statements.values()]
        .filter(({ facts }) => req.origin !== PolicyOrigin.ORGANIZATION && fits(req.effect, effects[facts.effect]))
        .map((statement) => ({ policyId: statement.policyId, policy: builtinToPolicy(orgId, statement) }));
      let revision = 0;
      const read = async (after: readonly (string | number)[] | undefined, limit: number) => {
        const [afterId = ""] = (after ?? []) as string[];
        const found = await listPolicies(db, orgId, req.effect, afterId, limit);
        ({ revision } = found);
        const rows = req.origin === PolicyOrigin.BUILTIN ? [] : found.rows;
        const own = rows.map((row) => ({ policyId: row.policy_id, policy: toPolicy(row) }));
        const both = [...builtins.filter(({ policyId }) => policyId > afterId), ...own];
        return both.toSorted((a, b) => (a.policyId < b.policyId ? -1 : 1)).slice(0, limit);
      };
      const page = await readPage(app.cursors, scope, req, read, ({ policyId }) => [policyId]);
      return {
        policies: page.rows.map(({ policy }) => policy),
        nextPageToken: page.nextPageToken,
        policySetRevision: BigInt(revision),
      };
    }),

    deletePolicy: command(app, async (req, { tx, orgId }: Command) => {
      if (app.policies.builtins.statements.has(req.policyId)) {
        const message = `${req.policyId} is built in: put a forbid where it permits too much`;
        throw new Fault("FAILED_PRECONDITION", message, { field: "policy_id", state: "BUILTIN" });
      }
      const set = await lockPolicySet(tx, orgId);
      const row = await findPolicy(tx, orgId, req.policyId);
      if (!row) throw notFound("policy", req.policyId);
      checkRevision(req.ifRevision === 0n ? undefined : req.ifRevision, row.revision);
      const next = {
        revision: set.revision + 1,
        policies: set.policies - 1,
        text_bytes: set.text_bytes - bytesOf(row),
      };
      await deletePolicy(tx, orgId, req.policyId);
      await setPolicySet(tx, orgId, next);
      return { policy: toPolicy(row), policySetRevision: BigInt(next.revision) };
    }),

    testPolicy: (req, context) =>
      query(app, (_req: typeof req, asked) => testPolicy(app, req, asked, running, context.signal))(req, context),

    listDecisions: query(app, (req, asked) => listDecisionsPage(app, req, asked)),
  };
}

const fits = (wanted: PolicyEffect, effect: PolicyEffect): boolean =>
  wanted === PolicyEffect.UNSPECIFIED || wanted === effect;

const bytesOf = (row: PolicyRow): number => Buffer.byteLength(row.cedar_text);

const sameContent = (row: PolicyRow, req: PutPolicyRequest): boolean =>
  row.cedar_text === req.cedarText && row.description === req.description && (row.disabled !== 0) === req.disabled;

/** FAILED_PRECONDITION unless the policy is at the revision that the caller saw; 0: there is none. */
function checkRevision(seen: bigint | undefined, present: number): void {
  if (seen === undefined || seen === BigInt(present)) return;
  const message = present === 0 ? "there is no such policy" : `it is at revision ${present}`;
  throw new Fault("FAILED_PRECONDITION", `if_revision is ${seen}, but ${message}`, {
    field: "if_revision",
    revision: String(present),
  });
}
