import { create, type DescMessage, type DescService, type Message } from "@bufbuild/protobuf";
import { reflect } from "@bufbuild/protobuf/reflect";
import { createValidator, type Violation } from "@bufbuild/protovalidate";
import type { Interceptor } from "@connectrpc/connect";
import { Fault, type FieldViolation } from "../errors.ts";
import { malformedFields } from "./well-formed.ts";

const maxViolations = 20;
/** Characters of a map's key that an error repeats: the key may be what is too long. */
const maxKeyShown = 64;

/** One for the process: it keeps what it compiled. */
const validator = createValidator();
/** The requests whose rules {@link warmValidation} has seen to. */
const warmed = new WeakSet<DescMessage>();

/** Throws INVALID_REQUEST for a message that breaks the limits of its schema, naming every field. */
export function check(schema: DescMessage, message: Message): void {
  const result = validator.validate(schema, message);
  if (result.kind === "error") throw result.error;
  const fields = [
    ...(result.kind === "invalid" ? result.violations.map(toField) : []),
    ...malformedFields(reflect(schema, message)),
  ].slice(0, maxViolations);
  const [first] = fields;
  if (first)
    throw new Fault("INVALID_REQUEST", `${first.field}: ${first.description}`, { field: first.field }, { fields });
}

/** Refuses requests that break the limits of their schema (INVALID_REQUEST, naming every field), on streams each message. */
export function validateInterceptor(): Interceptor {
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
  const all = services.flatMap((service) => service.methods.map((method) => method.input));
  const inputs = all.filter((input) => !warmed.has(input));
  const next = () => {
    const input = inputs.pop();
    if (!input) return;
    warmed.add(input);
    validator.validate(input, create(input));
    setImmediate(next);
  };
  setImmediate(next);
}

const toField = ({ field, message, ruleId }: Violation): FieldViolation => ({
  field: fieldPath(field),
  description: message,
  reason: ruleId,
});

/** As clients write it: `fallbacks[0].contract_id`, `labels["a"]`. */
const fieldPath = (path: Violation["field"]): string =>
  path
    .map((part) => {
      if (part.kind === "list_sub") return `[${part.index}]`;
      if (part.kind === "map_sub") return `[${JSON.stringify(String(part.key).slice(0, maxKeyShown))}]`;
      return `.${part.name}`;
    })
    .join("")
    .replace(/^\./, "");
