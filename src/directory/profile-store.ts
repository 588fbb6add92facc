import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { TrustTier } from "../../gen/moltwire/bus/v1/agent_pb.ts";
import type { ProfileSchema, Visibility } from "../../gen/moltwire/directory/v1/profile_pb.ts";
import { type Queryable, sql, type Tx } from "../db/db.ts";
import { availabilityAt } from "./availability.ts";
import { indexProfile, unindexProfile } from "./index-store.ts";
import { reputationMilli, type Standing } from "./reputation.ts";

/** A profile with what it takes from its agent: lists are JSON, enums the numbers of their messages. */
export type ProfileRow = {
  readonly seq: number;
  readonly org_id: string;
  readonly agent_id: string;
  readonly description: string;
  readonly capabilities: string;
  readonly visibility: number;
  readonly accept_public_messages: number;
  readonly availability: number;
  readonly busy_until_ms: number | null;
  readonly looking_for: string;
  readonly last_seen_ms: number;
  readonly reputation_milli: number;
  readonly ratings: number;
  readonly revision: number;
  readonly name: string;
  readonly trust_tier: number;
  readonly disabled: number;
  readonly granted: string;
  readonly create_ms: number;
};

/** Of `p` and its agent `a`. */
export const profileColumns = sql`p.seq, p.org_id, p.agent_id, p.description, p.capabilities, p.visibility, p.accept_public_messages, p.availability, p.busy_until_ms, p.looking_for,
  p.last_seen_ms, p.reputation_milli, p.ratings, p.revision, a.name, a.trust_tier, a.disabled, a.capabilities as granted, a.create_ms`;
export const profileAndAgent = sql`directory_profile p join agent a on a.org_id = p.org_id and a.agent_id = p.agent_id`;

/** Makes the profile of a new agent. */
export async function addProfile(tx: Tx, orgId: string, agentId: string): Promise<void> {
  await tx.run(sql`insert into directory_profile (org_id, agent_id) values (${orgId}, ${agentId})`);
  await indexProfile(tx, orgId, agentId);
}

/** Removes the profile of an agent, and what was counted of it. What it said of others stays said. */
export async function dropProfile(tx: Tx, orgId: string, agentId: string): Promise<void> {
  await tx.run(sql`delete from agent_activity where org_id = ${orgId} and agent_id = ${agentId}`);
  await unindexProfile(tx, orgId, agentId);
  await tx.run(sql`delete from directory_profile where org_id = ${orgId} and agent_id = ${agentId}`);
}

/** A profile of an organisation. */
export const findProfile = (db: Queryable, orgId: string, agentId: string): Promise<ProfileRow | undefined> =>
  db.one<ProfileRow>(
    sql`select ${profileColumns} from ${profileAndAgent} where p.org_id = ${orgId} and p.agent_id = ${agentId}`,
  );

/** A public profile of any organisation that is not disabled; by the index on public ones. */
export const findPublicProfile = (db: Queryable, agentId: string): Promise<ProfileRow | undefined> =>
  db.one<ProfileRow>(sql`
    select ${profileColumns} from ${profileAndAgent} join organization o on o.org_id = p.org_id
    where p.agent_id = ${agentId} and p.visibility = 3 and o.disabled = 0`);

/** A profile of an organisation, held for a change. Who also changes what it takes from its agent locks that first. */
export const lockProfile = async (tx: Tx, orgId: string, agentId: string): Promise<boolean> =>
  (await tx.one(
    sql`select seq from directory_profile where org_id = ${orgId} and agent_id = ${agentId} ${tx.dialect.forUpdate}`,
  )) !== undefined;

/** What an agent says of itself. */
export const updateProfile = (tx: Tx, row: ProfileRow): Promise<number> =>
  tx.run(sql`
    update directory_profile set description = ${row.description}, capabilities = ${row.capabilities}, visibility = ${row.visibility},
      accept_public_messages = ${row.accept_public_messages},
      availability = ${row.availability}, busy_until_ms = ${row.busy_until_ms}, looking_for = ${row.looking_for}, revision = ${row.revision}
    where org_id = ${row.org_id} and agent_id = ${row.agent_id}`);

/** How an agent stands with those who rated it, held for a change. */
export async function lockStanding(tx: Tx, orgId: string, agentId: string): Promise<Standing | undefined> {
  const row = await tx.one<{ rating_sum: number; rating_weight: number; rated_ms: number; ratings: number }>(sql`
    select rating_sum, rating_weight, rated_ms, ratings from directory_profile where org_id = ${orgId} and agent_id = ${agentId} ${tx.dialect.forUpdate}`);
  return row && { sum: row.rating_sum, weight: row.rating_weight, atMs: row.rated_ms, ratings: row.ratings };
}

/** Keeps a standing, and the reputation it comes to wherever candidates are chosen by it. */
export async function keepStanding(tx: Tx, orgId: string, agentId: string, standing: Standing): Promise<number> {
  const milli = reputationMilli(standing);
  await tx.run(sql`
    update directory_profile set rating_sum = ${standing.sum}, rating_weight = ${standing.weight}, rated_ms = ${standing.atMs},
      ratings = ${standing.ratings}, reputation_milli = ${milli} where org_id = ${orgId} and agent_id = ${agentId}`);
  await tx.run(
    sql`update directory_capability set reputation_milli = ${milli} where org_id = ${orgId} and agent_id = ${agentId}`,
  );
  return milli;
}

/** A profile as one reads it who is of its organisation, or not. */
export function toProfile(row: ProfileRow, now: number, foreign: boolean): MessageInitShape<typeof ProfileSchema> {
  const { availability, busyUntilMs } = availabilityAt(row, now);
  return {
    orgId: row.org_id,
    agentId: row.agent_id,
    name: row.name,
    description: row.description,
    capabilities: JSON.parse(row.capabilities) as string[],
    grantedCapabilities: foreign ? [] : (JSON.parse(row.granted) as string[]),
    visibility: row.visibility as Visibility,
    acceptPublicMessages: row.accept_public_messages !== 0,
    availability,
    ...(busyUntilMs !== undefined && { busyUntilTime: timestampFromMs(busyUntilMs) }),
    lookingFor: JSON.parse(row.looking_for) as string[],
    ...(row.last_seen_ms > 0 && { lastSeenTime: timestampFromMs(row.last_seen_ms) }),
    reputation: row.reputation_milli / 1_000,
    ratings: BigInt(row.ratings),
    trustTier: row.trust_tier as TrustTier,
    createTime: timestampFromMs(row.create_ms),
    revision: BigInt(row.revision),
  };
}
