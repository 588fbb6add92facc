/** How budgets and costs stand, against what the attempts used. */
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { type Budget, BudgetPeriod, BudgetScope } from "../../../gen/moltwire/bus/v1/budget_pb.ts";
import { pages } from "../verify.ts";
import { estimatedTokens, model, type Stage } from "./asks.ts";
import type { Organization } from "./set-up.ts";
import type { Story } from "./verify.ts";

type Used = { readonly tokens: number; readonly micros: number };

const dayMs = 86_400_000;

/** Nothing is reserved, and spent is what the attempts used, in every budget. Gives the tokens that were used in all. */
export async function verifyBudgets(
  { admin, book }: Stage,
  org: Organization,
  stories: readonly Story[],
  problems: string[],
): Promise<number> {
  const read = async (scope: BudgetScope, period: BudgetPeriod, subjectId = "") =>
    (await admin.budgets.getBudget({ scope, period, subjectId })).budget!;
  const hold = (name: string, { tokens, credits }: Budget, used: Used) => {
    const seen = {
      reserved: Number(tokens?.reserved),
      spent: Number(tokens?.spent),
      reservedMicros: Number(credits?.reservedMicros ?? 0),
      spentMicros: Number(credits?.spentMicros ?? used.micros),
    };
    const right = seen.reserved === 0 && seen.spent === used.tokens && seen.reservedMicros === 0;
    if (!right || seen.spentMicros !== used.micros)
      problems.push(`the budget of ${name} is ${JSON.stringify(seen)}, attempts used ${JSON.stringify(used)}`);
  };
  const ofDay = await read(BudgetScope.ORG, BudgetPeriod.DAY);
  const dayStart = timestampMs(ofDay.resetTime!) - dayMs;
  hold("the day", ofDay, sum(stories.filter(({ task }) => timestampMs(task.createTime!) >= dayStart)));
  const of = (agentId: string) => stories.filter(({ task }) => task.callerAgentId === agentId);
  hold("the caller", await read(BudgetScope.AGENT, BudgetPeriod.TOTAL, org.callerId), sum(of(org.callerId)));
  const frugal = await read(BudgetScope.AGENT, BudgetPeriod.TOTAL, org.frugalId);
  hold("the frugal agent", frugal, sum(of(org.frugalId)));
  hold("the model", await read(BudgetScope.MODEL, BudgetPeriod.TOTAL, model), sum(stories, model));
  // What admission let in is within the limit; only a task that was done again uses more than it reserved.
  const overrun = of(org.frugalId).reduce((all, story) => all + Math.max(0, sum([story]).tokens - estimatedTokens), 0);
  if (Number(frugal.tokens?.spent) > book.allowance + overrun)
    problems.push(`the frugal agent spent ${frugal.tokens?.spent} of ${book.allowance} and an overrun of ${overrun}`);
  const total = sum(stories);
  const days = await pages(async (pageToken) => {
    const page = await admin.costs.listAgentCosts({ pageSize: 250, pageToken });
    return { items: page.agentCosts, next: page.nextPageToken };
  });
  const counted = days.reduce(
    (all, { totals }) => ({
      attempts: all.attempts + Number(totals?.attempts),
      tokens: all.tokens + Number(totals?.inputTokens) + Number(totals?.outputTokens),
      micros: all.micros + Number(totals?.costMicros),
    }),
    { attempts: 0, tokens: 0, micros: 0 },
  );
  const attempts = stories.reduce((all, { task }) => all + task.attempts, 0);
  if (counted.attempts !== attempts || counted.tokens !== total.tokens || counted.micros !== total.micros)
    problems.push(
      `agents are counted ${JSON.stringify(counted)}, attempts are ${attempts} and ${JSON.stringify(total)}`,
    );
  return total.tokens;
}

const sum = (stories: readonly Story[], ofModel?: string): Used =>
  stories
    .flatMap(({ steps }) => steps)
    .filter((step) => ofModel === undefined || step.model === ofModel)
    .reduce(
      (all, { inputTokens, outputTokens, costMicros }) => ({
        tokens: all.tokens + Number(inputTokens) + Number(outputTokens),
        micros: all.micros + Number(costMicros),
      }),
      { tokens: 0, micros: 0 },
    );
