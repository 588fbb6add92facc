/** Whose schedule a call is about, and whether the caller may use it. */
import type { App } from "../../app.ts";
import { findAgent } from "../../bus/agent-store.ts";
import type { Decided } from "../../bus/policy/decide-task.ts";
import { agentEntity, type Entity, entityRef, orgEntity, ownedEntity } from "../../bus/policy/entity.ts";
import { type Keeping, settle } from "../../bus/policy/keeping.ts";
import type { Queryable } from "../../db/db.ts";
import { badField, type Fault, notFound } from "../../errors.ts";
import type { Caller } from "../../rpc/caller.ts";
import { seesWholeOrg } from "../../rpc/scope.ts";
import type { ScheduleRow } from "./store.ts";

/** Who asks, and what for. */
export type Use = {
  readonly orgId: string;
  readonly caller: Caller;
  readonly action: "read_schedule" | "write_schedule";
  readonly now: number;
};

type Owned = Pick<ScheduleRow, "schedule_id" | "agent_id">;

/** The agent that a new schedule is for: the one named, or the caller. INVALID_REQUEST for an administrator who names none. */
export function agentOf(caller: Caller, named: string): string {
  const agentId = named || (seesWholeOrg(caller) ? "" : caller.agentId);
  if (agentId === "") throw badField("agent_id", "an administrator names the agent");
  return agentId;
}

/** A schedule as policies see it. */
export const scheduleEntity = (orgId: string, scheduleId: string, agentId: string): Entity =>
  ownedEntity("Schedule", scheduleId, orgId, { owner: entityRef("Agent", agentId) });

/** The policies as they are now, as questions on schedules. */
async function decider(
  app: App,
  db: Queryable,
  { orgId, caller, action, now }: Use,
): Promise<(schedule: Owned) => Promise<Decided>> {
  const set = await app.policies.current(db, orgId);
  const agents = new Map<string, Promise<Entity | undefined>>();
  const agent = (agentId: string) => {
    const found = agents.get(agentId) ?? findAgent(db, orgId, agentId).then((row) => row && agentEntity(row));
    agents.set(agentId, found);
    return found;
  };
  const principal = seesWholeOrg(caller) ? orgEntity(orgId) : await agent(caller.agentId);
  if (!principal) throw notFound("agent", caller.agentId);
  return async ({ schedule_id, agent_id }) => {
    const owner = await agent(agent_id);
    const question = {
      principal,
      action,
      resource: scheduleEntity(orgId, schedule_id, agent_id),
      context: { tokens: 0, origin: "bus", time: { ms: now } },
      related: owner ? [owner] : [],
    };
    return { question, answer: app.policies.answer(set, question) };
  };
}

/** Tells of schedules whether the caller may use them, to show it only those. */
export async function permits(app: App, keeping: Keeping, use: Use): Promise<(schedule: Owned) => Promise<boolean>> {
  const decide = await decider(app, keeping.db, use);
  return async (schedule) => {
    const decided = await decide(schedule);
    await keeping.note([decided]);
    return decided.answer.verdict === "ALLOW";
  };
}

/**
 * Throws where the policies do not permit the use: POLICY_DENIED to the schedule's own agent and to administrators, and what is thrown for one that does not exist
 * to any other. The decision is kept.
 */
export async function checkUse(app: App, keeping: Keeping, use: Use, schedule: Owned, missing: () => Fault) {
  const decided = await (await decider(app, keeping.db, use))(schedule);
  const knows = seesWholeOrg(use.caller) || use.caller.agentId === schedule.agent_id;
  await settle(keeping, decided, knows ? undefined : missing());
}

/** The schedule, if there is one and the caller may use it so; else NOT_FOUND or POLICY_DENIED. */
export async function usable(
  app: App,
  keeping: Keeping,
  use: Use,
  scheduleId: string,
  row: ScheduleRow | undefined,
): Promise<ScheduleRow> {
  const missing = () => notFound("schedule", scheduleId);
  if (!row) throw missing();
  await checkUse(app, keeping, use, row, missing);
  return row;
}
