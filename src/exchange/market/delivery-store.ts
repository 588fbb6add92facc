/** What was delivered for tasks of the marketplace, and what was said of it. Sealed for the organisation that posted the task. */
import { fromBinary, type MessageInitShape, toBinary, toJson } from "@bufbuild/protobuf";
import { timestampFromMs, ValueSchema } from "@bufbuild/protobuf/wkt";
import {
  type ReviewVerdict,
  type TaskDeliverySchema,
  type TaskResult,
  TaskResultSchema,
} from "../../../gen/moltwire/exchange/v1/marketplace_pb.ts";
import type { App } from "../../app.ts";
import { type Queryable, sql, type Tx } from "../../db/db.ts";
import { badField, Fault } from "../../errors.ts";
import { readOr } from "../../queue/payload.ts";
import { deeperThan } from "../../rpc/json-depth.ts";
import type { Place } from "../../vault/sealed.ts";
import { limits } from "./rule.ts";

type Sealing = Pick<App, "vault">;

/** What was said of a result: by its creator, its worker and the operator. */
export type Said = { readonly reason?: string; readonly dispute?: string; readonly settlement?: string };

/** Which result of which task. */
export type DeliveryRef = { readonly orgId: string; readonly taskId: string; readonly number: number };

/** A result as it is stored. */
export type DeliveryRow = {
  readonly org_id: string;
  readonly task_id: string;
  readonly number: number;
  readonly worker_org_id: string;
  readonly worker_agent_id: string;
  readonly result: Uint8Array;
  readonly deliver_ms: number;
  readonly verdict: number;
  readonly review_ms: number | null;
  readonly said: Uint8Array | null;
};

/** Where a result, or what was said of it, lies. */
export const deliveryPlace = ({ orgId, taskId, number }: DeliveryRef, what: "result" | "said"): Place => ({
  orgId,
  table: "marketplace_delivery",
  id: `${taskId} ${number} ${what}`,
});

/** Throws PAYLOAD_TOO_LARGE beyond 51,200 bytes or 32 levels; INVALID_REQUEST for JSON that is none. */
export function checkResult({ kind }: TaskResult): void {
  if (kind.case === undefined) throw badField("result", "give json or data");
  const bytes = kind.case === "data" ? kind.value.length : jsonBytes(kind.value);
  if (bytes > limits.resultBytes) throw tooLarge(`${bytes} bytes`, limits.resultBytes, bytes);
}

function jsonBytes(value: Parameters<typeof toJson<typeof ValueSchema>>[1]): number {
  if (value.kind.case === undefined) throw badField("result.json", "must be a JSON value");
  const json = toJson(ValueSchema, value);
  if (deeperThan(json, limits.resultDepth))
    throw tooLarge(`nested more than ${limits.resultDepth} levels deep`, limits.resultDepth, limits.resultDepth + 1);
  return Buffer.byteLength(JSON.stringify(json));
}

function tooLarge(what: string, limit: number, actual: number): Fault {
  const description = `${what}; at most ${limit} are taken`;
  const metadata = { field: "result", limit: String(limit), actual: String(actual) };
  return new Fault("PAYLOAD_TOO_LARGE", `result: ${description}`, metadata, {
    fields: [{ field: "result", description }],
  });
}

/** Adds a result that nobody has reviewed. */
export const insertDelivery = (
  tx: Tx,
  app: Sealing,
  at: DeliveryRef,
  worker: { readonly orgId: string; readonly agentId: string },
  result: TaskResult,
  now: number,
): Promise<number> =>
  tx.run(sql`
    insert into marketplace_delivery (org_id, task_id, number, worker_org_id, worker_agent_id, result, deliver_ms, verdict, review_ms, said)
    values (${at.orgId}, ${at.taskId}, ${at.number}, ${worker.orgId}, ${worker.agentId},
      ${app.vault.seal(deliveryPlace(at, "result"), toBinary(TaskResultSchema, result))}, ${now}, 0, null, null)`);

