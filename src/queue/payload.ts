/** What jobs carry: its limits, and its form at rest. */
import { fromBinary, type JsonObject, type JsonValue, toBinary, toJson } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import {
  type JobProgress,
  JobProgressSchema,
  type Payload,
  PayloadSchema,
} from "../../gen/moltwire/queue/v1/job_pb.ts";
import type { App } from "../app.ts";
import { badField, Fault } from "../errors.ts";
import { deeperThan } from "../rpc/json-depth.ts";
import type { Place } from "../vault/sealed.ts";
import { limits } from "./rule.ts";

type Sealing = Pick<App, "vault">;

/** Where something of a job lies. */
export type JobPlace = { readonly orgId: string; readonly jobId: string };

const maxDepth = 32;

/** Where what a job carries lies. */
export const dataPlace = ({ orgId, jobId }: JobPlace, what: "payload" | "result"): Place => ({
  orgId,
  table: "queue_job_data",
  id: `${jobId} ${what}`,
});

export const progressPlace = ({ orgId, jobId }: JobPlace): Place => ({
  orgId,
  table: "queue_job",
  id: `${jobId} progress`,
});

/** The row that holds a fault: the job's, or that of its n-th attempt, or of the change that told of that. */
export type FaultRow = "job" | { readonly attempt: number } | { readonly changeOf: number };

/** Where a fault lies. */
export function faultPlace({ orgId, jobId }: JobPlace, row: FaultRow): Place {
  if (row === "job") return { orgId, table: "queue_job", id: `${jobId} error` };
  return "attempt" in row
    ? { orgId, table: "queue_attempt", id: `${jobId} ${row.attempt}` }
    : { orgId, table: "queue_change", id: `${jobId} ${row.changeOf}` };
}

/** The size of a payload in bytes, JSON as it is written without spaces. PAYLOAD_TOO_LARGE, naming the field, beyond 100 KB or 32 levels. */
export function checkPayload(payload: Payload | undefined, field: string): number {
  if (payload?.kind.case === undefined) return 0;
  const bytes = payload.kind.case === "data" ? payload.kind.value.length : jsonBytes(payload, field);
  if (bytes > limits.payloadBytes) throw tooLarge(field, `${bytes} bytes`, limits.payloadBytes, bytes);
  return bytes;
}

function jsonBytes({ kind }: Payload, field: string): number {
  if (kind.case !== "json") return 0;
  const json = toJson(ValueSchema, kind.value) as JsonValue;
  if (deeperThan(json, maxDepth))
    throw tooLarge(field, `nested more than ${maxDepth} levels deep`, maxDepth, maxDepth + 1);
  return Buffer.byteLength(JSON.stringify(json));
}

/** PAYLOAD_TOO_LARGE, naming the field. */
export function tooLarge(field: string, what: string, limit: number, actual: number): Fault {
  const description = `${what}; at most ${limit} are taken`;
  const metadata = { field, limit: String(limit), actual: String(actual) };
  return new Fault("PAYLOAD_TOO_LARGE", `${field}: ${description}`, metadata, { fields: [{ field, description }] });
}

export const sealPayload = (app: Sealing, at: JobPlace, what: "payload" | "result", payload: Payload | undefined) =>
  payload ? app.vault.seal(dataPlace(at, what), toBinary(PayloadSchema, payload)) : null;

export const openPayload = (app: Sealing, at: JobPlace, what: "payload" | "result", sealed: Uint8Array): Payload =>
  fromBinary(PayloadSchema, app.vault.open(dataPlace(at, what), sealed));

/** INVALID_REQUEST when its details are larger than 4 KiB as JSON. */
export function sealProgress(app: Sealing, at: JobPlace, progress: JobProgress): Uint8Array {
  checkDetails(progress.details);
  return app.vault.seal(progressPlace(at), toBinary(JobProgressSchema, progress));
}

function checkDetails(details: JsonObject | undefined): void {
  if (!details) return;
  if (deeperThan(details, maxDepth)) throw badField("progress.details", `nested more than ${maxDepth} levels deep`);
  const bytes = Buffer.byteLength(JSON.stringify(details));
  if (bytes > limits.progressBytes)
    throw badField("progress.details", `${bytes} bytes as JSON; at most ${limits.progressBytes} are taken`);
}

export const openProgress = (app: Sealing, at: JobPlace, sealed: Uint8Array): JobProgress =>
  fromBinary(JobProgressSchema, app.vault.open(progressPlace(at), sealed));

/** Why an attempt failed. */
export type JobFault = { readonly code: string; readonly message: string; readonly attempt: number };

/** Seals a fault for the row that holds it. */
export const sealFault = (app: Sealing, at: JobPlace, row: FaultRow, fault: JobFault): Uint8Array =>
  app.vault.seal(faultPlace(at, row), Buffer.from(JSON.stringify(fault)));

export const openFault = (app: Sealing, at: JobPlace, row: FaultRow, sealed: Uint8Array): JobFault =>
  JSON.parse(Buffer.from(app.vault.open(faultPlace(at, row), sealed)).toString()) as JobFault;

/** Why what a job carries cannot be read any more, for good: its organisation's key was dropped, or somebody else has changed it. */
const unreadable: ReadonlySet<string> = new Set(["KEY_DROPPED", "DATA_NOT_AUTHENTIC"]);

/** Reads what is sealed; where it cannot be read any more, gives what `otherwise` makes of the reason. */
export function readOr<T>(read: () => T, otherwise: (fault: Fault) => T): T {
  try {
    return read();
  } catch (error) {
    if (!(error instanceof Fault && unreadable.has(error.reason))) throw error;
    return otherwise(error);
  }
}

/** A fault that says why one cannot be read. */
export const unreadableFault = ({ reason, message }: Fault, attempt: number): JobFault => ({
  code: reason.toLowerCase(),
  message,
  attempt,
});
