import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { type PolicyEffect, PolicyOrigin, type PolicySchema } from "../../../gen/moltwire/bus/v1/policy_pb.ts";
import { type Queryable, sql, type Tx } from "../../db/db.ts";
import { effects } from "./answer.ts";
import type { Statement } from "./statement.ts";

/** A policy as it is stored: `effect` is the number of PolicyEffect, `facts` the JSON of `Facts`. */
export type PolicyRow = {
  readonly org_id: string;
  readonly policy_id: string;
  readonly cedar_text: string;
  readonly description: string;
  readonly effect: number;
  readonly disabled: number;
  readonly facts: string;
  readonly create_ms: number;
  readonly update_ms: number;
  readonly revision: number;
};

/** How often an organisation's policies were changed, how many there are, and the bytes of their texts. */
export type PolicySetRow = { readonly revision: number; readonly policies: number; readonly text_bytes: number };

const columns = sql`org_id, policy_id, cedar_text, description, effect, disabled, facts, create_ms, update_ms, revision`;
const none: PolicySetRow = { revision: 0, policies: 0, text_bytes: 0 };

/** The policy set's present revision; read by every decision, so it is one row by its key. */
export const policySetRevision = async (db: Queryable, orgId: string): Promise<number> =>
  (await db.one<{ revision: number }>(sql`select revision from policy_set where org_id = ${orgId}`))?.revision ?? 0;

/** The row that every change of an organisation's policies locks first, so that they happen one after another. */
export async function lockPolicySet(tx: Tx, orgId: string): Promise<PolicySetRow> {
  await tx.run(sql`
    insert into policy_set (org_id, revision, policies, text_bytes) values (${orgId}, 0, 0, 0) on conflict do nothing`);
  const row = await tx.one<PolicySetRow>(
    sql`select revision, policies, text_bytes from policy_set where org_id = ${orgId} ${tx.dialect.forUpdate}`,
  );
  return row ?? none;
}

export const setPolicySet = (
  tx: Tx,
  orgId: string,
  { revision, policies, text_bytes }: PolicySetRow,
): Promise<number> =>
  tx.run(
    sql`update policy_set set revision = ${revision}, policies = ${policies}, text_bytes = ${text_bytes} where org_id = ${orgId}`,
  );

export const upsertPolicy = (tx: Tx, row: PolicyRow): Promise<number> =>
  tx.run(sql`
    insert into policy (${columns})
    values (${row.org_id}, ${row.policy_id}, ${row.cedar_text}, ${row.description}, ${row.effect}, ${row.disabled}, ${row.facts}, ${row.create_ms},
      ${row.update_ms}, ${row.revision})
    on conflict (org_id, policy_id) do update set cedar_text = excluded.cedar_text, description = excluded.description, effect = excluded.effect,
      disabled = excluded.disabled, facts = excluded.facts, update_ms = excluded.update_ms, revision = excluded.revision`);

export const deletePolicy = (tx: Tx, orgId: string, policyId: string): Promise<number> =>
  tx.run(sql`delete from policy where org_id = ${orgId} and policy_id = ${policyId}`);

export const findPolicy = (db: Queryable, orgId: string, policyId: string): Promise<PolicyRow | undefined> =>
  db.one<PolicyRow>(sql`select ${columns} from policy where org_id = ${orgId} and policy_id = ${policyId}`);

/** In the order of their ids, by the primary key, with the revision of the set: in one statement, so that the two belong together. */
export async function listPolicies(
  db: Queryable,
  orgId: string,
  effect: number,
  afterId: string,
  limit: number,
): Promise<{ readonly revision: number; readonly rows: readonly PolicyRow[] }> {
  const ofEffect = effect ? sql`and effect = ${effect}` : sql``;
  const found = await db.all<(PolicyRow | { readonly policy_id: null }) & { readonly set_revision: number }>(sql`
    select found.*, coalesce((select revision from policy_set where org_id = ${orgId}), 0) as set_revision
    from (select 1 as one) one left join (
      select ${columns} from policy where org_id = ${orgId} and policy_id > ${afterId} ${ofEffect} order by policy_id limit ${limit}) found on 1 = 1
    order by found.policy_id`);
  return { revision: found[0]!.set_revision, rows: found.filter((row) => row.policy_id !== null) };
}

/** A policy with the revision of the set it was read from. */
type SetRow = { readonly set_revision: number } & {
  readonly [K in "policy_id" | "cedar_text" | "description" | "facts"]: string | null;
} & {
  readonly revision: number | null;
};

/**
 * All policies that have a say, with the revision of their set: in one statement, which sees one state on either engine, so that the two belong together. At
 * most 1,000 rows, by the primary keys.
 */
export async function loadPolicies(
  db: Queryable,
  orgId: string,
): Promise<{ readonly revision: number; readonly statements: readonly StoredStatement[] }> {
  const rows = await db.all<SetRow>(sql`
    select s.revision as set_revision, p.policy_id, p.cedar_text, p.description, p.facts, p.revision
    from policy_set s left join policy p on p.org_id = s.org_id and p.disabled = 0 where s.org_id = ${orgId} order by p.policy_id`);
  const statements = rows
    .filter(({ policy_id }) => policy_id !== null)
    .map((row) => ({
      policyId: row.policy_id!,
      revision: row.revision!,
      text: row.cedar_text!,
      description: row.description!,
      facts: row.facts!,
    }));
  return { revision: rows[0]?.set_revision ?? 0, statements };
}

export type StoredStatement = Omit<Statement, "facts"> & { readonly facts: string };

export const toPolicy = (row: PolicyRow): MessageInitShape<typeof PolicySchema> => ({
  orgId: row.org_id,
  policyId: row.policy_id,
  cedarText: row.cedar_text,
  description: row.description,
  origin: PolicyOrigin.ORGANIZATION,
  effect: row.effect as PolicyEffect,
  disabled: row.disabled !== 0,
  createTime: timestampFromMs(row.create_ms),
  updateTime: timestampFromMs(row.update_ms),
  revision: BigInt(row.revision),
});

/** A built-in policy, which holds in every organisation. */
export const builtinToPolicy = (orgId: string, statement: Statement): MessageInitShape<typeof PolicySchema> => ({
  orgId,
  policyId: statement.policyId,
  cedarText: statement.text,
  description: statement.description,
  origin: PolicyOrigin.BUILTIN,
  effect: effects[statement.facts.effect],
});