/** The verdict on a result. */
export const reviewDelivery = (
  tx: Tx,
  app: Sealing,
  at: DeliveryRef,
  verdict: ReviewVerdict,
  said: Said,
  now: number,
): Promise<number> =>
  tx.run(sql`
    update marketplace_delivery set verdict = ${verdict}, review_ms = ${now}, said = ${sealSaid(app, at, said)}
    where org_id = ${at.orgId} and task_id = ${at.taskId} and number = ${at.number}`);

/** Adds to what was said of a result; whoever does holds its task. */
export async function sayOfDelivery(tx: Tx, app: Sealing, at: DeliveryRef, more: Said): Promise<void> {
  const row = await tx.one<Pick<DeliveryRow, "said">>(
    sql`select said from marketplace_delivery where org_id = ${at.orgId} and task_id = ${at.taskId} and number = ${at.number}`,
  );
  const said = sealSaid(app, at, {
    ...readOr(
      () => openSaid(app, at, row?.said ?? null),
      () => ({}),
    ),
    ...more,
  });
  await tx.run(
    sql`update marketplace_delivery set said = ${said} where org_id = ${at.orgId} and task_id = ${at.taskId} and number = ${at.number}`,
  );
}

const sealSaid = (app: Sealing, at: DeliveryRef, said: Said): Uint8Array =>
  app.vault.seal(deliveryPlace(at, "said"), Buffer.from(JSON.stringify(said)));

const openSaid = (app: Sealing, at: DeliveryRef, sealed: Uint8Array | null): Said =>
  sealed ? (JSON.parse(Buffer.from(app.vault.open(deliveryPlace(at, "said"), sealed)).toString()) as Said) : {};

/** Whose results one sees; `agentId` empty: of all agents of the organisation. */
export type OfWorker = { readonly orgId: string; readonly agentId: string };

/** The latest result of a task as it was read, or of a worker of it, and none that has come since; along the primary key, on which a task has at most 100. */
export function lastDelivery(
  db: Queryable,
  { orgId, taskId, number }: DeliveryRef,
  by: OfWorker | undefined,
): Promise<DeliveryRow | undefined> {
  const worker = by ? sql`and worker_org_id = ${by.orgId}` : sql``;
  const agent = by && by.agentId !== "" ? sql`and worker_agent_id = ${by.agentId}` : sql``;
  return db.one<DeliveryRow>(sql`
    select org_id, task_id, number, worker_org_id, worker_agent_id, result, deliver_ms, verdict, review_ms, said from marketplace_delivery
    where org_id = ${orgId} and task_id = ${taskId} and number <= ${number} ${worker} ${agent} order by number desc limit 1`);
}

/** How many results of an agent for a task had this verdict. */
export const countVerdicts = async (
  db: Queryable,
  orgId: string,
  taskId: string,
  by: OfWorker,
  verdict: ReviewVerdict,
): Promise<number> =>
  (
    await db.one<{ n: number }>(sql`
      select count(*) as n from marketplace_delivery where org_id = ${orgId} and task_id = ${taskId}
        and worker_org_id = ${by.orgId} and worker_agent_id = ${by.agentId} and verdict = ${verdict}`)
  )?.n ?? 0;

/** A result as those read it who may; not `isOpen`: without what is sealed of it. */
export function toDelivery(
  app: Sealing,
  row: DeliveryRow,
  isOpen: boolean,
): MessageInitShape<typeof TaskDeliverySchema> {
  const at = { orgId: row.org_id, taskId: row.task_id, number: row.number };
  return {
    ...{ number: row.number, workerOrgId: row.worker_org_id, workerAgentId: row.worker_agent_id },
    ...{ deliverTime: timestampFromMs(row.deliver_ms), verdict: row.verdict as ReviewVerdict },
    ...(row.review_ms !== null && { reviewTime: timestampFromMs(row.review_ms) }),
    ...(isOpen && {
      result: fromBinary(TaskResultSchema, app.vault.open(deliveryPlace(at, "result"), row.result)),
      ...{ reason: "", dispute: "", settlement: "", ...openSaid(app, at, row.said) },
    }),
  };
}
