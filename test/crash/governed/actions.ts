/** What clients do: ask, decide, retry; each once or again after its answer was lost. */
import { fromJson, type JsonValue } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import { ApprovalState, ApprovalStateSchema } from "../../../gen/moltwire/bus/v1/approval_pb.ts";
import { type Task, TaskState } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import { answered } from "../ledger.ts";
import { nameOf } from "../verify.ts";
import { attempt, endOf } from "../workload.ts";
import type { Act, Ask, Kind, Stage, Verdict } from "./asks.ts";

const callMs = 45_000;

type How = { readonly phase?: string; readonly by?: Ask["by"]; readonly blocking?: boolean };

/** A new task. Resolves when it was answered, or the server is gone. */
export async function ask(stage: Stage, kind: Kind, plan: readonly Act[], how: How = {}): Promise<Ask> {
  const { phase = "", by = "caller", blocking = false } = how;
  const n = stage.book.asks.length + 1;
  const made: Ask = { kind, orders: { n, plan, slowMs: stage.choose.int(10, 300) }, phase, by, blocking };
  stage.book.asks.push(made);
  await send(stage, made);
  return made;
}

/** Sends it, the first time or again. */
export const send = (stage: Stage, ask: Ask): Promise<void> =>
  attempt(stage.life, stage.book, async () => {
    const { kind, orders, by, blocking } = ask;
    try {
      const { task } = await stage[by].bus.submitTask(
        {
          contractId: kind,
          contractVersion: "1.0.0",
          input: fromJson(ValueSchema, orders as unknown as JsonValue),
          returnImmediately: !blocking,
          labels: { n: String(orders.n) },
        },
        withKey(`ask-${orders.n}`),
      );
      note(stage, ask, task!);
    } catch (error) {
      if (by !== "frugal" || !answered(error)?.includes("BUDGET_EXCEEDED")) throw error;
      ask.refused = true;
    }
  });

function note({ book }: Stage, ask: Ask, task: Task): void {
  const { n } = ask.orders;
  if (ask.taskId !== undefined && ask.taskId !== task.taskId)
    book.surprises.push(`ask ${n} was ${ask.taskId} and is now ${task.taskId}`);
  ask.taskId = task.taskId;
  if (task.approvalId) ask.approvalId = task.approvalId;
  if (task.state < TaskState.COMPLETED) {
    if (ask.blocking) book.surprises.push(`${task.taskId} was answered before it had ended`);
    return;
  }
  const end = endOf(task);
  if (ask.ended !== undefined && ask.ended !== end)
    book.surprises.push(`${task.taskId} ended as ${ask.ended} and now as ${end}`);
  ask.ended = end;
}

/** Approves or denies what waits, the first time or again. */
export async function decide(stage: Stage, ask: Ask, word: Verdict): Promise<void> {
  const verdict = (ask.verdict ??= { word, sentMs: Date.now(), acknowledged: false });
  await attempt(stage.life, stage.book, async () => {
    const { approval } = await stage.admin.approvals[word]({ approvalId: ask.approvalId! }, withKey(undefined));
    verdict.acknowledged = true;
    const wanted = word === "approve" ? ApprovalState.APPROVED : ApprovalState.DENIED;
    if (approval?.state !== wanted)
      stage.book.surprises.push(
        `${ask.approvalId}: told to ${word}, and it is ${nameOf(ApprovalStateSchema, approval?.state ?? 0)}`,
      );
  });
}

/** Has the dead letter of a failed task tried again with another plan, the first time or again. */
export async function retry(stage: Stage, ask: Ask, deadLetterId: string): Promise<void> {
  const made = (ask.retry ??= { deadLetterId });
  const input = fromJson(ValueSchema, { ...ask.orders, plan: ["slow"] } as unknown as JsonValue);
  await attempt(stage.life, stage.book, async () => {
    const { taskId } = await stage.admin.deadLetters.retryDeadLetter(
      { deadLetterId, input },
      withKey(`retry-${ask.orders.n}`),
    );
    if (made.taskId !== undefined && made.taskId !== taskId)
      stage.book.surprises.push(`the retry of ${deadLetterId} was ${made.taskId} and is now ${taskId}`);
    made.taskId = taskId;
  });
}

/** All whose answer was lost is sent again, so that the client learns what became of it. */
export async function repeatLost(stage: Stage): Promise<void> {
  const { book } = stage;
  const again = async (call: Promise<void>) => {
    await call;
    if (!stage.life.killed) book.repeats++;
  };
  await Promise.all(
    book.asks.flatMap((ask) => {
      const calls: Promise<void>[] = [];
      if (!ask.taskId && !ask.refused) calls.push(again(send(stage, ask)));
      if (ask.verdict && !ask.verdict.acknowledged) calls.push(again(decide(stage, ask, ask.verdict.word)));
      if (ask.retry && !ask.retry.taskId) calls.push(again(retry(stage, ask, ask.retry.deadLetterId)));
      return calls;
    }),
  );
}

export const withKey = (idempotencyKey: string | undefined) => ({
  signal: AbortSignal.timeout(callMs),
  ...(idempotencyKey && { headers: { "idempotency-key": idempotencyKey } }),
});
