import type { JsonValue } from "@bufbuild/protobuf";
import { deeperThan } from "../rpc/json-depth.ts";

/** The largest input or output, as JSON in UTF-8. */
export const maxPayloadBytes = 1_048_576;
/**
 * How deep arrays and objects may lie in one another. Protobuf's readers give up at 100 messages in one another, in every language, and an
 * object in a google.protobuf.Value is three of them (value, struct, map entry): what is deeper could not be read back as binary.
 */
export const maxPayloadDepth = 32;

/** What is wrong with a payload's size, or undefined. */
export function jsonFault(
  value: JsonValue,
): { readonly message: string; readonly limit: number; readonly actual: number } | undefined {
  if (deeperThan(value, maxPayloadDepth))
    return {
      message: `nested more than ${maxPayloadDepth} levels deep`,
      limit: maxPayloadDepth,
      actual: maxPayloadDepth + 1,
    };
  const actual = jsonBytes(value);
  if (actual > maxPayloadBytes)
    return { message: `${actual} bytes as JSON; at most ${maxPayloadBytes} are taken`, limit: maxPayloadBytes, actual };
  return undefined;
}

export const jsonBytes = (value: JsonValue): number => Buffer.byteLength(JSON.stringify(value));
