/** The happy path: one task, done by the researcher, its answer checked by the bus and its quotes by us. */
import { TraceEventKind } from "../../../gen/moltwire/bus/v1/trace_pb.ts";
import { paint, plain } from "../../cli/output.ts";
import { readTrace } from "../../cli/trace.ts";
import { checkQuotes, renderAnswer } from "../answer.ts";
import { ask, outputOf } from "../ask.ts";
import type { Answered } from "../research.ts";
import { claim } from "./claim.ts";
import type { Outcome, World } from "./scenario.ts";

/** Has the question answered. */
export async function research({ planner, made, root, question, width }: World): Promise<Outcome> {
  const task = await ask(planner, "research/answer", { question });
  const { quotes, searched } = outputOf<Answered>(task);
  claim(task.targetAgentId === made.agentIds.researcher, "another agent than the researcher did it");
  const { traceId } = task;
  const { events } = await readTrace(planner, "", traceId);
  const checked = events.find(({ kind }) => kind === TraceEventKind.OUTPUT_CHECKED);
  claim(checked !== undefined, "the trace does not say that the output was checked");
  checkQuotes(root, quotes);
  const [first] = quotes;
  return {
    proof: `${quotes.length} quotes out of ${searched} passages; the output fits the contract, and each quote stands in its file, first ${first!.source}:${first!.line}`,
    traceId,
    lines: ["", paint("bold", plain(question)), "", ...renderAnswer(quotes, width)],
  };
}
