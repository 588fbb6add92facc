/** Payloads of other organisations are kept from the operator in every answer, by what the protos mark; see `payload` in access.proto. */
import {
  clearField,
  clone,
  type DescField,
  type DescMessage,
  getOption,
  type JsonObject,
  type JsonValue,
  type Message,
  toJson,
} from "@bufbuild/protobuf";
import type { Interceptor } from "@connectrpc/connect";
import { payload, Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import { AdminService } from "../../gen/moltwire/ops/v1/admin_service_pb.ts";
import { type Caller, callerKey } from "./caller.ts";

/** Which fields of a message are payloads, and which may have some within. */
type Plan = { readonly payloads: readonly DescField[]; readonly within: readonly DescField[] };

const plans = new WeakMap<DescMessage, Plan>();
const nothing: Plan = { payloads: [], within: [] };

function planOf(schema: DescMessage): Plan {
  const known = plans.get(schema);
  if (known) return known;
  if (schema.typeName.startsWith("google.")) return nothing;
  // Before what is within, so that a message that holds itself ends.
  plans.set(schema, nothing);
  const payloads = schema.fields.filter((field) => getOption(field, payload));
  const within = schema.fields.filter((field) => {
    if (payloads.includes(field) || !field.message) return false;
    const plan = planOf(field.message);
    return plan.payloads.length > 0 || plan.within.length > 0 || field.message === schema;
  });
  const plan = { payloads, within };
  plans.set(schema, plan);
  return plan;
}

/** Whether messages of a type can hold payloads. */
export function holdsPayloads(schema: DescMessage): boolean {
  const { payloads, within } = planOf(schema);
  return payloads.length > 0 || within.length > 0;
}

/** The same message without payloads. */
export function withoutPayloads(schema: DescMessage, message: Message): Message {
  const copy = clone(schema, message);
  strip(schema, copy);
  return copy;
}

function strip(schema: DescMessage, message: Message): void {
  const { payloads, within } = planOf(schema);
  for (const field of payloads) {
    const chosen = field.oneof && oneofOf(message, field.oneof.localName);
    if (!chosen) clearField(message, field as never);
    // That there is one is told.
    else if (chosen.case === field.localName && typeof chosen.value === "string") chosen.value = "";
    else if (chosen.case === field.localName) clearField(message, field as never);
  }
  for (const field of within) for (const each of valuesOf(message, field)) strip(field.message!, each);
}

/** The payloads of a message that are set, in the order of its fields. */
export function payloadsOf(
  schema: DescMessage,
  message: Message,
): { readonly field: string; readonly value: JsonValue }[] {
  const { payloads, within } = planOf(schema);
  const json = toJson(schema, message) as JsonObject;
  const own = payloads.flatMap((field) => {
    const value = json[field.jsonName];
    return value === undefined || value === "" ? [] : [{ field: field.name, value }];
  });
  const inner = within.flatMap((field) => valuesOf(message, field).flatMap((each) => payloadsOf(field.message!, each)));
  return [...own, ...inner];
}

type Oneof = { readonly case: string | undefined; value?: unknown };

const oneofOf = (message: Message, name: string): Oneof => (message as unknown as Record<string, Oneof>)[name]!;

function valuesOf(message: Message, field: DescField): readonly Message[] {
  if (field.oneof) {
    const { case: name, value } = oneofOf(message, field.oneof.localName);
    return name === field.localName ? [value as Message] : [];
  }
  const value = (message as unknown as Record<string, unknown>)[field.localName];
  if (value === undefined) return [];
  if (field.fieldKind === "list") return value as Message[];
  return field.fieldKind === "map" ? Object.values(value as Record<string, Message>) : [value as Message];
}

/** Whether a request, or the first frame of a conversation, names another organisation than the caller's own. */
export function namesOther({ orgId }: Caller, request: Message): boolean {
  const messages = Object.values(request).map((value: unknown) =>
    isObject(value) && "case" in value ? value.value : undefined,
  );
  return [request, ...messages].some(
    (one) => isObject(one) && typeof one.orgId === "string" && one.orgId !== "" && one.orgId !== orgId,
  );
}

const isObject = (value: unknown): value is Record<string, unknown> => typeof value === "object" && value !== null;

/** Keeps payloads from the operator who looks at another organisation; RevealPayload alone shows them. The innermost: what comes before it sees what goes out. */
export function payloadInterceptor(): Interceptor {
  return (next) => async (request) => {
    const { method } = request;
    const caller = request.contextValues.get(callerKey);
    if (caller.role !== Role.OPERATOR || method === AdminService.method.revealPayload || !holdsPayloads(method.output))
      return next(request);
    let isOther = !request.stream && namesOther(caller, request.message);
    async function* asking(messages: AsyncIterable<Message>) {
      for await (const message of messages) {
        isOther ||= namesOther(caller, message);
        yield message;
      }
    }
    async function* told(messages: AsyncIterable<Message>) {
      for await (const message of messages) yield isOther ? withoutPayloads(method.output, message) : message;
    }
    const asked = request.stream ? ({ ...request, message: asking(request.message) } as typeof request) : request;
    const response = await next(asked);
    if (response.stream) return { ...response, message: told(response.message) } as typeof response;
    if (!isOther) return response;
    return { ...response, message: withoutPayloads(method.output, response.message) } as typeof response;
  };
}
