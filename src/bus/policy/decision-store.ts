import { create, type JsonObject, type MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import {
  type PolicyDecisionSchema,
  PolicyQuestionSchema,
  PolicyVerdict,
} from "../../../gen/moltwire/bus/v1/policy_pb.ts";
import type { App } from "../../app.ts";
import { join, type Queryable, type Sql, sql, type Tx } from "../../db/db.ts";
import type { Position } from "../../rpc/cursor.ts";
import { type Answer, toPolicyAnswer } from "./answer.ts";
import { toJsonContext } from "./context.ts";
import type { Decided } from "./decide-task.ts";
import type { Entity } from "./entity.ts";

/**
 * A row of the decision log. Each decision has the row `nth` 0, which holds its sealed body and names the first policy that determined it; for each
 * further such policy it has a row without a body, by which the decision is found by that policy. So one statement writes a decision with everything it is found by, and
 * a decision that one policy determined is one row.
 */
export type DecisionRow = {
  readonly org_id: string;
  readonly time_ms: number;
  readonly decision_id: string;
  readonly verdict: number;
  readonly task_id: string;
  readonly trace_id: string;
  readonly body: Uint8Array;
};

/** A thing as the log names it. */
type Named = { readonly type: string; readonly id: string; readonly orgId: string };

/** What a decision's body says, as JSON. */
export type DecisionBody = {
  readonly principal: Named;
  readonly action: string;
  readonly resource: Named;
  readonly context: JsonObject;
  readonly answer: Answer;
};

/** Where decisions belong. */
export type DecidedAt = {
  readonly orgId: string;
  readonly traceId: string;
  /** Empty for what is no task. */
  readonly taskId: string;
  readonly now: number;
};

const first = sql`d.org_id, d.time_ms, d.decision_id, d.verdict, d.task_id, d.trace_id, d.body`;
const columns = sql`org_id, time_ms, decision_id, nth, policy_id, verdict, agent_id, action, resource, task_id, trace_id, body`;

/** SQLite takes 32,766 parameters in a statement, PostgreSQL 65,535. */
const rowsAtOnce = 2_000;

/** Writes decisions into the log, at least one, in the transaction of what they decided on: one statement, unless they are very many. Gives their ids. */
export async function recordDecisions(
  tx: Tx,
  app: Pick<App, "ids" | "vault">,
  at: DecidedAt,
  decisions: readonly Decided[],
): Promise<string[]> {
  const ids = decisions.map(() => app.ids.next("dec"));
  const rows = decisions.flatMap((decided, index) => rowsOf(app, at, ids[index]!, decided));
  for (let from = 0; from < rows.length; from += rowsAtOnce)
    await tx.run(sql`insert into policy_decision (${columns}) values ${join(rows.slice(from, from + rowsAtOnce))}`);
  return ids;
}

function rowsOf({ vault }: Pick<App, "vault">, at: DecidedAt, id: string, { question, answer }: Decided): Sql[] {
  const { principal, action, resource, context } = question;
  const body: DecisionBody = {
    principal: named(principal),
    action,
    resource: named(resource),
    context: toJsonContext(context),
    answer,
  };
  const sealed = vault.seal(decisionPlace(at.orgId, id), Buffer.from(JSON.stringify(body)));
  const agentId = principal.type === "Agent" ? principal.id : "";
  const policyIds = answer.determining.length === 0 ? [""] : answer.determining.map(({ policyId }) => policyId);
  return policyIds.map(
    (
      policyId,
      nth,
    ) => sql`(${at.orgId}, ${at.now}, ${id}, ${nth}, ${policyId}, ${PolicyVerdict[answer.verdict]}, ${agentId}, ${action},
      ${resourceText(resource)}, ${at.taskId}, ${at.traceId}, ${nth === 0 ? sealed : null})`,
  );
}

const named = ({ type, id, orgId }: Entity): Named => ({ type, id, orgId });
/** Where the body of a decision lies. */
export const decisionPlace = (orgId: string, id: string) => ({ orgId, table: "policy_decision", id });

/** A resource in the column that decisions are found by. */
export const resourceText = ({ type, id, orgId }: Named): string => JSON.stringify([type, id, orgId]);

export type DecisionFilter = {
  readonly verdict: number;
  readonly agentId: string;
  readonly action: string;
  /** As {@link resourceText}. */
  readonly resource: string;
  readonly policyId: string;
  readonly taskId: string;
  readonly traceId: string;
  /** Inclusive. */
  readonly startMs?: number | undefined;
  /** Exclusive. */
  readonly endMs?: number | undefined;
};

/**
 * Newest first, along one index: that of the filter which leaves the fewest, in the order task, trace, policy, resource, agent, verdict, action; without any, the
 * primary key. Each of them goes on with time and id, so that a page is a walk from where the last one ended. The other filters look at what
 * the walk meets; an expression keeps the engine from walking their indexes instead.
 */
export function listDecisions(
  db: Queryable,
  orgId: string,
  filter: DecisionFilter,
  after: Position | undefined,
  limit: number,
): Promise<DecisionRow[]> {
  const wanted = (["taskId", "traceId", "policyId", "resource", "agentId", "verdict", "action"] as const).filter(
    (name) => filter[name],
  );
  const [walked] = wanted;
  const fits = wanted.map((name) => {
    if (name === walked) return sql`and ${walks[name]} = ${filter[name]}`;
    return name === "policyId" ? determinedBy(filter.policyId) : sql`and ${looks[name]} = ${filter[name]}`;
  });
  const range = [
    // The index of policies has all rows of a decision, the others only the first.
    ...(walked === "policyId" ? [sql`and d.policy_id <> ''`] : [sql`and d.nth = 0`]),
    ...(walked === "taskId" ? [sql`and d.task_id <> ''`] : []),
    ...(walked === "agentId" ? [sql`and d.agent_id <> ''`] : []),
    ...(filter.startMs === undefined ? [] : [sql`and d.time_ms >= ${filter.startMs}`]),
    ...(filter.endMs === undefined || after ? [] : [sql`and d.time_ms < ${filter.endMs}`]),
    ...(after ? [sql`and (d.time_ms, d.decision_id) < (${after[0]!}, ${after[1]!})`] : []),
  ];
  const where = sql`d.org_id = ${orgId} ${join([...fits, ...range], " ")}`;
  const newest = sql`order by d.time_ms desc, d.decision_id desc limit ${limit}`;
  if (walked !== "policyId")
    return db.all<DecisionRow>(sql`select ${first} from policy_decision d where ${where} ${newest}`);
  return db.all<DecisionRow>(sql`
    select f.org_id, f.time_ms, f.decision_id, f.verdict, f.task_id, f.trace_id, f.body from (select d.org_id, d.time_ms, d.decision_id from policy_decision d where ${where} ${newest}) found
    join policy_decision f on f.org_id = found.org_id and f.time_ms = found.time_ms and f.decision_id = found.decision_id and f.nth = 0
    order by f.time_ms desc, f.decision_id desc`);
}

/** By the primary key. */
const determinedBy = (policyId: string): Sql => sql`and exists (
  select 1 from policy_decision p where p.org_id = d.org_id and p.time_ms = d.time_ms and p.decision_id = d.decision_id and p.policy_id || '' = ${policyId})`;

type Filtered = Exclude<keyof DecisionFilter, "startMs" | "endMs">;
const walks: Readonly<Record<Filtered, Sql>> = {
  taskId: sql`d.task_id`,
  traceId: sql`d.trace_id`,
  policyId: sql`d.policy_id`,
  resource: sql`d.resource`,
  agentId: sql`d.agent_id`,
  verdict: sql`d.verdict`,
  action: sql`d.action`,
};
const looks: Readonly<Record<Exclude<Filtered, "policyId">, Sql>> = {
  taskId: sql`d.task_id || ''`,
  traceId: sql`d.trace_id || ''`,
  resource: sql`d.resource || ''`,
  agentId: sql`d.agent_id || ''`,
  verdict: sql`d.verdict + 0`,
  action: sql`d.action || ''`,
};

/** What a decision's body says. */
export const bodyOf = ({ vault }: Pick<App, "vault">, row: DecisionRow): DecisionBody =>
  JSON.parse(Buffer.from(vault.open(decisionPlace(row.org_id, row.decision_id), row.body)).toString()) as DecisionBody;

export function toDecision(row: DecisionRow, body: DecisionBody): MessageInitShape<typeof PolicyDecisionSchema> {
  const { principal, action, resource, context, answer } = body;
  return {
    orgId: row.org_id,
    decisionId: row.decision_id,
    time: timestampFromMs(row.time_ms),
    question: create(PolicyQuestionSchema, { principal, action, resource, context }),
    answer: toPolicyAnswer(answer),
    policySetRevision: BigInt(answer.setRevision),
    traceId: row.trace_id,
    taskId: row.task_id,
  };
}
