/** Words for what the protocol numbers. */
import type { DescEnum } from "@bufbuild/protobuf";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { ErrorReasonSchema } from "../../gen/moltwire/api/v1/error_reason_pb.ts";
import { TaskStateSchema } from "../../gen/moltwire/bus/v1/task_pb.ts";
import { type TraceEvent, type TraceEventKind, TraceEventKindSchema } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import { UsageError } from "./settings.ts";

/** The name of an enum's value. A number that this client does not know, being older than the server, is shown as it is. */
export const nameIn = (schema: DescEnum, number: number): string =>
  schema.value[number]?.localName ?? `${schema.name} ${number}`;

/** "COMPLETED". */
export const stateName = (state: number): string => nameIn(TaskStateSchema, state);

/** "DISPATCHED". */
export const kindName = (kind: number): string => nameIn(TraceEventKindSchema, kind);

/** "AGENT_TIMEOUT". */
export const reasonName = (reason: number): string => nameIn(ErrorReasonSchema, reason);

/**
 * The kind of a name such as "completed" or "ATTEMPT_FAILED".
 *
 * @throws UsageError naming the kinds there are.
 */
export function parseKind(name: string): TraceEventKind {
  const wanted = name.toUpperCase().replaceAll("-", "_");
  const known = TraceEventKindSchema.values.filter((value) => value.number !== 0);
  const found = known.find((value) => value.localName === wanted);
  if (found) return found.number as TraceEventKind;
  throw new UsageError(
    `--kind ${name}: there is no such step`,
    `one of: ${known.map((value) => value.localName).join(", ")}`,
  );
}

/** When an event happened, in milliseconds since 1970. */
export const timeMs = (event: TraceEvent): number => (event.time ? timestampMs(event.time) : 0);

/** The names of agents, by id, as far as the events tell them: ROUTED lists its candidates. */
export function agentNames(events: readonly TraceEvent[]): ReadonlyMap<string, string> {
  const names = new Map<string, string>();
  for (const { details } of events) {
    const candidates = details?.candidates;
    for (const candidate of Array.isArray(candidates) ? candidates : []) {
      if (candidate === null || typeof candidate !== "object" || Array.isArray(candidate)) continue;
      const { agent_id: id, name } = candidate;
      if (typeof id === "string" && typeof name === "string") names.set(id, name);
    }
  }
  return names;
}
