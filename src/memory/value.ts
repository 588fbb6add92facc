import { toJson } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import type { Value } from "../../gen/moltwire/memory/v1/memory_pb.ts";
import { badField, Fault } from "../errors.ts";
import { deeperThan } from "../rpc/json-depth.ts";
import { maxValueBytes, maxValueDepth } from "./limits.ts";

/** How many bytes a value takes. PAYLOAD_TOO_LARGE beyond 50 KB or 32 levels; INVALID_REQUEST for JSON that is none. */
export function valueBytes({ kind }: Value, field: string): number {
  const bytes = kind.case === "data" ? kind.value.length : jsonBytes(kind.value, `${field}.json`);
  if (bytes <= maxValueBytes) return bytes;
  throw tooLarge(field, `${bytes} bytes; at most ${maxValueBytes} are taken`, maxValueBytes, bytes);
}

function jsonBytes(value: Parameters<typeof toJson<typeof ValueSchema>>[1] | undefined, field: string): number {
  if (value?.kind.case === undefined) throw badField(field, "must be a JSON value");
  const json = toJson(ValueSchema, value);
  if (deeperThan(json, maxValueDepth))
    throw tooLarge(field, `nested more than ${maxValueDepth} levels deep`, maxValueDepth, maxValueDepth + 1);
  return Buffer.byteLength(JSON.stringify(json));
}

/** PAYLOAD_TOO_LARGE, naming the field. */
export const tooLarge = (field: string, message: string, limit: number, actual: number) =>
  new Fault("PAYLOAD_TOO_LARGE", `${field}: ${message}`, { field, limit: String(limit), actual: String(actual) });
