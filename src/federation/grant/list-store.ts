import { GrantParty, GrantState } from "../../../gen/moltwire/federation/v1/grant_pb.ts";
import { join, type Queryable, type Sql, sql } from "../../db/db.ts";
import type { Position } from "../../rpc/cursor.ts";
import { type GrantRow, grantColumns } from "./store.ts";

/** Zero and empty stand for any. */
export type GrantFilter = {
  readonly state: GrantState;
  readonly party: GrantParty;
  readonly counterpartyOrgId: string;
};

const { PROPOSED, ACTIVE, SUSPENDED, EXPIRED } = GrantState;
const sides = {
  [GrantParty.GRANTOR]: { own: sql`org_id`, other: sql`grantee_org_id` },
  [GrantParty.GRANTEE]: { own: sql`grantee_org_id`, other: sql`org_id` },
};

/**
 * Newest first. One walk for each side of the organisation that is asked for, along its index on the counterparty if that is given, else on the state, else on
 * itself. Those that are EXPIRED now are stored as that or, for the seconds until somebody has swept them, in the state before: one walk for each of these.
 */
export function listGrants(
  db: Queryable,
  orgId: string,
  filter: GrantFilter,
  now: number,
  after: Position | undefined,
  limit: number,
): Promise<GrantRow[]> {
  const { counterpartyOrgId, party, state } = filter;
  const of = party === GrantParty.UNSPECIFIED ? [GrantParty.GRANTOR, GrantParty.GRANTEE] : [party];
  const walks = of.flatMap((side) => {
    const { own, other } = sides[side as keyof typeof sides];
    const mine = sql`${own} = ${orgId} ${after ? sql`and grant_id < ${after[0]!}` : sql``}`;
    if (counterpartyOrgId)
      return [sql`${mine} and ${other} = ${counterpartyOrgId} ${state ? sql`and ${isNow(state, now)}` : sql``}`];
    if (state === GrantState.UNSPECIFIED) return [mine];
    const stored = state === EXPIRED ? [EXPIRED, PROPOSED, ACTIVE, SUSPENDED] : [state];
    return stored.map((one) => sql`${mine} and state = ${one} and ${isNow(state, now)}`);
  });
  const newest = sql`order by grant_id desc limit ${limit}`;
  const found = walks.map(
    (walk) => sql`select * from (select ${grantColumns} from federation_grant where ${walk} ${newest}) walk`,
  );
  return db.all<GrantRow>(sql`select ${grantColumns} from (${join(found, " union all ")}) found ${newest}`);
}

/** Whether a grant is in a state at a time, as {@link stateAt} says; written as expressions, so that no index but the walk's own is taken. */
function isNow(state: GrantState, now: number): Sql {
  const isOver = sql`(state + 0 < 4 and expire_ms + 0 <= ${now})`;
  if (state === EXPIRED) return sql`(state + 0 = ${EXPIRED} or ${isOver})`;
  return sql`(state + 0 = ${state} and (state + 0 >= 4 or expire_ms is null or expire_ms + 0 > ${now}))`;
}

/** Grants of all organisations whose time is over and of which that is not written yet, after one, by its time and id; by the partial index on them. */
export const dueGrants = (
  db: Queryable,
  now: number,
  [afterMs, afterId]: readonly [number, string],
  limit: number,
): Promise<(Pick<GrantRow, "org_id" | "grant_id"> & { readonly expire_ms: number })[]> =>
  db.all(sql`
    select org_id, grant_id, expire_ms from federation_grant
    where state < 4 and expire_ms is not null and expire_ms <= ${now} and expire_ms >= ${afterMs} and (expire_ms > ${afterMs} or grant_id > ${afterId})
    order by expire_ms, grant_id limit ${limit}`);
