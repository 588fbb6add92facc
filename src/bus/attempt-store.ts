import { fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { ErrorReason } from "../../gen/moltwire/api/v1/error_reason_pb.ts";
import { type TaskAttemptSchema, TaskErrorSchema } from "../../gen/moltwire/bus/v1/task_pb.ts";
import type { App } from "../app.ts";
import { type Queryable, sql, type Tx } from "../db/db.ts";
import type { PricedAttempt } from "./cost/price-attempt.ts";
import { type TaskFault, toTaskError } from "./task-store.ts";

/** One attempt as it is stored. `end_ms` is null while it runs; `error`, sealed, also when it succeeded. */
export type AttemptRow = {
  readonly org_id: string;
  readonly task_id: string;
  readonly attempt: number;
  readonly trace_id: string;
  readonly agent_id: string;
  readonly contract_id: string;
  readonly contract_version: string;
  readonly start_ms: number;
  readonly end_ms: number | null;
  readonly error: Uint8Array | null;
  readonly input_tokens: number;
  readonly output_tokens: number;
  readonly model: string;
};

type Key = { readonly orgId: string; readonly taskId: string; readonly attempt: number };

const columns = sql`org_id, task_id, attempt, trace_id, agent_id, contract_id, contract_version, start_ms, end_ms, error, input_tokens, output_tokens, model`;

/** Writes down that an attempt begins. */
export const openAttempt = (
  tx: Tx,
  key: Key,
  of: {
    readonly traceId: string;
    readonly agentId: string;
    readonly contractId: string;
    readonly contractVersion: string;
    readonly startMs: number;
  },
): Promise<number> =>
  tx.run(sql`
    insert into task_attempt (${columns})
    values (${key.orgId}, ${key.taskId}, ${key.attempt}, ${of.traceId}, ${of.agentId}, ${of.contractId}, ${of.contractVersion}, ${of.startMs}, null,
      null, 0, 0, '')`);

/** How an attempt ended. */
export type AttemptEnd = PricedAttempt & { readonly endMs: number; readonly fault?: TaskFault | undefined };

/** Writes down how one attempt ended, once; gives how many rows that changed. */
export const closeAttempt = (tx: Tx, app: Pick<App, "vault">, key: Key, end: AttemptEnd): Promise<number> =>
  tx.run(sql`
    update task_attempt set end_ms = ${end.endMs}, error = ${sealed(app, key, end.fault)}, input_tokens = ${end.usage.inputTokens},
      output_tokens = ${end.usage.outputTokens}, model = ${end.usage.model}, cost_micros = ${end.costMicros}, estimated = ${end.estimated ? 1 : 0},
      rate = ${end.rate ? JSON.stringify(end.rate) : ""}
    where org_id = ${key.orgId} and task_id = ${key.taskId} and attempt = ${key.attempt} and end_ms is null`);

/** The agent that an attempt is with, or undefined when the attempt has ended. */
export const runningWith = async (db: Queryable, key: Key): Promise<string | undefined> =>
  (
    await db.one<{ agent_id: string }>(sql`
      select agent_id from task_attempt
      where org_id = ${key.orgId} and task_id = ${key.taskId} and attempt = ${key.attempt} and end_ms is null`)
  )?.agent_id;

/** All attempts of a task, first one first. */
export const attemptsOf = (db: Queryable, orgId: string, taskId: string): Promise<AttemptRow[]> =>
  db.all<AttemptRow>(
    sql`select ${columns} from task_attempt where org_id = ${orgId} and task_id = ${taskId} order by attempt`,
  );

/** Whether an attempt was ended by what its agent answered: not by a cancel, a timeout or a lost lease. */
export async function endedByAgent(app: Pick<App, "vault">, db: Queryable, key: Key): Promise<boolean> {
  const row = await db.one<Pick<AttemptRow, "end_ms" | "error">>(
    sql`select end_ms, error from task_attempt where org_id = ${key.orgId} and task_id = ${key.taskId} and attempt = ${key.attempt}`,
  );
  if (!row || row.end_ms === null) return false;
  return !row.error || agentsOwn.has(fromBinary(TaskErrorSchema, app.vault.open(attemptPlace(key), row.error)).reason);
}

const agentsOwn: ReadonlySet<ErrorReason> = new Set([
  ErrorReason.ADAPTER_ERROR,
  ErrorReason.AGENT_BAD_RESPONSE,
  ErrorReason.CONTRACT_VIOLATION,
]);

/** Where the error of an attempt lies. */
export const attemptPlace = ({ orgId, taskId, attempt }: Key) => ({
  orgId,
  table: "task_attempt",
  id: `${taskId} ${attempt}`,
});

const sealed = (app: Pick<App, "vault">, key: Key, fault: TaskFault | undefined): Uint8Array | null =>
  fault ? app.vault.seal(attemptPlace(key), toBinary(TaskErrorSchema, toTaskError(fault))) : null;

export const toTaskAttempt = (app: Pick<App, "vault">, row: AttemptRow): MessageInitShape<typeof TaskAttemptSchema> => {
  const key = { orgId: row.org_id, taskId: row.task_id, attempt: row.attempt };
  return {
    attempt: row.attempt,
    agentId: row.agent_id,
    contractId: row.contract_id,
    contractVersion: row.contract_version,
    startTime: timestampFromMs(row.start_ms),
    ...(row.end_ms !== null && { endTime: timestampFromMs(row.end_ms) }),
    ...(row.error && { error: fromBinary(TaskErrorSchema, app.vault.open(attemptPlace(key), row.error)) }),
    usage: { inputTokens: BigInt(row.input_tokens), outputTokens: BigInt(row.output_tokens), model: row.model },
  };
};
