import { create, type DescMessage, type DescService, type Message } from "@bufbuild/protobuf";
import { type ReflectMessage, reflect } from "@bufbuild/protobuf/reflect";
import { createValidator, type Violation } from "@bufbuild/protovalidate";
import type { Interceptor } from "@connectrpc/connect";
import { Fault, type FieldViolation } from "../errors.ts";

const maxViolations = 20;

/** One for the process: it keeps what it compiled. */
const validator = createValidator();

/** JSON is checked by contracts and stored as bytes, so it may hold any text. */
const freeForm: ReadonlySet<string> = new Set([
  "google.protobuf.Struct",
  "google.protobuf.Value",
  "google.protobuf.ListValue",
]);

/** Refuses requests that break the limits of their schema (INVALID_REQUEST, naming every field), on streams each message. */
export function validateInterceptor(): Interceptor {
  const check = (schema: DescMessage, message: Message): void => {
    const result = validator.validate(schema, message);
    if (result.kind === "error") throw result.error;
    const fields = [
      ...(result.kind === "invalid" ? result.violations.map(toField) : []),
      ...nulFields(reflect(schema, message), ""),
    ].slice(0, maxViolations);
    const [first] = fields;
    if (first)
      throw new Fault("INVALID_REQUEST", `${first.field}: ${first.description}`, { field: first.field }, { fields });
  };
  async function* checkEach(schema: DescMessage, messages: AsyncIterable<Message>) {
    for await (const message of messages) {
      check(schema, message);
      yield message;
    }
  }
  return (next) => (request) => {
    if (!request.stream) {
      check(request.method.input, request.message);
      return next(request);
    }
    return next({ ...request, message: checkEach(request.method.input, request.message) } as typeof request);
  };
}

/**
 * Compiles the rules of every request, a few at a time: the first message of a type would wait for it, up to a tenth of a second.
 */
export function warmValidation(services: readonly DescService[]): void {
  const inputs = services.flatMap((service) => service.methods.map((method) => method.input));
  const next = () => {
    const input = inputs.pop();
    if (!input) return;
    validator.validate(input, create(input));
    setImmediate(next);
  };
  setImmediate(next);
}

const toField = ({ field, message, ruleId }: Violation): FieldViolation => ({
  field: field
    .map((part) => ("name" in part && typeof part.name === "string" ? part.name : ""))
    .filter(Boolean)
    .join("."),
  description: message,
  reason: ruleId,
});

/** Text with a NUL character cannot be stored by every engine, so no engine takes it. */
function nulFields(message: ReflectMessage, prefix: string): FieldViolation[] {
  const found: FieldViolation[] = [];
  for (const field of message.fields) {
    const name = prefix + field.name;
    if (!message.isSet(field)) continue;
    const wrong = (text: unknown) => typeof text === "string" && text.includes("\0");
    const report = () =>
      found.push({ field: name, description: "must not contain the NUL character", reason: "string.nul" });
    if (field.fieldKind === "scalar" && wrong(message.get(field))) report();
    else if (field.fieldKind === "list" && field.listKind === "scalar" && [...message.get(field)].some(wrong)) report();
    else if (field.fieldKind === "map" && [...message.get(field)].some(([key, value]) => wrong(key) || wrong(value)))
      report();
    else if (field.fieldKind === "message" && !freeForm.has(field.message.typeName))
      found.push(...nulFields(message.get(field), `${name}.`));
  }
  return found;
}
