import {
  create,
  fromBinary,
  fromJson,
  fromJsonString,
  type JsonValue,
  type MessageInitShape,
  toBinary,
} from "@bufbuild/protobuf";
import { timestampFromMs, ValueSchema } from "@bufbuild/protobuf/wkt";
import { ErrorReason } from "../../gen/moltwire/api/v1/error_reason_pb.ts";
import { ReceiptSchema } from "../../gen/moltwire/bus/v1/receipt_pb.ts";
import { TaskErrorSchema, type TaskSchema, TaskState } from "../../gen/moltwire/bus/v1/task_pb.ts";
import type { App } from "../app.ts";
import { type Queryable, type Sql, sql, type Tx } from "../db/db.ts";
import type { ReasonName } from "../errors.ts";
import type { Position } from "../rpc/cursor.ts";
import type { Usage } from "./adapter.ts";
import { plus } from "./cost/saturated.ts";

/** A task as it is stored: `state` is the number of TaskState; input, output and error are sealed. */
export type TaskRow = {
  readonly org_id: string;
  readonly task_id: string;
  readonly state: number;
  readonly namespace: string;
  readonly contract_id: string;
  readonly contract_version: string;
  readonly caller_agent_id: string;
  readonly caller_key_id: string;
  readonly target_org_id: string;
  readonly target_agent_id: string;
  /** The agent that the caller insists on, or empty. */
  readonly wanted_agent_id: string;
  readonly input: Uint8Array;
  readonly output: Uint8Array | null;
  readonly error: Uint8Array | null;
  readonly attempts: number;
  readonly input_tokens: number;
  readonly output_tokens: number;
  readonly model: string;
  readonly trace_id: string;
  readonly span_id: string;
  readonly parent_span_id: string;
  readonly labels: string;
  readonly create_ms: number;
  readonly end_ms: number | null;
  readonly deadline_ms: number | null;
  /** The server that works on it, or "pull" for a task of agents that pull, and the fencing token of its lease. */
  readonly lease_owner: string;
  readonly lease_token: number;
  /** Whether an agent may have it right now; see {@link InFlight}. */
  readonly in_flight: number;
  /** The version or range that was asked for. */
  readonly requested_version: string;
  /** The way it came: "bus", "gateway" or "listing". */
  readonly origin: string;
  readonly grant_id: string;
  /** The approval it waits or waited for, or empty. */
  readonly approval_id: string;
  readonly retry_of_dead_letter_id: string;
  readonly cost_micros: number;
  /** What it costs: the message Receipt as JSON; empty: nothing. */
  readonly receipt: string;
  /** Whether its end has budgets to settle. */
  readonly budgeted: number;
};

/** What a list answers of a task: all but the payloads, and what lies behind them. */
export type TaskSummaryRow = Omit<TaskRow, "input" | "output" | "budgeted">;

/**
 * Whether an agent may have a task: 0 none has; 1 one may, and doing it twice does no harm; 2 one may, and nobody may do it again. It is kept
 * of each attempt, since a fallback can be repeatable where the task's own contract is not, and the other way round.
 */
export const InFlight = { none: 0, repeatable: 1, once: 2 } as const;

/** Why a task did not complete. */
export type TaskFault = {
  readonly reason: ReasonName;
  readonly message: string;
  readonly metadata: Readonly<Record<string, string>>;
};

/** Who holds a task: an update by anybody else changes nothing. */
export type Hold = { readonly orgId: string; readonly taskId: string; readonly token: number };

const summaryColumns = sql`org_id, task_id, state, namespace, contract_id, contract_version, caller_agent_id, caller_key_id, target_org_id, target_agent_id,
  wanted_agent_id, error, attempts, input_tokens, output_tokens, model, trace_id, span_id, parent_span_id, labels, create_ms, end_ms, deadline_ms, lease_owner, lease_token, in_flight,
  requested_version, origin, grant_id, approval_id, retry_of_dead_letter_id, cost_micros, receipt`;
const columns = sql`${summaryColumns}, input, output, budgeted`;

/** See TaskState: below 4 a task is not terminal. */
export const isTerminal = (state: number): boolean => state >= TaskState.COMPLETED;

export const insertTask = (tx: Tx, row: TaskRow): Promise<number> =>
  tx.run(sql`
    insert into task (${columns})
    values (${row.org_id}, ${row.task_id}, ${row.state}, ${row.namespace}, ${row.contract_id}, ${row.contract_version}, ${row.caller_agent_id},
      ${row.caller_key_id}, ${row.target_org_id}, ${row.target_agent_id}, ${row.wanted_agent_id}, ${row.error}, ${row.attempts}, ${row.input_tokens},
      ${row.output_tokens}, ${row.model}, ${row.trace_id}, ${row.span_id}, ${row.parent_span_id}, ${row.labels}, ${row.create_ms}, ${row.end_ms},
      ${row.deadline_ms}, ${row.lease_owner}, ${row.lease_token}, ${row.in_flight}, ${row.requested_version},
      ${row.origin}, ${row.grant_id}, ${row.approval_id}, ${row.retry_of_dead_letter_id}, ${row.cost_micros}, ${row.receipt}, ${row.input}, ${row.output},
      ${row.budgeted})`);

