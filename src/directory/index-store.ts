/** By what profiles are found: their capabilities and their words, kept with every change of what they are made of. */
import { Visibility } from "../../gen/moltwire/directory/v1/profile_pb.ts";
import { join, sql, type Tx } from "../db/db.ts";
import { scopeWord, wordsOf } from "./words.ts";

type Source = {
  readonly seq: number;
  readonly description: string;
  readonly capabilities: string;
  readonly looking_for: string;
  readonly visibility: number;
  readonly reputation_milli: number;
  readonly name: string;
  readonly granted: string;
};

/**
 * Makes the index entries of a profile anew. Whoever changes the agent or the profile calls it in the same transaction and holds the agent's row, so that the
 * entries are never made of one's new and the other's old.
 */
export async function indexProfile(tx: Tx, orgId: string, agentId: string): Promise<void> {
  const row = await tx.one<Source>(sql`
    select p.seq, p.description, p.capabilities, p.looking_for, p.visibility, p.reputation_milli, a.name, a.capabilities as granted
    from directory_profile p join agent a on a.org_id = p.org_id and a.agent_id = p.agent_id
    where p.org_id = ${orgId} and p.agent_id = ${agentId} ${tx.dialect.forUpdate}`);
  if (!row) return;
  const advertised = new Set(JSON.parse(row.capabilities) as string[]);
  const granted = new Set(JSON.parse(row.granted) as string[]);
  await tx.run(sql`delete from directory_capability where org_id = ${orgId} and agent_id = ${agentId}`);
  const rows = [...advertised.union(granted)].map(
    (capability) =>
      sql`(${orgId}, ${capability}, ${agentId}, ${row.seq}, ${advertised.has(capability) ? 1 : 0}, ${granted.has(capability) ? 1 : 0}, ${row.reputation_milli}, ${row.visibility})`,
  );
  if (rows.length > 0)
    await tx.run(sql`
      insert into directory_capability (org_id, capability, agent_id, profile_seq, advertised, granted, reputation_milli, visibility) values ${join(rows)}`);
  await indexWords(tx, orgId, row);
}

/**
 * What was granted is found by its words only inside the organisation, and one text serves both: so a public profile has of its capabilities only those that it
 * advertises.
 */
async function indexWords(tx: Tx, orgId: string, row: Source): Promise<void> {
  const isPublic = row.visibility === Visibility.PUBLIC;
  const found = [row.name, row.description, row.capabilities, row.looking_for, ...(isPublic ? [] : [row.granted])];
  const words = [scopeWord(orgId), ...(isPublic ? [scopeWord(undefined)] : []), ...found.flatMap(wordsOf)];
  const text = [...new Set(words)].join(" ");
  await tx.run(sql`update directory_profile set words = ${text} where seq = ${row.seq}`);
}

/** Removes the index entries of a profile, which is still there. */
export async function unindexProfile(tx: Tx, orgId: string, agentId: string): Promise<void> {
  await tx.run(sql`delete from directory_capability where org_id = ${orgId} and agent_id = ${agentId}`);
}
