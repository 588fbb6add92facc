/** What went wrong, in few words and with what helps. */
import { Code, ConnectError } from "@connectrpc/connect";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "../../gen/google/rpc/error_details_pb.ts";
import { exitCodes } from "./exit-codes.ts";
import { fixes } from "./fixes.ts";
import { note, paintError, plain, safeJson, span } from "./output.ts";
import { UsageError } from "./settings.ts";

/** An error as it is shown. */
export type Problem = {
  readonly exitCode: number;
  /** One word of ErrorReason, or USAGE, UNREACHABLE, NOT_MOLTWIRE, FAULT. */
  readonly reason: string;
  readonly message: string;
  /** Which fields are wrong. */
  readonly fields?: readonly string[];
  /** The limit that was passed, as the server tells it. */
  readonly limit?: string;
  readonly fix?: string;
  readonly traceId?: string;
  /** For a stream that ended: where to go on. */
  readonly cursor?: string;
  /** Whether the server may have accepted the call all the same: the connection was lost while it ran. */
  readonly maybeAccepted?: boolean;
};

const maxFields = 5;

/** Makes a problem of anything that was thrown while calling the server at `url`. */
export function explain(error: unknown, url: string): Problem {
  if (error instanceof UsageError) {
    return { exitCode: exitCodes.usage, reason: "USAGE", message: error.message, fix: error.fix };
  }
  if (!(error instanceof ConnectError)) {
    const message = error instanceof Error ? error.message : String(error);
    return {
      exitCode: exitCodes.fault,
      reason: "FAULT",
      message,
      fix: "this is a fault of the command itself: report it",
    };
  }
  const [info] = error.findDetails(ErrorInfoSchema);
  return info === undefined ? withoutReason(error, url) : withReason(error, info.reason, info.metadata);
}

function withReason(error: ConnectError, reason: string, metadata: Record<string, string>): Problem {
  const violations = error.findDetails(BadRequestSchema).flatMap((bad) => bad.fieldViolations);
  // Where the message says it all already, the row only has to name the field.
  const said = new Set([error.rawMessage, `${violations[0]?.field}: ${error.rawMessage}`]);
  const fields = violations
    .slice(0, maxFields)
    .map(({ field, description }) => ({ field, row: `${field}: ${description}` }))
    .map(({ field, row }) => (violations.length === 1 && said.has(row) ? field : row));
  if (fields.length === 0 && metadata.field) fields.push(metadata.field);
  if (violations.length > maxFields) fields.push(`and ${violations.length - maxFields} more`);
  const [retry] = error.findDetails(RetryInfoSchema);
  const wait = retry?.retryDelay ? Number(retry.retryDelay.seconds) * 1_000 + retry.retryDelay.nanos / 1e6 : 0;
  const fix = wait > 0 ? `wait ${span(wait)}, then repeat the command` : fixes[reason];
  const ours = error.code === Code.Internal || error.code === Code.Unavailable || error.code === Code.Unimplemented;
  return {
    exitCode: ours ? exitCodes.fault : exitCodes.refused,
    reason,
    message: error.rawMessage,
    ...(fields.length > 0 && { fields }),
    ...(metadata.limit && { limit: metadata.limit }),
    ...(fix && { fix }),
    ...(metadata.trace_id && { traceId: metadata.trace_id }),
    ...(metadata.cursor && { cursor: metadata.cursor }),
    ...(reason === "SHUTTING_DOWN" && { maybeAccepted: true }),
  };
}

/** What no Moltwire server said: the network's errors, and answers of something else. */
function withoutReason(error: ConnectError, url: string): Problem {
  const { unreachable: exitCode } = exitCodes;
  const cause = systemCode(error);
  if (error.code === Code.DeadlineExceeded) {
    const { DEADLINE_EXCEEDED: fix } = fixes;
    const message = "the time allowed was over before the answer came";
    return { exitCode: exitCodes.failed, reason: "DEADLINE_EXCEEDED", message, ...(fix && { fix }) };
  }
  if (error.code === Code.Canceled) {
    const fix = "see whether the server is up, then repeat the command";
    return { exitCode, reason: "UNREACHABLE", message: `${url} did not answer in time`, fix, maybeAccepted: true };
  }
  if (cause === "ENOTFOUND" || cause === "EAI_AGAIN") {
    return {
      exitCode,
      reason: "UNREACHABLE",
      message: `${url}: there is no such host`,
      fix: "check --url or MOLTWIRE_URL",
    };
  }
  if (cause === "ECONNREFUSED") {
    const fix = "start one with `moltwire server`, or set --url or MOLTWIRE_URL";
    return { exitCode, reason: "UNREACHABLE", message: `no server listens at ${url}`, fix };
  }
  if (cause !== undefined || error.code === Code.Unavailable || error.code === Code.Aborted) {
    const message = `the connection to ${url} failed: ${cause ?? error.rawMessage}`;
    const fix = "see whether the server is up, then repeat the command";
    return { exitCode, reason: "UNREACHABLE", message, fix, maybeAccepted: true };
  }
  const message = `what answers at ${url} is no Moltwire server: ${error.rawMessage}`;
  return { exitCode, reason: "NOT_MOLTWIRE", message, fix: "check --url or MOLTWIRE_URL" };
}

/** The `code` of the system's error at the bottom of a chain of causes, such as ECONNREFUSED. */
function systemCode(error: unknown): string | undefined {
  for (let cause = error, depth = 0; cause instanceof Error && depth < 10; cause = cause.cause, depth++) {
    const { code } = cause as NodeJS.ErrnoException;
    if (typeof code === "string") return code;
    if (cause instanceof AggregateError && cause.errors.length > 0) return systemCode(cause.errors[0]);
  }
  return undefined;
}

/** Says it on standard error, for people or for a program. Returns the exit code. */
export function report(problem: Problem, json = false): number {
  note(json ? problemJson(problem) : renderProblem(problem));
  return problem.exitCode;
}

/** The problem as lines for people. */
export function renderProblem(problem: Problem): string {
  const rows = [
    ...(problem.fields ?? []).map((field) => ["field", field]),
    ...(problem.limit ? [["limit", problem.limit]] : []),
    ...(problem.fix ? [["fix", problem.fix]] : []),
    ...(problem.traceId ? [["trace", problem.traceId]] : []),
  ];
  const head = `${paintError("red", `✘ ${plain(problem.reason)}`)}  ${plain(problem.message)}`;
  return [head, ...rows.map(([name, text]) => `  ${name!.padEnd(5)}  ${plain(text!)}`)].join("\n");
}

function problemJson({ reason, message, fields, limit, fix, traceId }: Problem): string {
  return safeJson({ error: { reason, message, fields, limit, fix, traceId } });
}