/** Writes what a task costs, in the transaction in which it was accepted or ends. */
export const putReceipt = (tx: Tx, orgId: string, taskId: string, receipt: string): Promise<number> =>
  tx.run(sql`update task set receipt = ${receipt} where org_id = ${orgId} and task_id = ${taskId}`);

export const findTask = (db: Queryable, orgId: string, taskId: string): Promise<TaskRow | undefined> =>
  db.one<TaskRow>(sql`select ${columns} from task where org_id = ${orgId} and task_id = ${taskId}`);

/** Without its payloads. */
export const findTaskSummary = (db: Queryable, orgId: string, taskId: string): Promise<TaskSummaryRow | undefined> =>
  db.one<TaskSummaryRow>(sql`select ${summaryColumns} from task where org_id = ${orgId} and task_id = ${taskId}`);

export const lockTask = (tx: Tx, orgId: string, taskId: string): Promise<TaskRow | undefined> =>
  tx.one<TaskRow>(
    sql`select ${columns} from task where org_id = ${orgId} and task_id = ${taskId} ${tx.dialect.forUpdate}`,
  );

/** The state alone: what a waiting caller reads at each ring. */
export const taskState = async (db: Queryable, orgId: string, taskId: string): Promise<number | undefined> =>
  (await db.one<{ state: number }>(sql`select state from task where org_id = ${orgId} and task_id = ${taskId}`))?.state;

const held = ({ orgId, taskId, token }: Hold): Sql =>
  sql`org_id = ${orgId} and task_id = ${taskId} and lease_token = ${token} and state < ${TaskState.COMPLETED}`;

/** Whether a task is still this holder's and not terminal. */
export const isHeld = async (db: Queryable, hold: Hold): Promise<boolean> =>
  (await db.one(sql`select 1 as found from task where ${held(hold)}`)) !== undefined;

/** As {@link isHeld}, and so until the transaction's end. */
export const lockHeld = async (tx: Tx, hold: Hold): Promise<boolean> =>
  (await tx.one(sql`select 1 as found from task where ${held(hold)} ${tx.dialect.forUpdate}`)) !== undefined;

/**
 * An attempt is about to begin: gives its number, or undefined when the task is no longer held. `circuit` is null, or how the circuit of the agent
 * stands if it is not closed (2 or 3, see CircuitState): it comes along by its key, since a statement of its own would cost every attempt a
 * round trip.
 */
export const beginAttempt = (
  tx: Tx,
  hold: Hold,
  agentId: string,
  inFlight: number,
): Promise<{ readonly attempts: number; readonly circuit: number | null } | undefined> =>
  tx.one(sql`
    update task set state = ${TaskState.WORKING}, attempts = attempts + 1, target_agent_id = ${agentId}, in_flight = ${inFlight} where ${held(hold)}
    returning attempts, (
      select c.state from agent_circuit c where c.org_id = ${hold.orgId} and c.agent_id = ${agentId} and c.state <> 1) as circuit`);

/** A task that waited to be pulled is handed out, which begins an attempt: gives it as it is now. */
export const beginDelivery = (
  tx: Tx,
  orgId: string,
  taskId: string,
  agentId: string,
  inFlight: number,
): Promise<TaskRow | undefined> =>
  tx.one<TaskRow>(sql`
    update task set state = ${TaskState.WORKING}, attempts = attempts + 1, target_agent_id = ${agentId}, in_flight = ${inFlight}, lease_token = lease_token + 1
    where org_id = ${orgId} and task_id = ${taskId} and state < ${TaskState.COMPLETED} returning ${columns}`);

/** The latest attempt of a task: its number, its agent, and whether it is the probe of that agent's circuit. */
export type LatestAttempt = { readonly attempts: number; readonly target_agent_id: string; readonly probe: number };

/** By the key of the agent's circuit, so that a success need not look for it in a statement of its own. */
const latestAttempt = sql`attempts, target_agent_id, (
  select count(*) from agent_circuit c
  where c.org_id = task.org_id and c.agent_id = task.target_agent_id and c.probe_task_id = task.task_id and c.probe_attempt = task.attempts) as probe`;

/** An attempt has ended and another may follow; undefined when the task is no longer held. */
export const endAttempt = (tx: Tx, hold: Hold, used: Used): Promise<LatestAttempt | undefined> =>
  tx.one<LatestAttempt>(
    sql`update task set in_flight = 0, ${consumed(used)} where ${held(hold)} returning ${latestAttempt}`,
  );

