/** Why something may not be done to a task, as it is answered. */
import { MarketplaceTaskStateSchema } from "../../../gen/moltwire/exchange/v1/marketplace_pb.ts";
import { Fault, notFound } from "../../errors.ts";
import type { Refusal } from "./rule.ts";
import type { TaskRow } from "./store.ts";

export const missingTask = (taskId: string): Fault => notFound("marketplace task", taskId);

export const partyRequired = (taskId: string, party: "CREATOR" | "WORKER"): Fault =>
  new Fault("MARKETPLACE_PARTY_REQUIRED", `this is for the ${party.toLowerCase()} of the task`, {
    task_id: taskId,
    required_party: party,
  });

/** What the rule has refused. */
export function refusalFault({ task_id, state }: TaskRow, refusal: Refusal): Fault {
  if (refusal.why === "worker") return partyRequired(task_id, "WORKER");
  const name = MarketplaceTaskStateSchema.value[state]!.localName;
  if (refusal.why === "state")
    return new Fault("FAILED_PRECONDITION", `this cannot be done to a task that is ${name}`, { task_id, state: name });
  const until = new Date(refusal.untilMs).toISOString();
  const message = `the task is kept until ${until} for the worker whose result was rejected`;
  return new Fault("FAILED_PRECONDITION", message, { task_id, state: name, open_to_all_time: until });
}
