/** One act on a task: its row, its reward and its events, in one transaction. */
import { MarketplaceTaskStateSchema, ReviewVerdict } from "../../../gen/moltwire/exchange/v1/marketplace_pb.ts";
import type { App } from "../../app.ts";
import type { Tx } from "../../db/db.ts";
import { type EventType, emit } from "../../ops/outbox.ts";
import { reviewDelivery } from "./delivery-store.ts";
import { payOut } from "./money.ts";
import { type Act, forWorkerAfter, type Life, stepsUntil, type TimedAct } from "./rule.ts";
import { lifeOf, lockTaskRow, type TaskRow, updateTask, withLife } from "./store.ts";

type Needs = Pick<App, "ids" | "vault" | "homeOrgId">;

/** What an act brings along. */
export type Brought = {
  /** Of an agent that claims it. */
  readonly workerOrgId?: string;
  readonly rating?: number;
  /** How much of the reward the operator gives the worker. */
  readonly settled?: bigint;
};

/** When it happens, and in which trace. */
export type Moment = { readonly now: number; readonly traceId: string };

/** A task held for a change, with what time has made of it by now written down; undefined: there is none. */
export async function lockTask(tx: Tx, app: Needs, taskId: string, at: Moment): Promise<TaskRow | undefined> {
  let row = await lockTaskRow(tx, taskId);
  for (const { act, life } of row ? stepsUntil(lifeOf(row), at.now) : [])
    row = await carryOut(tx, app, row!, act, life, at);
  return row;
}

/** Writes down what an act has made of a task that is held: `life`, as the rule says. Gives the task as it is now. */
export async function carryOut(
  tx: Tx,
  app: Needs,
  before: TaskRow,
  act: Act | TimedAct,
  life: Life,
  at: Moment,
  { workerOrgId, rating = before.rating, settled = 0n }: Brought = {},
): Promise<TaskRow> {
  const moved = withLife(before, life, workerOrgId);
  const forWorker = forWorkerAfter(act, BigInt(before.reward), settled);
  const paid = forWorker === undefined ? before.paid : await payOut(tx, app.homeOrgId, moved, forWorker, at.now);
  const row = { ...moved, rating, paid, deliveries: before.deliveries + (act === "deliver" ? 1 : 0) };
  await updateTask(tx, row);
  if (act === "auto_accept") {
    const latest = { orgId: row.org_id, taskId: row.task_id, number: row.deliveries };
    await reviewDelivery(tx, app, latest, ReviewVerdict.ACCEPTED, {}, at.now);
  }
  const { type, to } = told[act];
  const creator = { orgId: before.org_id, agentId: before.creator_agent_id };
  // Whoever had it, or no longer has it by this very act.
  const isTaken = act === "release" || act === "reject";
  const worker = { orgId: before.worker_org_id, agentId: (isTaken ? before : row).worker_agent_id };
  for (const party of to) {
    if (party === "worker" && worker.agentId === "") continue;
    await emit(tx, app, {
      ...(party === "creator" ? creator : worker),
      ...{ type, timeMs: at.now, traceId: at.traceId, payload: payloadOf(row, act) },
    });
  }
  return row;
}

type Told = { readonly type: EventType; readonly to: readonly ("creator" | "worker")[] };

/** Who hears of what: who did it knows it. */
const told: Record<Act | TimedAct, Told> = {
  claim: { type: "marketplace.task_claimed", to: ["creator"] },
  deliver: { type: "marketplace.task_delivered", to: ["creator"] },
  accept: { type: "marketplace.task_reviewed", to: ["worker"] },
  reject: { type: "marketplace.task_reviewed", to: ["worker"] },
  auto_accept: { type: "marketplace.task_reviewed", to: ["creator", "worker"] },
  dispute: { type: "marketplace.task_reviewed", to: ["creator", "worker"] },
  settle: { type: "marketplace.task_reviewed", to: ["creator", "worker"] },
  cancel: { type: "marketplace.task_expired", to: ["creator", "worker"] },
  expire: { type: "marketplace.task_expired", to: ["creator", "worker"] },
  release: { type: "marketplace.task_expired", to: ["creator", "worker"] },
};

function payloadOf(row: TaskRow, act: Act | TimedAct) {
  const { type } = told[act];
  return {
    task_id: row.task_id,
    title: row.title,
    state: MarketplaceTaskStateSchema.value[row.state]!.localName,
    cause: act.toUpperCase(),
    ...(type === "marketplace.task_reviewed" && { rating: row.rating, paid_micros: String(row.paid) }),
  };
}
