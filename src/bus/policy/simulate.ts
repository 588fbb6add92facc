/** What would have come of recorded decisions, with other policies. */
import { setImmediate } from "node:timers/promises";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { PolicyVerdict } from "../../../gen/moltwire/bus/v1/policy_pb.ts";
import type {
  DecisionWindow,
  PolicySimulationSchema,
  SimulationExampleSchema,
} from "../../../gen/moltwire/bus/v1/policy_service_pb.ts";
import type { App } from "../../app.ts";
import type { Queryable } from "../../db/db.ts";
import { Fault } from "../../errors.ts";
import type { Query } from "../../rpc/query.ts";
import { type Answer, toPolicyAnswer, type Verdict } from "./answer.ts";
import { bounded } from "./bounded.ts";
import { readContext } from "./context.ts";
import {
  bodyOf,
  type DecisionBody,
  type DecisionFilter,
  type DecisionRow,
  listDecisions,
  toDecision,
} from "./decision-store.ts";
import type { Question } from "./policies.ts";
import type { PolicySet } from "./policy-set.ts";
import { type Found, findEntity } from "./resolve-entity.ts";

const maxWindowMs = 31 * 86_400_000;
const defaultMaxDecisions = 10_000;
const defaultMaxExamples = 5;
const pageSize = 500;
/** How long a simulation keeps the process to itself before others have their turn. */
const sliceMs = 10;
const maxEntities = 10_000;
const maxAnswers = 20_000;
const maxAnswerWeight = 16 * 1_048_576;
/** Simulations under way in this process. */
const maxAtOnce = 2;

/** How many simulations of this process are under way. */
export type Running = { count: number };

type Sets = { readonly current: PolicySet; readonly draft: PolicySet | undefined };
type Example = MessageInitShape<typeof SimulationExampleSchema>;
type Outcome = {
  readonly verdicts: readonly [Verdict, Verdict, Verdict];
  decisions: number;
  readonly examples: Example[];
};

/**
 * Decides recorded decisions again, newest first: bounded in number, in memory and in how many run at once, and in slices between which the process does
 * other things. INVALID_POLICY for a window that is empty or too long; OVERLOADED when others are under way.
 */
export async function simulate(
  app: App,
  window: DecisionWindow,
  { db, orgId, now }: Pick<Query, "db" | "orgId" | "now">,
  sets: Sets,
  running: Running,
  signal: AbortSignal,
): Promise<MessageInitShape<typeof PolicySimulationSchema>> {
  const filter = filterOf(window, now);
  if (running.count >= maxAtOnce)
    throw new Fault("OVERLOADED", "other simulations are under way: try again", {}, { retryAfterMs: 1_000 });
  running.count++;
  try {
    return await run(app, db, orgId, window, filter, sets, signal);
  } finally {
    running.count--;
  }
}

function filterOf(window: DecisionWindow, now: number): DecisionFilter {
  const startMs = timestampMs(window.startTime!);
  const endMs = window.endTime ? timestampMs(window.endTime) : now;
  const fault = (field: string, message: string) =>
    new Fault("INVALID_POLICY", `${field}: ${message}`, { field }, { fields: [{ field, description: message }] });
  if (endMs <= startMs) throw fault("window.end_time", "has to be after start_time");
  if (endMs - startMs > maxWindowMs) throw fault("window.start_time", "at most 31 days before the end");
  const { action, agentId, verdict } = window;
  return { verdict, agentId, action, resource: "", policyId: "", taskId: "", traceId: "", startMs, endMs };
}

