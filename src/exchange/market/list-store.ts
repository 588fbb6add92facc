/** Lists of tasks of the marketplace: along one index, newest first, or among the few that have some words or a tag. */
import { type Dialect, empty, join, type Queryable, type Sql, sql } from "../../db/db.ts";
import { wordsOf } from "../../directory/words.ts";
import type { Position } from "../../rpc/cursor.ts";
import { type ShownRow, shownColumns, type TaskRow, withParties } from "./store.ts";

/** Of what is set all must hold. */
export type TaskFilter = {
  /** The number of MarketplaceTaskState; 0: all. */
  readonly state: number;
  readonly category: string;
  readonly tag: string;
  readonly minReward: bigint;
  readonly words: readonly string[];
  /** Only those of an organisation, or of one of its agents. Undefined: of everybody, but for disabled organisations. */
  readonly side: { readonly of: "creator" | "worker"; readonly orgId: string; readonly agentId: string } | undefined;
};

/** Found ones, and where the list goes on after them; undefined: it does not. */
export type Found = { readonly rows: readonly ShownRow[]; readonly next: Position | undefined };

/** A search that leaves no more than this is read whole. */
const fewTasks = 1_000;
/** How many tasks along an index one page looks at. */
export const walkLength = 2_000;

/** A tag as a word of its own, whatever is in it. */
const tagWord = (tag: string): string => `xtag${Buffer.from(tag).toString("hex")}`;

/** The words by which a task is found. */
export function searchText({
  title,
  description,
  category,
  tags,
}: Pick<TaskRow, "title" | "description" | "category"> & { readonly tags: readonly string[] }): string {
  const words = [title, description, category, ...tags].flatMap(wordsOf);
  return [...new Set([...words, ...tags.map(tagWord)])].join(" ");
}

/** The tasks with all of these words, where a word is the beginning of one, and the tag; in the engine's own language. */
function wordsQuery(dialect: Dialect, words: readonly string[], tag: string): Sql {
  const isSqlite = dialect.name === "sqlite";
  const begins = words.map((word) => (isSqlite ? `"${word}" *` : `'${word}':*`));
  const whole = tag === "" ? [] : [isSqlite ? `"${tagWord(tag)}"` : `'${tagWord(tag)}'`];
  const text = [...whole, ...begins].join(isSqlite ? " AND " : " & ");
  return isSqlite
    ? sql`select rowid as seq from marketplace_words where marketplace_words match ${text}`
    : sql`select seq from marketplace_task where cast(words as tsvector) @@ cast(${text} as tsquery)`;
}

const hasWords = ({ words, tag }: TaskFilter): boolean => words.length > 0 || tag !== "";

/** A task whose time has come is in no state until that is written down. */
function fits(dialect: Dialect, filter: TaskFilter, now: number): Sql {
  const { state, category, minReward, words, tag, side } = filter;
  const all = [
    side ? ofSide(side) : sql`co.disabled = 0`,
    // Who had it before it was open to all does so no longer.
    ...(side?.of === "worker" ? [sql`(t.state <> 1 or t.held_until_ms > ${now})`] : []),
    ...(state === 0 ? [] : [sql`t.state = ${state} and (t.due_ms is null or t.due_ms > ${now})`]),
    ...(category === "" ? [] : [sql`t.category = ${category}`]),
    ...(minReward === 0n ? [] : [sql`t.reward >= ${minReward}`]),
    ...(hasWords(filter) ? [sql`t.seq in (${wordsQuery(dialect, words, tag)})`] : []),
  ];
  return join(all, " and ");
}

/** The index on workers has those tasks that have one. */
function ofSide({ of, orgId, agentId }: NonNullable<TaskFilter["side"]>): Sql {
  if (of === "creator")
    return agentId === "" ? sql`t.org_id = ${orgId}` : sql`t.org_id = ${orgId} and t.creator_agent_id = ${agentId}`;
  const ofOrg = sql`t.worker_agent_id <> '' and t.worker_org_id = ${orgId}`;
  return agentId === "" ? ofOrg : sql`${ofOrg} and t.worker_agent_id = ${agentId}`;
}

function alongIndex({ side, state, category }: TaskFilter): Sql {
  if (side) return ofSide(side);
  return category === "" ? sql`t.state = ${state}` : sql`t.state = ${state} and t.category = ${category}`;
}

/**
 * The tasks that fit, after a position. Without `side` the filter has a state. Along an index it looks at as many as a page has, which mostly all fit, and then at a longer stretch.
 */
export async function searchTasks(
  db: Queryable,
  filter: TaskFilter,
  after: Position | undefined,
  size: number,
  now: number,
): Promise<Found> {
  const fit = fits(db.dialect, filter, now);
  const few = hasWords(filter) ? await candidates(db, filter) : undefined;
  if (few) {
    const chosen = sql`select seq from (${listed(db.dialect, few)}) listed ${after ? sql`where seq < ${after[0]!}` : empty}`;
    const rows = await readTasks(db, chosen, fit, size + 1);
    return pageOf(rows, size, undefined);
  }
  const rows: ShownRow[] = [];
  let from = after;
  for (const length of [size + 1, walkLength]) {
    const place = sql`marketplace_task t where ${alongIndex(filter)} ${from ? sql`and t.seq < ${from[0]!}` : empty} order by t.seq desc`;
    rows.push(...(await readTasks(db, sql`select t.seq from ${place} limit ${length}`, fit, size + 1 - rows.length)));
    if (rows.length > size) break;
    const last = await db.one<{ seq: number }>(sql`select t.seq from ${place} limit 1 offset ${length - 1}`);
    from = last && [last.seq];
    if (!from) break;
  }
  return pageOf(rows, size, from);
}

/** Of some tasks those that fit, newest first. A cross join, which SQLite does not turn round: it begins with the some. */
const readTasks = (db: Queryable, chosen: Sql, fit: Sql, limit: number): Promise<ShownRow[]> =>
  db.all<ShownRow>(sql`
    select ${shownColumns} from (${chosen}) chosen cross join marketplace_task t ${withParties}
    where t.seq = chosen.seq and ${fit} order by t.seq desc limit ${limit}`);

/** `end`: where what was looked at ends, if there is more. */
function pageOf(found: readonly ShownRow[], size: number, end: Position | undefined): Found {
  const rows = found.slice(0, size);
  return { rows, next: found.length > size ? [rows.at(-1)!.seq] : end };
}

/** The tasks with the words, if they are few. */
async function candidates(db: Queryable, { words, tag }: TaskFilter): Promise<readonly number[] | undefined> {
  const found = await db.all<{ seq: number }>(sql`${wordsQuery(db.dialect, words, tag)} limit ${fewTasks + 1}`);
  return found.length <= fewTasks ? found.map(({ seq }) => seq) : undefined;
}

/** A list of numbers as one parameter, so that there is one statement for all. */
const listed = (dialect: Dialect, numbers: readonly number[]): Sql =>
  dialect.name === "sqlite"
    ? sql`select value as seq from json_each(${JSON.stringify(numbers)})`
    : sql`select cast(value as bigint) as seq from json_array_elements_text(cast(${JSON.stringify(numbers)} as json))`;
