/** What is due of the tasks that agents pull: nobody fetched it, or its lease or its time is over. */
import type { App } from "../../app.ts";
import type { Tx } from "../../db/db.ts";
import { AttemptFault } from "../adapter.ts";
import { findAgent, pulls } from "../agent-store.ts";
import { pastDeadline } from "../attempt.ts";
import type { Dispatcher, Job } from "../dispatch.ts";
import { stillFit } from "../route.ts";
import { contractOf, lockPulledTask, type Pulled } from "./delivery.ts";
import { afterFailure, jobOf } from "./follow.ts";
import { duePulled, type Instance, putWaiting, triedOf } from "./pulled-store.ts";

const batch = 100;

/**
 * Looks after all that is due, or all of one agent, as far as there is room; gives how many. Any number of replicas may do this at once: each looks again once
 * it has locked the task.
 */
export async function sweepPulled(
  app: App,
  dispatcher: Dispatcher,
  of?: Pick<Instance, "orgId" | "agentId">,
): Promise<number> {
  let swept = 0;
  for (let failed = false; !failed; ) {
    const due = await duePulled(app.db.query, app.clock.now(), batch, of);
    for (const { org_id, task_id } of due) {
      if (app.stopping.aborted || !dispatcher.hasRoom()) return swept;
      try {
        const job = await app.db.tx((tx) => lookAfter(tx, app, org_id, task_id));
        if (job) dispatcher.start(job);
        swept++;
      } catch (error) {
        // One that cannot be looked after now must not keep the others waiting.
        failed = true;
        app.log.error({ err: error, task_id }, "a pulled task could not be looked after");
      }
    }
    if (due.length < batch) break;
  }
  return swept;
}

async function lookAfter(tx: Tx, app: App, orgId: string, taskId: string): Promise<Job | undefined> {
  const pulled = await lockPulledTask(tx, orgId, taskId);
  const now = app.clock.now();
  if (!pulled || pulled.row.due_ms > now) return undefined;
  if (pulled.row.instance === "") return endWaiting(tx, app, pulled, now);
  const { cause, leaseLost } = whyOver(pulled, now);
  return (await afterFailure(tx, app, pulled, cause, { leaseLost })).job;
}

/** Nobody fetched it until now, or its agent was changed and may not be fit any more. */
async function endWaiting(tx: Tx, app: App, pulled: Pulled, now: number): Promise<Job | undefined> {
  const { row, task } = pulled;
  const tried = triedOf(row);
  const contract = await contractOf(tx, row, task.task_id);
  if (row.wait_until_ms > now && !pastDeadline({ app, task })) {
    const agent = await findAgent(tx, row.org_id, row.agent_id);
    const fit = agent && pulls(agent) && (await stillFit(tx, agent, contract));
    if (fit) {
      await putWaiting(tx, row, tried, row.wait_until_ms);
      return undefined;
    }
    return jobOf(tx, app, pulled, { contract, tried, waitMs: 0 });
  }
  const unfetched = !pastDeadline({ app, task });
  return jobOf(tx, app, pulled, {
    contract,
    tried: { ...tried, agent: tried.agent + (unfetched ? 1 : 0) },
    waitMs: 0,
    unfetched,
  });
}

function whyOver({ row }: Pulled, now: number): { readonly cause: AttemptFault; readonly leaseLost: boolean } {
  if (row.stop_ms <= now) {
    const timeoutMs = row.stop_ms - row.start_ms;
    const metadata = { timeout_ms: String(timeoutMs) };
    const message = `the agent did not answer within ${timeoutMs} ms`;
    return { cause: new AttemptFault("AGENT_TIMEOUT", "lost", message, { metadata }), leaseLost: false };
  }
  const message = `the lease of ${row.lease_ms} ms ran out: no heartbeat, and no answer`;
  const metadata = { instance: row.instance };
  return { cause: new AttemptFault("AGENT_UNREACHABLE", "lost", message, { metadata }), leaseLost: true };
}
