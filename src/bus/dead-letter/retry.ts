/** A dead letter is tried again: the same task once more, or with another input, agent or version. */

import type { RetryDeadLetterRequest } from "../../../gen/moltwire/bus/v1/dead_letter_service_pb.ts";
import { TaskState } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import type { App } from "../../app.ts";
import { Fault } from "../../errors.ts";
import type { Command } from "../../rpc/command.ts";
import { stateName } from "../conclude.ts";
import type { Origin } from "../policy/decide-task.ts";
import { actingAgent, type TaskOrder, toInput } from "../submit.ts";
import { isTerminal, openJson, type TaskRow } from "../task-store.ts";
import type { RetryRow } from "./dead-letter-store.ts";

const maxRetries = 100;

/** Throws FAILED_PRECONDITION while a retry has not ended, or when one has completed, and QUOTA_EXCEEDED when there are as many as may be. */
export function checkRetries(retries: readonly RetryRow[]): void {
  // Any of them, not the latest: ids of replicas whose clocks differ do not tell which that is.
  const standing = retries.find(({ state }) => !isTerminal(state) || state === TaskState.COMPLETED);
  if (standing) {
    const state = stateName(standing.state);
    throw new Fault("FAILED_PRECONDITION", `its retry ${standing.task_id} is ${state}: there is nothing to try again`, {
      state,
      task_id: standing.task_id,
    });
  }
  if (retries.length >= maxRetries) {
    throw new Fault(
      "QUOTA_EXCEEDED",
      `a dead letter is tried again at most ${maxRetries} times; submit the task anew`,
      {
        resource: "retries",
        limit: String(maxRetries),
      },
    );
  }
}

/** What a retry asks for: what the failed task did, for its caller, below its span, unless the request says otherwise. */
export async function retryOrder(
  app: App,
  { tx, caller, orgId }: Command,
  request: RetryDeadLetterRequest,
  failed: TaskRow,
): Promise<TaskOrder> {
  if (failed.origin === "listing")
    throw new Fault(
      "FAILED_PRECONDITION",
      "it was bought, and cost nothing: ask for it anew (CatalogService/InvokeListing)",
      {
        state: stateName(failed.state),
      },
    );
  return {
    wish: {
      orgId,
      contract: { contractId: failed.contract_id, version: request.contractVersion || failed.contract_version },
      input: request.input ? toInput(request.input) : openJson(app, orgId, failed.task_id, "input", failed.input),
      wantedAgentId: request.targetAgentId || failed.wanted_agent_id,
      callerAgentId: await actingAgent(tx, caller, orgId, failed.caller_agent_id),
      origin: failed.origin as Origin,
      grantId: failed.grant_id,
    },
    labels: JSON.parse(failed.labels) as Record<string, string>,
    deadlineMs: null,
    trace: { traceId: failed.trace_id, spanId: app.ids.span(), parentSpanId: failed.span_id },
    retryOfDeadLetterId: request.deadLetterId,
  };
}
