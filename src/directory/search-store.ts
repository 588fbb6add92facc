/** Lists of profiles: along one index in the order of the list, or among the few that a filter leaves. */
import { AgentOrder } from "../../gen/moltwire/directory/v1/directory_service_pb.ts";
import { Visibility } from "../../gen/moltwire/directory/v1/profile_pb.ts";
import { type Dialect, empty, join, type Queryable, type Sql, sql } from "../db/db.ts";
import { endOfPrefix } from "../memory/prefix.ts";
import type { Position } from "../rpc/cursor.ts";
import { isAvailable } from "./availability.ts";
import { type ProfileRow, profileColumns } from "./profile-store.ts";
import { scopeWord, wordsQuery } from "./words.ts";

/** Whose profiles are looked at, and by whom. */
export type Scope = {
  /** Undefined: the public ones of all organisations. */
  readonly orgId: string | undefined;
  /** The agent that looks: it sees its own private profile too. Undefined: an administrator, who sees all. */
  readonly asAgentId: string | undefined;
};

export type Filter = {
  readonly words: readonly string[];
  readonly capabilities: readonly string[];
  readonly prefix: string;
  readonly available: boolean;
  readonly minMilli: number;
  readonly tier: number;
  readonly activeSinceMs: number | undefined;
};

export const noFilter: Filter = {
  ...{ words: [], capabilities: [], prefix: "", available: false, minMilli: 0, tier: 0 },
  activeSinceMs: undefined,
};

/** Found ones, and where the list goes on after them; undefined: it does not. */
export type Found = { readonly rows: readonly ProfileRow[]; readonly next: Position | undefined };

/** A filter that leaves no more than this is read whole. */
const fewProfiles = 1_000;
/** How many profiles along an index one page looks at. */
export const walkLength = 2_000;

const sortColumns: Partial<Record<AgentOrder, Sql>> = {
  [AgentOrder.REPUTATION]: sql`p.reputation_milli`,
  [AgentOrder.LAST_ACTIVE]: sql`p.last_seen_ms`,
};

/** The sort of an order, always descending; the position in it of a row, and what comes after a position. */
const sortOf = (order: AgentOrder) => {
  const column = sortColumns[order];
  return {
    by: column ? sql`${column} desc, p.agent_id desc` : sql`p.agent_id desc`,
    after(at: Position | undefined): Sql {
      if (!at) return empty;
      return column ? sql`and (${column}, p.agent_id) < (${at[0]!}, ${at[1]!})` : sql`and p.agent_id < ${at[0]!}`;
    },
    positionOf(row: Pick<ProfileRow, "agent_id" | "reputation_milli" | "last_seen_ms">): Position {
      if (!column) return [row.agent_id];
      return [order === AgentOrder.REPUTATION ? row.reputation_milli : row.last_seen_ms, row.agent_id];
    },
  };
};

const inScope = ({ orgId }: Scope): Sql => (orgId === undefined ? sql`p.visibility = 3` : sql`p.org_id = ${orgId}`);

/** Who does not show itself is not there, whatever else fits. */
export function isVisible({ orgId, asAgentId }: Scope): Sql {
  if (orgId === undefined)
    return sql`p.visibility = 3 and exists (select 1 from organization o where o.org_id = p.org_id and o.disabled = 0)`;
  return asAgentId === undefined
    ? sql`p.org_id = ${orgId}`
    : sql`p.org_id = ${orgId} and (p.visibility >= ${Visibility.ORG} or p.agent_id = ${asAgentId})`;
}

/** Capabilities that count for who looks: beyond the organisation the advertised ones. */
const counted = ({ orgId }: Scope): Sql => (orgId === undefined ? sql`and c.advertised = 1` : empty);
/**
 * Whether the profile has such a capability, looked up for each profile. The offset keeps PostgreSQL from making a join of it, which without statistics, after
 * many were added, compares each profile with each (two thousand took 4 s).
 */
const hasCapability = (scope: Scope, which: Sql): Sql =>
  sql`exists (select 1 from directory_capability c where c.org_id = p.org_id and c.agent_id = p.agent_id and ${which} ${counted(scope)} limit 1 offset 0)`;

const within = (prefix: string): Sql => {
  const end = endOfPrefix(prefix);
  return end === undefined ? sql`c.capability >= ${prefix}` : sql`c.capability >= ${prefix} and c.capability < ${end}`;
};

