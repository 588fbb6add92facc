/** Presence: which agents have a conversation open, told by rows that are good for a while and are renewed. */
import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { type Presence, PresenceSchema, PresenceStatus } from "../../gen/moltwire/relay/v1/message_pb.ts";
import type { App } from "../app.ts";
import { join, type Queryable, sql, type Tx } from "../db/db.ts";

/** How long a conversation is believed open when its server is gone; it is renewed three times as often. */
const presentMs = 45_000;
const batch = 500;

/** Rung when an agent's presence has changed. */
export const presenceTopic = (agentId: string): string => `presence:${agentId}`;

/** A conversation of an agent. */
export type Present = { readonly orgId: string; readonly agentId: string; readonly stream: string };

/** Says how an agent is, in one of its conversations; said again with the same status, it is renewed. */
export async function putPresence(
  tx: Tx,
  { orgId, agentId, stream }: Present,
  status: PresenceStatus,
  now: number,
): Promise<void> {
  const until = now + presentMs;
  await tx.run(sql`
    insert into relay_presence (org_id, agent_id, stream, status, since_ms, until_ms) values (${orgId}, ${agentId}, ${stream}, ${status}, ${now}, ${until})
    on conflict (org_id, agent_id, stream) do update set until_ms = excluded.until_ms, status = excluded.status,
      since_ms = case when relay_presence.status = excluded.status then relay_presence.since_ms else excluded.since_ms end`);
}

export async function endPresence(tx: Tx, { orgId, agentId, stream }: Present): Promise<void> {
  await tx.run(
    sql`delete from relay_presence where org_id = ${orgId} and agent_id = ${agentId} and stream = ${stream}`,
  );
  tx.ring(presenceTopic(agentId));
}

/** How agents are, in the order of their ids as given: of several conversations what was said last counts. */
export async function presencesOf(
  db: Queryable,
  orgId: string,
  agentIds: readonly string[],
  now: number,
): Promise<Presence[]> {
  if (agentIds.length === 0) return [];
  const rows = await db.all<{ agent_id: string; status: PresenceStatus; since_ms: number }>(sql`
    select agent_id, status, since_ms from relay_presence
    where org_id = ${orgId} and agent_id in (${join([...agentIds])}) and until_ms > ${now} order by since_ms`);
  const latest = new Map(rows.map((row) => [row.agent_id, row]));
  return agentIds.map((agentId) => {
    const row = latest.get(agentId);
    return create(PresenceSchema, {
      agentId,
      status: row?.status ?? PresenceStatus.OFFLINE,
      ...(row && { sinceTime: timestampFromMs(row.since_ms) }),
    });
  });
}

/** Ends the conversations of servers that are gone; gives how many. */
export async function sweepPresence(app: App): Promise<number> {
  const rows = await app.db.tx(async (tx) => {
    const gone = await tx.all<{ agent_id: string }>(sql`
      delete from relay_presence where (org_id, agent_id, stream) in (
        select org_id, agent_id, stream from relay_presence where until_ms <= ${app.clock.now()} order by until_ms limit ${batch})
      returning agent_id`);
    for (const { agent_id } of gone) tx.ring(presenceTopic(agent_id));
    return gone;
  });
  return rows.length;
}
