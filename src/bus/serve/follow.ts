/** What follows a delivery that gave nothing, in the transaction in which that is known. */
import { TaskState } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import type { App } from "../../app.ts";
import type { Tx } from "../../db/db.ts";
import type { AttemptFault } from "../adapter.ts";
import { finalFault, pastDeadline } from "../attempt.ts";
import { type ContractRef, findContract } from "../contract-store.ts";
import type { Job } from "../dispatch.ts";
import { followUp } from "../retry.ts";
import { attemptFailed, type FailedAttempt, failed } from "../settle.ts";
import { findTask } from "../task-store.ts";
import { attemptOf, type Pulled } from "./delivery.ts";
import { takeBack, triedOf } from "./pulled-store.ts";

/** The task's state now, and what the dispatcher is to go on with once this is committed, if the task goes on. */
export type Followed = { readonly state: TaskState; readonly job?: Job };

/** Ends the attempt, and with it the task if nothing can follow; else takes the task back, so that the dispatcher goes on with it. */
export async function afterFailure(
  tx: Tx,
  app: App,
  pulled: Pulled,
  cause: AttemptFault,
  how: { readonly leaseLost?: boolean; readonly hopeless?: boolean } = {},
): Promise<Followed> {
  const { task } = pulled;
  const attempt = await attemptOf(tx, pulled);
  const { contract } = attempt;
  const last: FailedAttempt = { attempt, cause };
  const tried = triedOf(pulled.row);
  const late = pastDeadline({ app, task });
  const chance = app.ids.chance;
  const next = followUp({ aftermath: cause.aftermath, contract, tried, agents: 1, late, ...how, chance });
  const own = await findContract(tx, task.org_id, task.contract_id, task.contract_version);
  const fallbacks = JSON.parse(own?.fallbacks ?? "[]") as ContractRef[];
  const fault = finalFault({ app, task }, contract, last);
  if (next.kind === "end" || (next.kind === "next contract" && tried.step >= fallbacks.length)) {
    await failed(tx, app, pulled, fault, last);
    return { state: TaskState.FAILED };
  }
  const again = next.kind === "again";
  const waitMs = again ? next.waitMs : 0;
  await attemptFailed(tx, app, pulled, last, again ? "retry" : "fallback", waitMs);
  const resume = again ? { contract, tried: next.tried, waitMs } : { contract, tried, waitMs, failure: fault };
  return { state: TaskState.WORKING, job: await jobOf(tx, app, pulled, resume) };
}

/** Takes the task back for this server's dispatcher. */
export async function jobOf(tx: Tx, app: App, { hold, row }: Pulled, resume: NonNullable<Job["resume"]>): Promise<Job> {
  const taken = await takeBack(tx, hold, app.serverId);
  const task = taken && (await findTask(tx, hold.orgId, hold.taskId));
  if (!taken || !task) throw new Error(`task ${hold.taskId} was locked and is not to be had`);
  return { hold: taken, task, turn: triedOf(row).turn, resume };
}
