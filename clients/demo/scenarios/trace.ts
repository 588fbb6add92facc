/** A planner has a researcher and a reviewer work for it in one trace, which is watched live, and whose costs add up. */

import type { StepCost } from "../../../gen/moltwire/bus/v1/cost_pb.ts";
import { CostService } from "../../../gen/moltwire/bus/v1/cost_service_pb.ts";
import type { Task } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import type { Clients } from "../../cli/connect.ts";
import { paint, plain, wrap } from "../../cli/output.ts";
import { readTrace, traceHeadline } from "../../cli/trace.ts";
import { renderTree } from "../../cli/trace-tree.ts";
import { checkQuotes } from "../answer.ts";
import { compareTraces, openTail } from "../live.ts";
import { newTrace, plan } from "../planner.ts";
import type { Review } from "../review.ts";
import type { Who } from "../start.ts";
import { claim, same } from "./claim.ts";
import type { Outcome, World } from "./scenario.ts";

const maxTailMs = 5_000;
const micros = 1_000_000;

/** Has the question planned, researched and reviewed. */
export async function trace(world: World): Promise<Outcome> {
  const { admin, planner, made, root, question, reviewer, width } = world;
  const { researcher: researcherId, reviewer: reviewerId, planner: plannerId } = made.agentIds;
  const rates = [
    { agentId: researcherId, inputPer1000TokensMicros: 100_000n, outputPer1000TokensMicros: 300_000n },
    { agentId: reviewerId, inputPer1000TokensMicros: 2_000_000n, outputPer1000TokensMicros: 8_000_000n },
  ];
  await admin(CostService).setRates({ rates });
  const { traceId, traceparent } = newTrace();
  const tail = await openTail(planner, traceId);
  try {
    const { composed, review, pieces, tasks } = await plan(planner, traceparent, question);
    checkQuotes(root, composed.quotes);
    same(
      "who did the tasks",
      tasks.map(({ targetAgentId }) => targetAgentId),
      [...Array.from({ length: tasks.length - 1 }, () => researcherId), reviewerId],
    );
    const live = await tail.completed(tasks.length, maxTailMs);
    const { trace, events } = await readTrace(planner, "", traceId);
    compareTraces(live, events);
    const { tokens, credits } = await addUp(planner, traceId, tasks, rates);
    const names = new Map([
      [researcherId, "researcher"],
      [reviewerId, "reviewer"],
      [plannerId, "planner"],
    ]);
    return {
      proof: `${tasks.length} tasks of 2 agents in one trace; its ${events.length} steps came live as GetTrace reads them; the review streamed in ${pieces === 1 ? "1 piece" : `${pieces} pieces`}; ${tokens} tokens, ${credits} credits, the sum of its steps`,
      traceId,
      lines: [
        "",
        ...renderReview(review, reviewer, width),
        "",
        traceHeadline(trace, events.length),
        ...renderTree(events, { width, names }),
      ],
    };
  } finally {
    tail.close();
  }
}

type Price = { readonly agentId: string } & Record<"inputPer1000TokensMicros" | "outputPer1000TokensMicros", bigint>;

/** Works out the costs of the trace again, attempt by attempt; throws unless GetTraceCosts and the tasks say the same. */
async function addUp(planner: Clients, traceId: string, tasks: readonly Task[], rates: readonly Price[]) {
  const { steps, totals } = await planner(CostService).getTraceCosts({ traceId });
  same(
    "the tasks of the costs",
    steps.map(({ taskId }) => taskId),
    tasks.map(({ taskId }) => taskId),
  );
  const sum = (cost: (step: StepCost) => bigint) => steps.reduce((all, step) => all + cost(step), 0n);
  const tokens = sum(({ inputTokens, outputTokens }) => inputTokens + outputTokens);
  const cost = sum(({ agentId, inputTokens, outputTokens }) => {
    const rate = rates.find((each) => each.agentId === agentId)!;
    return (
      (inputTokens * rate.inputPer1000TokensMicros + outputTokens * rate.outputPer1000TokensMicros + 999n) / 1_000n
    );
  });
  claim(cost > 0n, "the trace cost nothing");
  same(
    "tokens and cost of the trace",
    [totals!.inputTokens + totals!.outputTokens, totals!.costMicros],
    [tokens, cost],
  );
  same(
    "the cost that its tasks tell",
    tasks.reduce((all, { costMicros }) => all + costMicros, 0n),
    cost,
  );
  return { tokens: tokens.toLocaleString("en"), credits: (Number(cost) / micros).toFixed(3) };
}

function renderReview(
  { verdict, missing, summary }: Review,
  { model, baseUrl, standIn }: Who,
  width: number,
): string[] {
  const open = missing.length > 0 ? `, nothing on ${missing.join(", ")}` : "";
  return [
    ...wrap(plain(`The reviewer says: ${verdict}${open}.`), width),
    ...wrap(plain(summary), width - 2).map((row) => `  ${row}`),
    `    ${paint("cyan", model)}  ${paint("dim", `${baseUrl}${standIn ? ", a stand-in that ranks sentences" : ""}`)}`,
  ];
}
