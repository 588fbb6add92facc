/** The OpenAPI 3.1 document of the methods of a server, as the Connect protocol has them over HTTP with JSON. */
import { type DescMessage, type DescMethod, type DescService, getOption } from "@bufbuild/protobuf";
import { MethodOptions_IdempotencyLevel as Idempotency } from "@bufbuild/protobuf/wkt";
import { type Access, access, Kind, Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import { connectError, errorStatuses, type Reason } from "./errors.ts";
import { exampleOf } from "./example.ts";
import { commentOf } from "./image.ts";
import type { Schema } from "./limits.ts";
import { createSchemas, type Schemas } from "./schema.ts";

const json = "application/json";
const stream = "application/connect+json";

const about = `Each method is a path of its own, called by POST with a JSON object; methods that change nothing are called by GET too, and can be cached. It is the
Connect protocol: any HTTP client speaks it. The same port speaks gRPC and gRPC-Web; the protos are the source of this document.

Names of fields are taken in camelCase and snake_case, and answered in camelCase. What is not set or empty is left out of answers, lists and zeros too. Integers of 64 bits
are answered as strings. Durations are seconds: \`"1.5s"\`. Methods that stream need \`${stream}\`: each message of the request and of the answer is an envelope of one byte of
flags, four bytes of length (big-endian) and that much JSON; the last envelope of an answer has the flag 2 and tells the error, if there is one. Generated clients do that
for you; here such methods are described, and are not called as plain JSON.`;

/** Everything at one place, in the order of the services; bytes depend on nothing else than what is given. */
export function openApi(services: readonly DescService[], reasons: readonly Reason[], version: string): Schema {
  const schemas = createSchemas();
  const paths = Object.fromEntries(
    services.flatMap(({ methods }) =>
      methods.map((method) => [`/${method.parent.typeName}/${method.name}`, pathItem(method, schemas)]),
    ),
  );
  return {
    openapi: "3.1.0",
    info: {
      title: "Moltwire",
      version,
      summary: "The neutral bus where AI agents meet.",
      description: about.replaceAll(/([^\n])\n(?!\n)/g, "$1 "),
      license: { name: "Apache-2.0", identifier: "Apache-2.0" },
    },
    servers: [{ url: "/", description: "The server that this document comes from" }],
    security: [{ bearer: [] }, { apiKey: [] }],
    tags: services.map((service) => ({ name: service.typeName, description: commentOf(service) })),
    paths,
    components: {
      securitySchemes: {
        bearer: { type: "http", scheme: "bearer", description: "A key of this server: `authorization: Bearer mw_…`" },
        apiKey: {
          type: "apiKey",
          in: "header",
          name: "x-api-key",
          description: "The same key in another header; `authorization` goes before it.",
        },
      },
      parameters,
      headers,
      responses: {
        Error: {
          description: `The call failed. The status follows the code:\n\n${errorStatuses}`,
          headers: {
            "x-trace-id": { $ref: "#/components/headers/TraceId" },
            "retry-after": { $ref: "#/components/headers/RetryAfter" },
          },
          content: { [json]: { schema: { $ref: "#/components/schemas/connect.Error" } } },
        },
      },
      schemas: { ...schemas.all(), ...connectError(reasons) },
    },
  };
}

const parameters = {
  IdempotencyKey: {
    name: "idempotency-key",
    in: "header",
    description:
      "Sent again with the same request within 48 hours, the command answers what it answered first and has no second effect.",
    schema: { type: "string", minLength: 1, maxLength: 255, pattern: "^[\\x21-\\x7e]+$" },
  },
  TimeoutMs: {
    name: "connect-timeout-ms",
    in: "header",
    description: "How long the caller waits, in milliseconds. A call that takes longer ends with deadline_exceeded.",
    schema: { type: "integer", minimum: 0, maximum: 9_999_999_999 },
  },
  Traceparent: {
    name: "traceparent",
    in: "header",
    description: "The W3C trace context that the call belongs to; without it a trace begins.",
    schema: { type: "string" },
  },
};

const headers = {
  TraceId: {
    description: "The trace of the call: 32 hexadecimal digits. Give it when you report a fault.",
    schema: { type: "string", pattern: "^[0-9a-f]{32}$" },
  },
  RateLimit: {
    description: "Requests that the caller may make in any 60 seconds, where there is a limit.",
    schema: { type: "integer" },
  },
  RetryAfter: { description: "Seconds after which the call is worth trying again.", schema: { type: "integer" } },
  IdempotencyReplayed: {
    description: "`true`: the answer is that of an earlier call with the same idempotency key.",
    schema: { type: "string", const: "true" },
  },
  RateRemaining: { description: "How many of them are left.", schema: { type: "integer" } },
};

function pathItem(method: DescMethod, schemas: Schemas): Schema {
  if (method.methodKind !== "unary") return { post: streaming(method, schemas) };
  const operationId = `${method.parent.name}_${method.name}`;
  const example = exampleOf(method.input);
  const post = {
    ...operation(method, operationId),
    requestBody: {
      required: true,
      content: { [json]: { schema: schemas.ref(method.input), example } },
    },
    responses: answers(method, schemas),
  };
  if (method.idempotency !== Idempotency.NO_SIDE_EFFECTS) return { post };
  const common = operation(method, `${operationId}_get`);
  const get = {
    ...common,
    parameters: [
      {
        name: "message",
        in: "query",
        required: true,
        description: "The request as JSON, percent-encoded.",
        content: { [json]: { schema: schemas.ref(method.input), example } },
      },
      { name: "encoding", in: "query", required: true, schema: { type: "string", const: "json" } },
      { name: "connect", in: "query", schema: { type: "string", const: "v1" } },
      ...common.parameters,
    ],
    responses: answers(method, schemas),
  };
  return { get, post };
}

function operation(method: DescMethod, operationId: string) {
  const declared = getOption(method, access);
  const comment = commentOf(method);
  const isPublic = declared.role === Role.PUBLIC;
  return {
    operationId,
    tags: [method.parent.typeName],
    summary: firstSentence(comment),
    description: `${comment}\n\n${accessWords(declared)}`,
    ...(isPublic && { security: [{}, { bearer: [] }, { apiKey: [] }] }),
    ...(method.proto.options?.deprecated && { deprecated: true }),
    parameters: [
      ...(declared.kind === Kind.COMMAND ? [{ $ref: "#/components/parameters/IdempotencyKey" }] : []),
      { $ref: "#/components/parameters/TimeoutMs" },
      { $ref: "#/components/parameters/Traceparent" },
    ],
    "x-moltwire-access": accessFacts(declared),
  };
}

/** A stream cannot be said in OpenAPI 3.1; that it is bytes is true, and what they are is told beside. */
function streaming(method: DescMethod, schemas: Schemas): Schema {
  const { description, ...common } = operation(method, `${method.parent.name}_${method.name}`);
  const both = method.methodKind === "bidi_streaming";
  const how = both
    ? "Streams both ways, over HTTP/2: envelopes of requests go and envelopes of answers come until either side ends."
    : "Streams: one envelope with the request goes, and envelopes of answers come until the last.";
  const envelopes = (message: DescMessage) => ({
    [stream]: {
      schema: { type: "string", format: "binary", description: `Envelopes, each with the JSON of a ${message.name}.` },
      "x-moltwire-message": schemas.ref(message),
    },
  });
  return {
    ...common,
    description: `${description}\n\n${how}`,
    "x-moltwire-stream": both ? "both ways" : "of answers",
    requestBody: { required: true, content: envelopes(method.input) },
    responses: {
      200: {
        description: "The stream. Its last envelope tells how it ended: an error is there, and not in the status.",
        headers: { "x-trace-id": { $ref: "#/components/headers/TraceId" } },
        content: envelopes(method.output),
      },
      default: { $ref: "#/components/responses/Error" },
    },
  };
}

const answers = (method: DescMethod, schemas: Schemas): Schema => ({
  200: {
    description: commentOf(method.output) || "Done.",
    headers: {
      "x-trace-id": { $ref: "#/components/headers/TraceId" },
      ...(getOption(method, access).kind === Kind.COMMAND && {
        "idempotency-replayed": { $ref: "#/components/headers/IdempotencyReplayed" },
      }),
      "ratelimit-limit": { $ref: "#/components/headers/RateLimit" },
      "ratelimit-remaining": { $ref: "#/components/headers/RateRemaining" },
    },
    content: { [json]: { schema: schemas.ref(method.output) } },
  },
  default: { $ref: "#/components/responses/Error" },
});

/** The declared access as names. */
export function accessFacts({ role, scope, kind, audited, items }: Access) {
  const name = (names: Readonly<Record<string, string | number>>, number: number) =>
    Object.keys(names).find((one) => names[one] === number) ?? String(number);
  return { role: name(Role, role), scope, kind: name(Kind, kind), audited, ...(items && { items }) };
}

function accessWords(declared: Access): string {
  const { role, scope, audited } = accessFacts(declared);
  const who =
    role === "PUBLIC"
      ? "Needs no key."
      : `Needs a key of role ${role} or higher, with the scope \`${scope}\` if it has scopes.`;
  return audited ? `${who} Each effective call is audited.` : who;
}

/** The first sentence, without what is in brackets at its end. */
export const firstSentence = (text: string): string => /^.*?[^.]\.(?=\s|$)/s.exec(text)?.[0] ?? text.split("\n")[0]!;