/** Adds what an attempt used that ended with nobody holding the task. */
export const addUsed = (tx: Tx, orgId: string, taskId: string, used: Used): Promise<number> =>
  tx.run(sql`update task set ${consumed(used)} where org_id = ${orgId} and task_id = ${taskId}`);

/** The task reaches its terminal state; gives what there is to do at its end, or undefined when it is no longer held. */
export const endTask = (
  tx: Tx,
  hold: Hold,
  end: {
    readonly state: TaskState;
    readonly output: Uint8Array | null;
    readonly error: Uint8Array | null;
    readonly used: Used;
    readonly endMs: number;
  },
): Promise<(LatestAttempt & { readonly budgeted: number }) | undefined> =>
  tx.one(sql`
    update task set state = ${end.state}, output = ${end.output}, error = ${end.error}, end_ms = ${end.endMs}, in_flight = 0, ${consumed(end.used)} where ${held(hold)}
    returning ${latestAttempt}, budgeted`);

/** What an attempt used and cost. */
export type Used = { readonly usage: Usage; readonly costMicros: number };

const consumed = ({ usage, costMicros }: Used): Sql => {
  const { inputTokens, outputTokens, model } = usage;
  return sql`input_tokens = input_tokens + ${inputTokens}, output_tokens = output_tokens + ${outputTokens},
    cost_micros = ${plus(sql`cost_micros`, costMicros)}, model = case when ${model} = '' then model else ${model} end`;
};

/**
 * Takes a task over, as it was read: from now on only the holder of the new token changes it. Undefined when it was taken, has ended, or was given
 * to an agent since, which decides on what may be done with it.
 */
export const takeTask = async (tx: Tx, row: TaskSummaryRow, owner: string): Promise<Hold | undefined> => {
  const taken = await tx.one<{ lease_token: number }>(sql`
    update task set lease_owner = ${owner}, lease_token = lease_token + 1
    where org_id = ${row.org_id} and task_id = ${row.task_id} and lease_token = ${row.lease_token} and attempts = ${row.attempts}
      and in_flight = ${row.in_flight} and state < ${TaskState.COMPLETED} returning lease_token`);
  return taken && { orgId: row.org_id, taskId: row.task_id, token: taken.lease_token };
};

/** A task that waited for an approval goes on, in this server's hands; gives the token of its hold. Whoever calls this has locked it. */
export const resumeTask = async (tx: Tx, row: TaskSummaryRow, owner: string): Promise<number> =>
  (await tx.one<{ lease_token: number }>(sql`
    update task set state = ${TaskState.SUBMITTED}, lease_owner = ${owner}, lease_token = lease_token + 1
    where org_id = ${row.org_id} and task_id = ${row.task_id} and state = ${TaskState.AWAITING_APPROVAL} returning lease_token`))!
    .lease_token;

/** A task whose work is another organisation's has gone on from where it was: its agents have it, or somebody there has approved it. 0 when it had not. */
export const advanceTask = (tx: Tx, orgId: string, taskId: string, from: TaskState, to: TaskState): Promise<number> =>
  tx.run(sql`update task set state = ${to} where org_id = ${orgId} and task_id = ${taskId} and state = ${from}`);

/** Tasks that should be worked on and whose server is gone; by the partial index on open tasks, which leaves out those that agents pull. */
export const orphanedTasks = (db: Queryable, now: number, limit: number): Promise<TaskSummaryRow[]> =>
  db.all<TaskSummaryRow>(sql`
    select ${summaryColumns} from task
    where state < 4 and lease_owner <> 'pull' and state in (${TaskState.SUBMITTED}, ${TaskState.WORKING}) and lease_owner not in (select owner from lease where until_ms > ${now})
    order by org_id, task_id limit ${limit}`);

/** Tasks that this server should be working on, as far as storage knows, and that were accepted before a time; by the same index. */
export const ownedTasks = (db: Queryable, owner: string, before: number, limit: number): Promise<TaskSummaryRow[]> =>
  db.all<TaskSummaryRow>(sql`
    select ${summaryColumns} from task
    where state < 4 and lease_owner <> 'pull' and state in (${TaskState.SUBMITTED}, ${TaskState.WORKING}) and lease_owner = ${owner} and create_ms < ${before}
    order by org_id, task_id limit ${limit}`);

export type TaskFilter = {
  readonly state: number;
  readonly agentId: string;
  readonly contractId: string;
  readonly traceId: string;
};

/**
 * Newest first. The tasks of one agent are those it asked for and those it was given: each is a walk along its own index, so that neither
 * looks at the whole table.
 */