function fits(dialect: Dialect, scope: Scope, filter: Filter, now: number): Sql {
  const { words, capabilities, prefix, available, minMilli, tier, activeSinceMs } = filter;
  const all = [
    isVisible(scope),
    ...capabilities.map((capability) => hasCapability(scope, sql`c.capability = ${capability}`)),
    ...(prefix === "" ? [] : [hasCapability(scope, within(prefix))]),
    ...(words.length === 0 ? [] : [sql`p.seq in (${wordsQuery(dialect, scopeWord(scope.orgId), words)})`]),
    ...(available ? [isAvailable(now)] : []),
    ...(minMilli > 0 ? [sql`p.reputation_milli >= ${minMilli}`] : []),
    ...(tier > 0 ? [sql`a.trust_tier = ${tier}`] : []),
    ...(activeSinceMs === undefined ? [] : [sql`p.last_seen_ms >= ${activeSinceMs}`]),
  ];
  return join(all, " and ");
}

/** The profiles that fit, after a position. */
export async function searchProfiles(
  db: Queryable,
  scope: Scope,
  filter: Filter,
  order: AgentOrder,
  after: Position | undefined,
  size: number,
  now: number,
): Promise<Found> {
  const sort = sortOf(order);
  const fit = fits(db.dialect, scope, filter, now);
  const few = await candidates(db, scope, filter);
  const read = few ? amongFew(db, few, fit, sort, after, size) : walk(db, scope, fit, sort, after, size);
  const found = await read;
  const rows = found.slice(0, size);
  const last = rows.at(-1);
  if (found.length > size && last) return { rows, next: sort.positionOf(last) };
  return { rows, next: few ? undefined : await endOfWalk(db, scope, sort, after) };
}

type Sort = ReturnType<typeof sortOf>;

/** Of the first filter that leaves few: the profiles it leaves, if any does. Each by its index, and no more of it than that. */
async function candidates(db: Queryable, scope: Scope, filter: Filter): Promise<readonly number[] | undefined> {
  const { words, capabilities, prefix } = filter;
  const place = scope.orgId === undefined ? sql`c.visibility = 3` : sql`c.org_id = ${scope.orgId}`;
  const capable = (which: Sql) =>
    sql`select c.profile_seq as seq from directory_capability c where ${place} and ${which} ${counted(scope)}`;
  const narrow = [
    ...(words.length > 0 ? [wordsQuery(db.dialect, scopeWord(scope.orgId), words)] : []),
    ...capabilities.map((capability) => capable(sql`c.capability = ${capability}`)),
    ...(prefix === "" ? [] : [capable(within(prefix))]),
  ];
  for (const query of narrow) {
    const found = await db.all<{ seq: number }>(sql`${query} limit ${fewProfiles + 1}`);
    if (found.length <= fewProfiles) return [...new Set(found.map(({ seq }) => seq))];
  }
  return undefined;
}

/** A list of numbers as one parameter, so that there is one statement for all. */
const listed = (dialect: Dialect, numbers: readonly number[]): Sql =>
  dialect.name === "sqlite"
    ? sql`select value as seq from json_each(${JSON.stringify(numbers)})`
    : sql`select cast(value as bigint) as seq from json_array_elements_text(cast(${JSON.stringify(numbers)} as json))`;

/** These profiles with their agents, to go on with `and`. A cross join, which SQLite does not turn round: it begins with the few. */
const chosen = (rows: Sql): Sql =>
  sql`(${rows}) chosen cross join directory_profile p join agent a on a.org_id = p.org_id and a.agent_id = p.agent_id where p.seq = chosen.seq`;

export const chosenFew = (dialect: Dialect, seqs: readonly number[]): Sql => chosen(listed(dialect, seqs));

const amongFew = (
  db: Queryable,
  few: readonly number[],
  fit: Sql,
  sort: Sort,
  after: Position | undefined,
  size: number,
): Promise<ProfileRow[]> =>
  few.length === 0
    ? Promise.resolve([])
    : db.all<ProfileRow>(sql`
        select ${profileColumns} from ${chosenFew(db.dialect, few)} and ${fit} ${sort.after(after)} order by ${sort.by} limit ${size + 1}`);

/** A bounded stretch of the index of the order, and of it what fits. */
const walk = (
  db: Queryable,
  scope: Scope,
  fit: Sql,
  sort: Sort,
  after: Position | undefined,
  size: number,
): Promise<ProfileRow[]> => {
  const stretch = sql`select p.seq from directory_profile p where ${inScope(scope)} ${sort.after(after)} order by ${sort.by} limit ${walkLength}`;
  return db.all<ProfileRow>(
    sql`select ${profileColumns} from ${chosen(stretch)} and ${fit} order by ${sort.by} limit ${size + 1}`,
  );
};

/** Where the stretch of a walk ends; undefined: it came to the end of the index. */
async function endOfWalk(
  db: Queryable,
  scope: Scope,
  sort: Sort,
  after: Position | undefined,
): Promise<Position | undefined> {
  const row = await db.one<ProfileRow>(sql`
    select p.agent_id, p.reputation_milli, p.last_seen_ms from directory_profile p
    where ${inScope(scope)} ${sort.after(after)} order by ${sort.by} limit 1 offset ${walkLength - 1}`);
  return row && sort.positionOf(row);
}
