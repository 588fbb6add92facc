import { type JsonValue, toJson } from "@bufbuild/protobuf";
import { type Value, ValueSchema } from "@bufbuild/protobuf/wkt";
import type { Usage as UsageMessage } from "../../../gen/moltwire/agent/v1/agent_runtime_pb.ts";
import type { RespondTaskRequest } from "../../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { TaskState } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import type { App } from "../../app.ts";
import { badField, Fault, Refused } from "../../errors.ts";
import type { Command } from "../../rpc/command.ts";
import { AttemptFault, noUsage, type Usage } from "../adapter.ts";
import type { ContractRow } from "../contract-store.ts";
import { violationFault } from "../decide.ts";
import { jsonFault } from "../payload.ts";
import type { Attempt } from "../settle.ts";
import { completed } from "../settle.ts";
import { outputViolations } from "../violations.ts";
import { attemptOf, holdOf, leaseLost, lockPulledTask } from "./delivery.ts";
import { afterFailure, type Followed } from "./follow.ts";

/** What an answer did, and the refusal of it if it could not be used: what it did is to be kept all the same. */
export type Responded = Followed & { readonly refused?: Refused };

/** An agent answers what was delivered to it: LEASE_LOST unless that delivery is the latest and its time is not over. */
export async function respond(app: App, req: RespondTaskRequest, command: Command): Promise<Responded> {
  const { tx, caller, orgId, now } = command;
  const hold = holdOf(app, caller, orgId, req);
  const pulled = await lockPulledTask(tx, orgId, req.taskId);
  if (!pulled || pulled.row.instance === "" || pulled.row.token !== hold.token || pulled.row.stop_ms <= now)
    throw leaseLost();
  const usage = usageOf(req.usage);
  if (req.outcome.case === "failure") {
    const { message, retryable } = req.outcome.value;
    const said = `the agent says that it failed: ${message || "nothing more"}`;
    const cause = new AttemptFault("ADAPTER_ERROR", "failed", said, {
      usage,
      metadata: { retryable: String(retryable) },
    });
    return afterFailure(tx, app, pulled, cause, { hopeless: !retryable });
  }
  const output = outputOf(req.outcome.value as Value);
  const attempt = await attemptOf(tx, pulled);
  const wrong = whatIsWrong(app, attempt.contract, output, usage);
  if (wrong) return { ...(await afterFailure(tx, app, pulled, wrong.cause)), refused: wrong.refused };
  return complete(app, command, pulled, attempt, { output, usage });
}

async function complete(
  app: App,
  { tx }: Command,
  pulled: Parameters<typeof completed>[2],
  attempt: Attempt,
  answer: { readonly output: JsonValue; readonly usage: Usage },
): Promise<Followed> {
  if (!(await completed(tx, app, pulled, attempt, answer))) throw leaseLost();
  return { state: TaskState.COMPLETED };
}

/** Why an output is of no use, for the attempt and for the agent. */
function whatIsWrong(
  app: App,
  contract: ContractRow,
  output: JsonValue,
  usage: Usage,
): { readonly cause: AttemptFault; readonly refused: Refused } | undefined {
  const tooMuch = jsonFault(output);
  if (tooMuch) {
    const fault = new Fault("PAYLOAD_TOO_LARGE", `output: ${tooMuch.message}`, {
      field: "output",
      limit: String(tooMuch.limit),
      actual: String(tooMuch.actual),
    });
    const metadata = { detail: fault.message };
    return {
      cause: new AttemptFault("AGENT_BAD_RESPONSE", "unusable", fault.message, { metadata, usage }),
      refused: asRefused(fault),
    };
  }
  const violations = outputViolations(app, contract, output);
  if (violations.length === 0) return undefined;
  const fault = violationFault("output", violations, contract);
  const message = `the agent's output breaks the contract: ${fault.message}`;
  return {
    cause: new AttemptFault("CONTRACT_VIOLATION", "unusable", message, { metadata: { ...fault.metadata }, usage }),
    refused: asRefused(fault),
  };
}

const asRefused = (fault: Fault): Refused =>
  new Refused(fault.reason, fault.message, { ...fault.metadata }, { ...fault.details, cause: fault });

/** INVALID_REQUEST for what binary can say and JSON cannot. */
function outputOf(output: Value): JsonValue {
  try {
    return output.kind.case === undefined ? null : toJson(ValueSchema, output);
  } catch {
    throw badField("output", "holds a number that is not finite or a value that is not set, which JSON cannot");
  }
}

const usageOf = (usage: UsageMessage | undefined): Usage =>
  usage
    ? { inputTokens: Number(usage.inputTokens), outputTokens: Number(usage.outputTokens), model: usage.model }
    : noUsage;