export function listTasks(
  db: Queryable,
  orgId: string,
  filter: TaskFilter,
  after: Position | undefined,
  limit: number,
): Promise<TaskSummaryRow[]> {
  // Where an agent or a trace is given, its index is the one to walk: an expression keeps the engine from taking another.
  const narrow = filter.agentId !== "" || filter.traceId !== "";
  const state = narrow ? sql`state + 0` : sql`state`;
  const contractId = narrow ? sql`contract_id || ''` : sql`contract_id`;
  const fits = sql`org_id = ${orgId}
    ${after ? sql`and task_id < ${after[0]!}` : sql``}
    ${filter.state ? sql`and ${state} = ${filter.state}` : sql``}
    ${filter.contractId ? sql`and ${contractId} = ${filter.contractId}` : sql``}
    ${filter.traceId ? sql`and trace_id = ${filter.traceId}` : sql``}`;
  const newest = sql`order by task_id desc limit ${limit}`;
  if (!filter.agentId) return db.all<TaskSummaryRow>(sql`select ${summaryColumns} from task where ${fits} ${newest}`);
  return db.all<TaskSummaryRow>(sql`
    select ${summaryColumns} from (
      select * from (select ${summaryColumns} from task where ${fits} and caller_agent_id = ${filter.agentId} ${newest}) asked
      union
      select * from (select ${summaryColumns} from task where ${fits} and target_agent_id = ${filter.agentId} ${newest}) given
    ) either ${newest}`);
}

type Payload = "input" | "output" | "error";
/** Where a payload lies. */
export const taskPlace = (orgId: string, taskId: string, payload: Payload) => ({
  orgId,
  table: "task",
  id: `${taskId} ${payload}`,
});

/** A payload as it is stored. */
export const sealJson = (
  app: Pick<App, "vault">,
  orgId: string,
  taskId: string,
  payload: Payload,
  value: JsonValue,
): Uint8Array => app.vault.seal(taskPlace(orgId, taskId, payload), Buffer.from(JSON.stringify(value)));

export const openJson = (
  app: Pick<App, "vault">,
  orgId: string,
  taskId: string,
  payload: Payload,
  sealed: Uint8Array,
): JsonValue =>
  JSON.parse(Buffer.from(app.vault.open(taskPlace(orgId, taskId, payload), sealed)).toString()) as JsonValue;

export const sealFault = (app: Pick<App, "vault">, orgId: string, taskId: string, fault: TaskFault): Uint8Array =>
  app.vault.seal(taskPlace(orgId, taskId, "error"), toBinary(TaskErrorSchema, toTaskError(fault)));

/** Why a task did not complete, as clients read it. */
export const openFault = (app: Pick<App, "vault">, orgId: string, taskId: string, sealed: Uint8Array) =>
  fromBinary(TaskErrorSchema, app.vault.open(taskPlace(orgId, taskId, "error"), sealed));

export const toTaskError = ({ reason, message, metadata }: TaskFault) =>
  create(TaskErrorSchema, { reason: ErrorReason[reason], message, metadata });

/** A task as clients read it; without payloads when the row has none. */
export function toTask(
  app: Pick<App, "vault">,
  row: TaskSummaryRow & Partial<Pick<TaskRow, "input" | "output">>,
): MessageInitShape<typeof TaskSchema> {
  const { org_id: orgId, task_id: taskId } = row;
  return {
    orgId,
    taskId,
    state: row.state as TaskState,
    contractId: row.contract_id,
    contractVersion: row.contract_version,
    callerAgentId: row.caller_agent_id,
    targetAgentId: row.target_agent_id,
    ...(row.input && { input: fromJson(ValueSchema, openJson(app, orgId, taskId, "input", row.input)) }),
    ...(row.output && { output: fromJson(ValueSchema, openJson(app, orgId, taskId, "output", row.output)) }),
    ...(row.error && { error: openFault(app, orgId, taskId, row.error) }),
    attempts: row.attempts,
    usage: { inputTokens: BigInt(row.input_tokens), outputTokens: BigInt(row.output_tokens), model: row.model },
    traceId: row.trace_id,
    spanId: row.span_id,
    parentSpanId: row.parent_span_id,
    createTime: timestampFromMs(row.create_ms),
    ...(row.end_ms !== null && { endTime: timestampFromMs(row.end_ms) }),
    ...(row.deadline_ms !== null && { deadlineTime: timestampFromMs(row.deadline_ms) }),
    labels: JSON.parse(row.labels) as Record<string, string>,
    approvalId: row.approval_id,
    costMicros: BigInt(row.cost_micros),
    retryOfDeadLetterId: row.retry_of_dead_letter_id,
    targetOrgId: row.target_org_id === orgId ? "" : row.target_org_id,
    grantId: row.grant_id,
    ...(row.receipt && { receipt: fromJsonString(ReceiptSchema, row.receipt) }),
  };
}