async function run(
  app: App,
  db: Queryable,
  orgId: string,
  window: DecisionWindow,
  filter: DecisionFilter,
  { current, draft }: Sets,
  signal: AbortSignal,
): Promise<MessageInitShape<typeof PolicySimulationSchema>> {
  const { policies } = app;
  const most = window.maxDecisions || defaultMaxDecisions;
  const outcomes = new Map<string, Outcome>();
  const entities = bounded<Found>(maxEntities, maxEntities);
  // Apart from the answers that the tasks of everybody are decided by.
  const memo = bounded<Answer>(maxAnswers, maxAnswerWeight);
  let [decisions, changed, undecidable] = [0, 0, 0];
  let last: DecisionRow | undefined;
  let truncated = false;
  let sliceEnd = performance.now() + sliceMs;
  for (;;) {
    const rows = await listDecisions(db, orgId, filter, last && [last.time_ms, last.decision_id], pageSize);
    for (const row of rows) {
      if (decisions === most) {
        truncated = true;
        break;
      }
      if (performance.now() > sliceEnd) {
        await setImmediate();
        signal.throwIfAborted();
        app.stopping.throwIfAborted();
        sliceEnd = performance.now() + sliceMs;
      }
      last = row;
      decisions++;
      const body = bodyOf(app, row);
      const question = await askAgain(app, db, orgId, body, row.time_ms, entities);
      if (!question) {
        undecidable++;
        continue;
      }
      const now = policies.answer(current, question, memo);
      const then = draft && policies.answer(draft, question, memo);
      const verdicts = [body.answer.verdict, now.verdict, (then ?? now).verdict] as const;
      if (verdicts[2] !== verdicts[0]) changed++;
      count(outcomes, verdicts, window.maxExamples || defaultMaxExamples, () => ({
        recorded: toDecision(row, body),
        currentAnswer: toPolicyAnswer(now),
        ...(then && { draftAnswer: toPolicyAnswer(then) }),
      }));
    }
    if (truncated || rows.length < pageSize) break;
  }
  return {
    decisions: BigInt(decisions),
    changed: BigInt(changed),
    undecidable: BigInt(undecidable),
    truncated,
    ...(last && { oldestTime: timestampFromMs(last.time_ms) }),
    outcomes: [...outcomes.values()].toSorted((a, b) => b.decisions - a.decisions).map(toOutcome),
  };
}

/** The recorded question with the things as they are now; undefined when one is gone, or the schema has moved on from it. */
async function askAgain(
  { policies }: App,
  db: Queryable,
  orgId: string,
  { principal: who, action, resource: what, context: recorded }: DecisionBody,
  timeMs: number,
  entities: ReturnType<typeof bounded<Found>>,
): Promise<Question | undefined> {
  const shape = policies.vocabulary.actions.get(action);
  if (!shape) return undefined;
  const version = typeof recorded.contract_version === "string" ? recorded.contract_version : "";
  const find = async (named: { readonly type: string; readonly id: string; readonly orgId: string }) => {
    const key = JSON.stringify([named, named.type === "Contract" ? version : ""]);
    const known = entities.get(key);
    if (known) return known;
    const found = await findEntity(db, orgId, { ...named, version });
    if (found) entities.set(key, found, 1);
    return found;
  };
  const [principal, resource] = [await find(who), await find(what)];
  if (!principal || !resource) return undefined;
  try {
    return {
      principal: principal.entity,
      action,
      resource: resource.entity,
      related: resource.related,
      context: readContext(recorded, action, shape, timeMs, "context"),
    };
  } catch (error) {
    if (error instanceof Fault) return undefined;
    throw error;
  }
}

function count(
  outcomes: Map<string, Outcome>,
  verdicts: Outcome["verdicts"],
  most: number,
  example: () => Example,
): void {
  const key = verdicts.join(" ");
  const outcome = outcomes.get(key) ?? { verdicts, decisions: 0, examples: [] };
  outcome.decisions++;
  if (new Set(verdicts).size > 1 && outcome.examples.length < most) outcome.examples.push(example());
  outcomes.set(key, outcome);
}

const toOutcome = ({ verdicts: [recorded, current, draft], decisions, examples }: Outcome) => ({
  recordedVerdict: PolicyVerdict[recorded],
  currentVerdict: PolicyVerdict[current],
  draftVerdict: PolicyVerdict[draft],
  decisions: BigInt(decisions),
  examples,
});
