/** What agents do, counted in memory and written now and then, so that no request waits for it. */
import type { Logger } from "pino";
import { type Db, sql, type Tx } from "../db/db.ts";

/** What was counted of an agent. */
export type Counts = { readonly requests: number; readonly jobs: number; readonly messages: number };

export type Activity = {
  /** The agent called with a key of its own. */
  seen(orgId: string, agentId: string, nowMs: number): void;
  /** The agent submitted jobs, and that is committed. */
  submittedJobs(orgId: string, agentId: string, jobs: number): void;
  /** A message was sent in the agent's name, and that is committed. */
  sentMessage(orgId: string, agentId: string): void;
  /** What this process has counted and not written yet. */
  pending(orgId: string, agentId: string): Counts;
  flush(): Promise<void>;
};

type Noted = {
  readonly orgId: string;
  readonly agentId: string;
  requests: number;
  jobs: number;
  messages: number;
  seenMs: number;
};

const maxRemembered = 100_000;
/** Agents in one transaction; see key-use.ts. */
const batch = 100;
/** How much later a call must be than the last one that was written. */
const seenEveryMs = 60_000;

/** When an agent was last seen is exact to the minute and the interval between two flushes. A crash loses the counts of one interval. */
export function activity(db: Db, log: Logger): Activity {
  let noted = new Map<string, Noted>();
  let writing: ReadonlyMap<string, Noted> = new Map();
  const keyOf = (orgId: string, agentId: string) => `${orgId} ${agentId}`;
  function note(orgId: string, agentId: string): Noted | undefined {
    const key = keyOf(orgId, agentId);
    const found = noted.get(key);
    if (found || noted.size >= maxRemembered) return found;
    const fresh = { orgId, agentId, requests: 0, jobs: 0, messages: 0, seenMs: 0 };
    noted.set(key, fresh);
    return fresh;
  }
  return {
    seen(orgId, agentId, nowMs) {
      const found = note(orgId, agentId);
      if (!found) return;
      found.requests++;
      found.seenMs = Math.max(found.seenMs, nowMs);
    },
    submittedJobs(orgId, agentId, jobs) {
      const found = note(orgId, agentId);
      if (found) found.jobs += jobs;
    },
    sentMessage(orgId, agentId) {
      const found = note(orgId, agentId);
      if (found) found.messages++;
    },
    pending(orgId, agentId) {
      const [one, two] = [noted, writing].map((map) => map.get(keyOf(orgId, agentId)));
      const both = (count: keyof Counts): number => (one?.[count] ?? 0) + (two?.[count] ?? 0);
      return { requests: both("requests"), jobs: both("jobs"), messages: both("messages") };
    },
    async flush() {
      if (noted.size === 0) return;
      writing = noted;
      noted = new Map();
      try {
        // One order, so that replicas do not deadlock.
        const sorted = [...writing].toSorted(([a], [b]) => (a < b ? -1 : 1)).map(([, value]) => value);
        for (let from = 0; from < sorted.length; from += batch)
          await db.tx(async (tx) => {
            for (const one of sorted.slice(from, from + batch)) await write(tx, one);
          });
      } catch (error) {
        log.warn({ err: error }, "what agents did was not written");
      } finally {
        writing = new Map();
      }
    },
  };
}

/** Of an agent that is deleted meanwhile nothing is written. */
async function write(tx: Tx, { orgId, agentId, requests, jobs, messages, seenMs }: Noted): Promise<void> {
  await tx.run(sql`
    insert into agent_activity (org_id, agent_id, requests, jobs, messages)
    select org_id, agent_id, cast(${requests} as bigint), cast(${jobs} as bigint), cast(${messages} as bigint)
    from agent where org_id = ${orgId} and agent_id = ${agentId}
    on conflict (org_id, agent_id) do update set requests = agent_activity.requests + excluded.requests, jobs = agent_activity.jobs + excluded.jobs,
      messages = agent_activity.messages + excluded.messages`);
  await tx.run(sql`
    update directory_profile set last_seen_ms = ${seenMs} where org_id = ${orgId} and agent_id = ${agentId} and last_seen_ms <= ${seenMs - seenEveryMs}`);
}
