/** What messages carry, and its limits. */
import { toJson } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import type { MessagePayload } from "../../gen/moltwire/relay/v1/message_pb.ts";
import { badField, Fault } from "../errors.ts";
import { deeperThan } from "../rpc/json-depth.ts";
import { limits } from "./limits.ts";

/** Throws PAYLOAD_TOO_LARGE beyond 64 KB or 32 levels; INVALID_REQUEST for JSON that is none. */
export function checkPayload(payload: MessagePayload | undefined, field: string): void {
  const kind = payload?.kind;
  if (kind?.case === undefined) throw badField(field, "give json or data");
  const bytes = kind.case === "data" ? kind.value.length : jsonBytes(kind.value, field);
  if (bytes > limits.payloadBytes) throw tooLarge(field, `${bytes} bytes`, limits.payloadBytes, bytes);
}

/** Throws PAYLOAD_TOO_LARGE beyond 8 KB. */
export function checkHeaders(headers: Readonly<Record<string, string>>): void {
  let bytes = 0;
  for (const [name, value] of Object.entries(headers)) bytes += Buffer.byteLength(name) + Buffer.byteLength(value);
  if (bytes > limits.headerBytes) throw tooLarge("headers", `${bytes} bytes in all`, limits.headerBytes, bytes);
}

function jsonBytes(value: Parameters<typeof toJson<typeof ValueSchema>>[1], field: string): number {
  if (value.kind.case === undefined) throw badField(`${field}.json`, "must be a JSON value");
  const json = toJson(ValueSchema, value);
  if (deeperThan(json, limits.payloadDepth))
    throw tooLarge(
      field,
      `nested more than ${limits.payloadDepth} levels deep`,
      limits.payloadDepth,
      limits.payloadDepth + 1,
    );
  return Buffer.byteLength(JSON.stringify(json));
}

function tooLarge(field: string, what: string, limit: number, actual: number): Fault {
  const description = `${what}; at most ${limit} are taken`;
  const metadata = { field, limit: String(limit), actual: String(actual) };
  return new Fault("PAYLOAD_TOO_LARGE", `${field}: ${description}`, metadata, { fields: [{ field, description }] });
}
