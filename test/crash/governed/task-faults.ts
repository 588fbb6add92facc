/** What is wrong with one task, by all that is known of it. */
import { isDeepStrictEqual } from "node:util";
import { toJson } from "@bufbuild/protobuf";
import { timestampMs, ValueSchema } from "@bufbuild/protobuf/wkt";
import { ErrorReason } from "../../../gen/moltwire/api/v1/error_reason_pb.ts";
import { ApprovalState, ApprovalStateSchema } from "../../../gen/moltwire/bus/v1/approval_pb.ts";
import { TaskState } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import { TraceEventKind, TraceEventKindSchema } from "../../../gen/moltwire/bus/v1/trace_pb.ts";
import { ends, nameOf, stateName } from "../verify.ts";
import { endOf } from "../workload.ts";
import { costOf, estimatedTokens, terms, usageOf } from "./asks.ts";
import type { Story } from "./verify.ts";
import type { Arrival } from "./workers.ts";

type Expect = (holds: boolean, fault: string) => void;

/** Lost leases and retries of a task that is pulled, until it is given up. */
const mostPulls = 6;
const clockSlackMs = 5;

export function faultsOfTask(story: Story, arrivals: readonly Arrival[]): string[] {
  const { task, ask, steps } = story;
  const faults: string[] = [];
  const saw = arrivals.map(({ attempt, outcome, acknowledged }) => `${attempt} ${outcome}${acknowledged ? "!" : ""}`);
  const about = `${ask.kind} ${ask.orders.plan}, ${stateName(task)} after ${task.attempts} attempts; agents: ${saw.join(", ") || "nothing"}`;
  const expect: Expect = (holds, fault) => void (holds || faults.push(`${fault} (${about})`));
  expect(ends.has(task.state), "it has not ended");
  checkEnd(story, arrivals, expect);
  checkHandedOut(story, arrivals, expect);
  checkTrace(story, expect);
  checkSteps(story, arrivals, expect);
  checkApproval(story, arrivals, expect);
  expect(story.decisions > 0, "the decision log has nothing of it");
  const failed = task.state === TaskState.FAILED;
  expect(story.deadLetters.length === (failed ? 1 : 0), `it has ${story.deadLetters.length} dead letters`);
  for (const letter of story.deadLetters) {
    expect(letter.error?.reason === task.error?.reason, "its dead letter tells another reason");
    expect(letter.attempts.length === task.attempts, `its dead letter has ${letter.attempts.length} attempts`);
    const used = letter.attempts.map(({ usage }) => Number(usage?.inputTokens) + Number(usage?.outputTokens));
    const cost = steps.map(({ inputTokens, outputTokens }) => Number(inputTokens) + Number(outputTokens));
    expect(isDeepStrictEqual(used, cost), `its dead letter says ${used} tokens, its costs ${cost}`);
  }
  return faults;
}

/** How it ended is what clients were told, what the agents did, and what the contract lets happen. */
function checkEnd({ task, ask, isRetry }: Story, arrivals: readonly Arrival[], expect: Expect): void {
  const { repeatable, capability } = terms[ask.kind];
  const reason = task.error?.reason ?? 0;
  if (isRetry)
    expect(!ask.retry?.taskId || ask.retry.taskId === task.taskId, "another one was acknowledged as the retry");
  else {
    expect(!ask.taskId || ask.taskId === task.taskId, `a client was told it is ${ask.taskId}`);
    expect(!ask.ended || ask.ended === endOf(task), `a client was told ${ask.ended}`);
  }
  const last = arrivals.at(-1);
  if (task.state === TaskState.COMPLETED) {
    const output = task.output && toJson(ValueSchema, task.output);
    expect(isDeepStrictEqual(output, { n: ask.orders.n }), `its output is ${JSON.stringify(output)}`);
    expect(
      arrivals.some(({ outcome }) => outcome === "answered"),
      "no agent ever answered it",
    );
  }
  if (arrivals.some(({ acknowledged, outcome }) => acknowledged && outcome === "answered"))
    expect(task.state === TaskState.COMPLETED, "the agent's answer was acknowledged");
  if (task.state === TaskState.FAILED) {
    const told = reason === ErrorReason.ADAPTER_ERROR && last?.outcome === "failed" && terms[ask.kind].retries === 0;
    const unknown = reason === ErrorReason.OUTCOME_UNKNOWN && !repeatable;
    const worn = reason === ErrorReason.AGENT_UNREACHABLE && capability === "fetch" && repeatable;
    expect(told || unknown || (worn && task.attempts === mostPulls), "it must not fail so");
  }
  expect(task.state !== TaskState.REJECTED || ask.verdict?.word === "deny", "nobody denied it");
  expect(task.state !== TaskState.CANCELED, "nobody canceled it");
}

/** Work that may not be repeated is with an agent once, except after the agent said that it had failed. */
function checkHandedOut({ task, ask }: Story, arrivals: readonly Arrival[], expect: Expect): void {
  const attempts = arrivals.map(({ attempt }) => attempt);
  expect(new Set(attempts).size === attempts.length, "one attempt came twice");
  expect(
    attempts.every((attempt) => attempt <= task.attempts),
    "an agent saw more attempts than there are",
  );
  if (terms[ask.kind].repeatable) return;
  const again = arrivals.slice(0, -1).filter(({ outcome }) => outcome !== "failed");
  expect(again.length === 0, "not repeatable, and handed out again");
}

