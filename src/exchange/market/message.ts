/** Tasks as they are read: who sees which of their parties, and which of their results. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { durationFromMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { Role } from "../../../gen/moltwire/api/v1/access_pb.ts";
import { Visibility } from "../../../gen/moltwire/directory/v1/profile_pb.ts";
import { type MarketplaceTaskSchema, MarketplaceTaskState } from "../../../gen/moltwire/exchange/v1/marketplace_pb.ts";
import type { Queryable } from "../../db/db.ts";
import type { Caller } from "../../rpc/caller.ts";
import { seesWholeOrg } from "../../rpc/scope.ts";
import { type DeliveryRow, lastDelivery } from "./delivery-store.ts";
import { forWorkerAfter, heldUntil, limits, sharesOf } from "./rule.ts";
import { asOf, lifeOf, type ShownRow, shownWorker, type TaskRow } from "./store.ts";

/** Who looks: an agent, an administrator (no agent), the operator, or somebody without a key (no organisation). */
export type Viewer = {
  readonly orgId: string;
  readonly agentId: string;
  readonly wholeOrg: boolean;
  readonly isOperator: boolean;
  /** Whether it looks from its own organisation; the operator may look from any. */
  readonly isHome: boolean;
};

export const viewerOf = (caller: Caller, orgId: string): Viewer => ({
  orgId,
  agentId: seesWholeOrg(caller) ? "" : caller.agentId,
  wholeOrg: seesWholeOrg(caller),
  isOperator: caller.role === Role.OPERATOR,
  isHome: orgId === caller.orgId,
});

/** Somebody without a key. */
export const anybody: Viewer = { orgId: "", agentId: "", wholeOrg: false, isOperator: false, isHome: false };

type Party = { readonly orgId: string; readonly agentId: string };

const creatorOf = (row: TaskRow): Party => ({ orgId: row.org_id, agentId: row.creator_agent_id });

/** Whether one is a party of a task, or acts for it. */
const speaksFor = (viewer: Viewer, { orgId, agentId }: Party): boolean =>
  viewer.orgId !== "" && viewer.orgId === orgId && (viewer.wholeOrg || (agentId !== "" && viewer.agentId === agentId));

/** Whether one acts for the creator of a task. */
export const isCreator = (viewer: Viewer, row: TaskRow): boolean => speaksFor(viewer, creatorOf(row));

type Profile = Party & { readonly visibility: number | null; readonly disabled: number };

/** As the directory shows it; an organisation itself has no profile. */
function isShown(viewer: Viewer, { orgId, agentId, visibility, disabled }: Profile): boolean {
  if (viewer.orgId !== "" && viewer.orgId === orgId)
    return viewer.wholeOrg || agentId === viewer.agentId || agentId === "" || (visibility ?? 0) >= Visibility.ORG;
  return visibility === Visibility.PUBLIC && disabled === 0;
}

type TaskInit = Extract<MessageInitShape<typeof MarketplaceTaskSchema>, { readonly $typeName?: never }>;

/** A task as one sees it, without results. */
export function toTask(stored: ShownRow, viewer: Viewer, now: number): TaskInit {
  const { row, act } = asOf(stored, now);
  const worker = { orgId: row.worker_org_id, agentId: shownWorker(row, now) };
  const isParty = isCreator(viewer, row) || (worker.agentId !== "" && speaksFor(viewer, worker));
  const seesAll = viewer.isOperator || isParty;
  const [creator, heldMs] = [creatorOf(row), heldUntil(lifeOf(row), now)];
  const seesCreator =
    seesAll || isShown(viewer, { ...creator, visibility: row.creator_visibility, disabled: row.creator_disabled });
  const seesWorker =
    worker.agentId !== "" &&
    (seesAll || isShown(viewer, { ...worker, visibility: row.worker_visibility, disabled: row.worker_disabled ?? 0 }));
  const forWorker = act && forWorkerAfter(act, BigInt(row.reward), 0n);
  const paid = forWorker === undefined ? BigInt(row.paid) : sharesOf(BigInt(row.reward), forWorker, row.fee_bps).worker;
  return {
    taskId: row.task_id,
    ...(seesCreator && { creatorOrgId: creator.orgId, creatorAgentId: creator.agentId }),
    ...{ title: row.title, description: row.description, category: row.category },
    ...{ requirements: JSON.parse(row.requirements) as string[], tags: JSON.parse(row.tags) as string[] },
    ...{ rewardMicros: BigInt(row.reward), feeBasisPoints: row.fee_bps, priority: row.priority },
    ...(row.effort_ms !== null && { estimatedEffort: durationFromMs(row.effort_ms) }),
    ...(row.deadline_ms !== null && { deadlineTime: timestampFromMs(row.deadline_ms) }),
    ...(row.claim_timeout_ms !== null && { claimTimeout: durationFromMs(row.claim_timeout_ms) }),
    disputeWindow: durationFromMs(row.dispute_window_ms),
    ...{ state: row.state as MarketplaceTaskState, stateTime: timestampFromMs(row.state_ms) },
    ...(seesWorker && { workerOrgId: worker.orgId, workerAgentId: worker.agentId }),
    ...(row.state === MarketplaceTaskState.CLAIMED &&
      row.claim_timeout_ms !== null && { claimExpireTime: timestampFromMs(row.state_ms + row.claim_timeout_ms) }),
    ...(row.state === MarketplaceTaskState.DELIVERED && {
      reviewDueTime: timestampFromMs(row.state_ms + limits.reviewMs),
    }),
    ...(heldMs !== undefined && { openToAllTime: timestampFromMs(heldMs) }),
    ...{ deliveries: row.deliveries, paidMicros: paid, rating: row.rating },
    createTime: timestampFromMs(row.create_ms),
  };
}

/** A result that one may see, or only that there is one. */
export type SeenDelivery = { readonly row: DeliveryRow; readonly isOpen: boolean };

/** The latest result of a task that one may see: its creator and the operator each, a worker its own. */
export async function seenDelivery(db: Queryable, task: ShownRow, viewer: Viewer): Promise<SeenDelivery | undefined> {
  if (task.deliveries === 0) return undefined;
  const seesEach = viewer.isOperator || isCreator(viewer, task);
  const latest = { orgId: task.org_id, taskId: task.task_id, number: task.deliveries };
  const row = await lastDelivery(db, latest, seesEach ? undefined : viewer);
  return row && { row, isOpen: !viewer.isOperator || isTold(task, row, viewer) };
}

/** Whether the operator reads a result: that of a dispute, which it decides, and what is its own organisation's. */
function isTold(task: TaskRow, { worker_org_id }: DeliveryRow, viewer: Viewer): boolean {
  if (task.state === MarketplaceTaskState.DISPUTED || task.state === MarketplaceTaskState.SETTLED) return true;
  return viewer.isHome && (isCreator(viewer, task) || worker_org_id === viewer.orgId);
}
