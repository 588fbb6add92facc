/** Content that is any JSON or bytes: a memory's value, a job's payload and result, a message's payload. */
import { fromJson, type JsonValue, type MessageInitShape, toJson } from "@bufbuild/protobuf";
import { type Value, ValueSchema } from "@bufbuild/protobuf/wkt";

/** Any JSON value, or bytes. */
export type Content = JsonValue | Uint8Array;

type Kind = { readonly case: "json"; readonly value: Value } | { readonly case: "data"; readonly value: Uint8Array };

/** The content as the protocol carries it. */
export function payloadOf(content: Content, contentType = ""): { kind: Kind; contentType: string } {
  const kind: Kind =
    content instanceof Uint8Array
      ? { case: "data", value: content }
      : { case: "json", value: fromJson(ValueSchema, content) };
  return { kind, contentType };
}

/** The content of what the protocol carries. Undefined: there is none, as in lists. */
export function contentOf(
  payload: { readonly kind: Kind | { readonly case: undefined; readonly value?: undefined } } | undefined,
): Content | undefined {
  if (!payload?.kind.case) return undefined;
  return payload.kind.case === "json" ? toJson(ValueSchema, payload.kind.value) : payload.kind.value;
}

/** A JSON value as the protocol carries it. */
export const jsonValue = (json: JsonValue): Value => fromJson(ValueSchema, json);

/** The JSON of a value that the protocol carries. */
export const jsonOf = (value: Value | undefined): JsonValue | undefined => value && toJson(ValueSchema, value);

/** Fields of a request, as they are written. */
export type Fields<Desc extends import("@bufbuild/protobuf").DescMessage> = Partial<
  Extract<MessageInitShape<Desc>, { readonly $typeName?: never }>
>;
