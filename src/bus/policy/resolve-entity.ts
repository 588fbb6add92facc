/** Finds the things that a question names by type and id. */
import type { Queryable } from "../../db/db.ts";
import { Fault } from "../../errors.ts";
import { categoryEntity, isCategory } from "../../exchange/market/permit.ts";
import { findCrossing } from "../../federation/gateway/crossing-store.ts";
import { isGuest } from "../../federation/gateway/sides.ts";
import { findGrant } from "../../federation/grant/store.ts";
import { findNamespace } from "../../memory/shared-store.ts";
import { isQueueName, queueEntity } from "../../queue/access.ts";
import { scheduleEntity } from "../../queue/schedule/owner.ts";
import { findSchedule } from "../../queue/schedule/store.ts";
import { channelEntity } from "../../relay/access.ts";
import { findChannel } from "../../relay/channel-store.ts";
import { findAgent } from "../agent-store.ts";
import { type ApprovalRow, findApproval } from "../approval/store.ts";
import { findContract } from "../contract-store.ts";
import { resolveContract } from "../resolve.ts";
import { findTaskSummary, type TaskSummaryRow } from "../task-store.ts";
import type { Origin } from "./decide-task.ts";
import {
  type AgentFacts,
  agentEntity,
  asForeignContract,
  asForeigner,
  contractEntity,
  type Entity,
  entityRef,
  orgEntity,
  ownedEntity,
  toolEntity,
} from "./entity.ts";

/** A thing as a question names it; `version` is of a contract, empty for the latest. */
export type Wanted = { readonly type: string; readonly id: string; readonly orgId: string; readonly version: string };

/** A thing, and those that its attributes name and policies can go on to. */
export type Found = { readonly entity: Entity; readonly related: readonly Entity[] };

/** How the things of each type are found. Those of a type that is not here are not there: its area adds it when it is built. */
const finders: Readonly<Record<string, (db: Queryable, wanted: Wanted) => Promise<Found | undefined>>> = {
  Org: async (_db, { id, orgId }) => (id === orgId ? alone(orgEntity(id)) : undefined),
  Agent: async (db, { id, orgId }) => {
    const row = await findAgent(db, orgId, id);
    return row && alone(agentEntity(row));
  },
  Contract: async (db, { id, orgId, version }) => {
    const exact = version ? await findContract(db, orgId, id, version) : undefined;
    const row = exact ?? (await newest(db, orgId, id, version));
    return row && alone(contractEntity(row));
  },
  // A shared one by its name; "agt_…/name" is one of that agent's own memory.
  Namespace: async (db, { id, orgId }) => {
    const [, agentId, name = id] = /^(agt_[0-9a-f]+)\/(.+)$/s.exec(id) ?? [];
    const owner = agentId ? await findAgent(db, orgId, agentId) : await findNamespace(db, orgId, name);
    if (agentId && !owner) return undefined;
    // A shared one that nobody has made is nobody's.
    const attributes = owner ? { owner: entityRef("Agent", owner.agent_id) } : {};
    return alone({ ...ownedEntity("Namespace", name, orgId, attributes), id });
  },
  // As with queues there is one by every name: some are for members only, and not to be found by asking.
  Channel: async (db, { id, orgId }) => {
    const row = await findChannel(db, orgId, id);
    if (!row) return alone(ownedEntity("Channel", id, orgId, {}));
    const { resource, related } = await channelEntity(db, row);
    return { entity: resource, related };
  },
  // There is one by every name that a queue can have.
  Queue: async (db, { id, orgId }) => {
    if (!isQueueName(id)) return undefined;
    const { resource, related } = await queueEntity(db, orgId, id);
    return { entity: resource, related };
  },
  Schedule: async (db, { id, orgId }) => {
    const row = await findSchedule(db, orgId, id);
    const owner = row && (await findAgent(db, orgId, row.agent_id));
    return owner && { entity: scheduleEntity(orgId, id, owner.agent_id), related: [agentEntity(owner)] };
  },
  // A tool is nothing but its name.
  Tool: async (_db, { id, orgId }) => alone(toolEntity(id, orgId)),
  // Nor has a category of the marketplace more than its name.
  MarketCategory: async (_db, { id, orgId }) => (isCategory(id) ? alone(categoryEntity(id, orgId)) : undefined),
  // Of either party; there it is the party's own thing.
  Grant: async (db, { id, orgId }) => {
    const row = await findGrant(db, orgId, id);
    if (!row) return undefined;
    const parties = { consumer: entityRef("Org", row.grantee_org_id), provider: entityRef("Org", row.org_id) };
    const related = [orgEntity(row.grantee_org_id), orgEntity(row.org_id)];
    return { entity: ownedEntity("Grant", id, orgId, parties), related };
  },
  Approval: async (db, { id, orgId }) => {
    const row = await findApproval(db, orgId, id);
    return row && approvalEntities(db, row);
  },
};

const alone = (entity: Entity): Found => ({ entity, related: [] });

/**
 * A request that waits for approval, with its requester and its contract as they are now, and the door its task came in by. The contract is that of the organisation whose
 * agents are to do it, and what is another organisation's is seen as policies see it there.
 */
export async function approvalEntities(db: Queryable, row: ApprovalRow): Promise<Found & { readonly origin: Origin }> {
  const { org_id: orgId, approval_id, caller_agent_id, contract_id, contract_version } = row;
  const task = await findTaskSummary(db, orgId, row.task_id);
  const { target_org_id: contractOrgId = orgId, origin = "bus" } = task ?? {};
  const found = await findContract(db, contractOrgId, contract_id, contract_version);
  const seen = found && contractOrgId !== orgId ? asForeignContract(found) : found;
  const contract = seen && contractEntity(seen, orgId);
  const requester = caller_agent_id ? await requesterOf(db, row, task) : undefined;
  const entity = ownedEntity("Approval", approval_id, orgId, {
    contract: entityRef("Contract", contract?.uid.id ?? contract_id),
    ...(caller_agent_id && { requester: entityRef("Agent", caller_agent_id) }),
  });
  const related = [...(requester ? [agentEntity(requester)] : []), ...(contract ? [contract] : [])];
  return { entity, related, origin: origin as Origin };
}

/** The agent that asked, as policies of the approval's organisation see it; undefined once it is gone. */
async function requesterOf(
  db: Queryable,
  { org_id, caller_agent_id: agent_id }: ApprovalRow,
  task: TaskSummaryRow | undefined,
): Promise<AgentFacts | undefined> {
  if (!task || !isGuest(task)) return findAgent(db, org_id, agent_id);
  const crossing = await findCrossing(db, org_id, task.task_id);
  return crossing && asForeigner({ org_id: crossing.caller_org_id, agent_id });
}

/** The newest version that is meant; undefined when there is none. */
async function newest(db: Queryable, orgId: string, contractId: string, version: string) {
  try {
    return await resolveContract(db, orgId, { contractId, version });
  } catch (error) {
    if (error instanceof Fault) return undefined;
    throw error;
  }
}

/** The thing as it is now, or undefined: of another organisation than the one that asks nothing is found. */
export const findEntity = async (db: Queryable, askingOrgId: string, wanted: Wanted): Promise<Found | undefined> =>
  wanted.orgId === askingOrgId && Object.hasOwn(finders, wanted.type) ? finders[wanted.type]!(db, wanted) : undefined;
