/** A task fails for good: it is kept with every attempt, tried again with another input in the same trace, and settled. */
import { toJson } from "@bufbuild/protobuf";
import { durationFromMs, ValueSchema } from "@bufbuild/protobuf/wkt";
import { type DeadLetter, DeadLetterStateSchema } from "../../../gen/moltwire/bus/v1/dead_letter_pb.ts";
import { DeadLetterService } from "../../../gen/moltwire/bus/v1/dead_letter_service_pb.ts";
import { nameIn, reasonName, stateName } from "../../cli/names.ts";
import { ask, outputOf, toValue, watch } from "../ask.ts";
import { same } from "./claim.ts";
import { addFlaky } from "./flaky-agent.ts";
import type { Outcome, World } from "./scenario.ts";

const maxRetries = 2;
const bad = { text: "a crash in here" };
const good = { text: "no accident in here" };
const note = "the text was wrong";

/** Sends a text that the agent crashes at, and mends it. */
export async function deadLetter(world: World): Promise<Outcome> {
  const { planner } = world;
  const backoff = durationFromMs(10);
  const { contractId, calls } = await addFlaky(world, "dead-letter", {
    retryPolicy: { maxRetries, backoff, maxBackoff: backoff },
  });
  const letters = planner(DeadLetterService);
  const { taskId, traceId, state } = await ask(planner, contractId, bad);
  same("the state of a task that crashes its agent", stateName(state), "FAILED");
  const listed = (await letters.listDeadLetters({ taskId })).deadLetters;
  same(
    "dead letters of the task",
    listed.map((letter) => letterState(letter)),
    ["OPEN"],
  );
  const { deadLetterId } = listed[0]!;
  const { envelope, attempts } = (await letters.getDeadLetter({ deadLetterId })).deadLetter!;
  same("the input that was kept", toJson(ValueSchema, envelope!.input!), bad);
  same(
    "why its attempts failed",
    attempts.map(({ error }) => error && reasonName(error.reason)),
    Array.from({ length: maxRetries + 1 }, () => "ADAPTER_ERROR"),
  );
  same("calls of the agent", await calls(), attempts.length);

  const retried = await letters.retryDeadLetter({ deadLetterId, input: toValue(good) });
  const retry = await watch(planner, retried.taskId);
  const output = outputOf<{ words: number }>(retry);
  same("what the retry answers", output, { words: good.text.split(" ").length });
  same("the trace of the retry", [retry.traceId, retry.retryOfDeadLetterId], [traceId, deadLetterId]);
  same("the dead letter after it", letterState(retried.deadLetter!), "RETRIED");
  await letters.resolveDeadLetter({ deadLetterId, note });
  const settled = (await letters.getDeadLetter({ deadLetterId })).deadLetter!;
  same(
    "the dead letter at the end",
    [letterState(settled), settled.resolveNote, settled.resolvedBy, settled.retryTaskIds],
    ["RESOLVED", note, world.made.agentIds.planner, [retry.taskId]],
  );
  return {
    proof: `FAILED after ${attempts.length} attempts, kept with its input; the retry with another input COMPLETED in the same trace; ${letterState(settled)}: “${settled.resolveNote}”`,
    traceId,
  };
}

const letterState = ({ state }: DeadLetter): string => nameIn(DeadLetterStateSchema, state);