/** One acceptance, one reserve, a beginning of each attempt, one settlement, and one end, which comes last. */
function checkTrace({ task, events }: Story, expect: Expect): void {
  const of = (wanted: TraceEventKind) => events.filter(({ kind }) => kind === wanted);
  const story = events.map(({ kind }) => nameOf(TraceEventKindSchema, kind)).join(" ");
  const terminal = events.filter(({ kind }) => [...ends.values()].includes(kind));
  expect(terminal.length === 1 && terminal[0]!.kind === ends.get(task.state), `its trace ends otherwise: ${story}`);
  expect(events.at(-1) === terminal[0], `its trace goes on after the end: ${story}`);
  expect(of(TraceEventKind.ACCEPTED).length === 1, `it was not accepted once: ${story}`);
  const begun = [...of(TraceEventKind.DISPATCHED), ...of(TraceEventKind.DELIVERED)].flatMap(({ details }) =>
    details?.attempt === undefined ? [] : [Number(details.attempt)],
  );
  const wanted = Array.from({ length: task.attempts }, (_, i) => i + 1);
  expect(
    isDeepStrictEqual(
      begun.toSorted((a, b) => a - b),
      wanted,
    ),
    `attempts ${begun} have begun: ${story}`,
  );
  const budgeted = of(TraceEventKind.BUDGETED).map(({ details }) => String(details?.action));
  const [reserve, settle] = budgeted;
  const settledOnce = budgeted.length === 2 && reserve === "reserve" && (settle === "settle" || settle === "release");
  expect(settledOnce, `its budgets were changed by ${budgeted}`);
}

/** Each attempt counts once, with what the agent said, or with what was left of the reserve where nobody knows. */
function checkSteps({ task, ask, steps }: Story, arrivals: readonly Arrival[], expect: Expect): void {
  const numbers = steps.map(({ attempt }) => attempt);
  const wanted = Array.from({ length: task.attempts }, (_, i) => i + 1);
  expect(
    isDeepStrictEqual(
      numbers.toSorted((a, b) => a - b),
      wanted,
    ),
    `attempts ${numbers} are in its costs`,
  );
  let left = estimatedTokens;
  let cost = 0;
  for (const step of steps.toSorted((a, b) => a.attempt - b.attempt)) {
    const [input, output] = [Number(step.inputTokens), Number(step.outputTokens)];
    const isLast = step.attempt === task.attempts;
    const said = usageOf(ask.orders.n);
    if (step.estimated)
      expect(input + output === left, `attempt ${step.attempt} counts ${input + output} of ${left} left`);
    else if (isLast && task.state === TaskState.COMPLETED)
      expect(
        input === said.inputTokens && output === said.outputTokens,
        `${input}+${output} tokens, and it said other`,
      );
    else {
      const arrival = arrivals.find(({ attempt }) => attempt === step.attempt);
      expect(
        input + output === 0 && arrival?.outcome === "failed",
        `attempt ${step.attempt} counts ${input}+${output}`,
      );
    }
    expect(Number(step.costMicros) === costOf(input, output), `attempt ${step.attempt} costs ${step.costMicros}`);
    left = Math.max(0, left - input - output);
    cost += costOf(input, output);
  }
  const used = steps.reduce((sum, step) => sum + step.inputTokens + step.outputTokens, 0n);
  const told = (task.usage?.inputTokens ?? 0n) + (task.usage?.outputTokens ?? 0n);
  expect(told === used, `it says ${told} tokens, its attempts ${used}`);
  expect(Number(task.costMicros) === cost, `it says it cost ${task.costMicros}, its attempts ${cost}`);
}

/** Decided once, as the approver was told; what was approved ran after that and only then. */
function checkApproval({ task, ask, approvals, events }: Story, arrivals: readonly Arrival[], expect: Expect): void {
  const { guarded, repeatable } = terms[ask.kind];
  expect(approvals.length === (guarded ? 1 : 0), `it has ${approvals.length} approvals`);
  const steps = events.filter(({ kind }) => kind === TraceEventKind.APPROVED).length;
  const [approval] = approvals;
  if (!approval) {
    expect(steps === 0, "approved, and nobody had to");
    return;
  }
  const { verdict } = ask;
  const approved = approval.state === ApprovalState.APPROVED;
  const wanted = verdict?.word === "approve" ? ApprovalState.APPROVED : ApprovalState.DENIED;
  expect(
    verdict !== undefined && approval.state === wanted,
    `told to ${verdict?.word}: ${nameOf(ApprovalStateSchema, approval.state)}`,
  );
  expect(steps === (approved ? 1 : 0), `its trace has ${steps} approvals`);
  expect(approved || arrivals.length === 0, "not approved, and an agent had it");
  expect((task.state === TaskState.REJECTED) === !approved, "its state is not that of its approval");
  expect(repeatable || arrivals.length <= 1, "approved once, and run more than once");
  const sentMs = verdict?.sentMs ?? Number.POSITIVE_INFINITY;
  expect(
    arrivals.every(({ atMs }) => atMs >= sentMs),
    "an agent had it before it was approved",
  );
  expect(!approval.decideTime || timestampMs(approval.decideTime) >= sentMs - clockSlackMs, "decided too early");
}
