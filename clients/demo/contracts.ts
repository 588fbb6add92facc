/** The contracts of the demo. What an agent answers is checked against them, so no step can be skipped or made up in form. */
import { create, type JsonObject, type MessageInitShape } from "@bufbuild/protobuf";
import { type Duration, durationFromMs } from "@bufbuild/protobuf/wkt";
import type { RetryPolicySchema } from "../../gen/moltwire/bus/v1/contract_pb.ts";
import {
  type RegisterContractRequest,
  RegisterContractRequestSchema,
} from "../../gen/moltwire/bus/v1/contract_service_pb.ts";

const text = (maxLength: number): JsonObject => ({ type: "string", minLength: 1, maxLength });
const number: JsonObject = { type: "number", minimum: 0 };
const whole = (minimum: number, maximum: number): JsonObject => ({ type: "integer", minimum, maximum });
const array = (items: JsonObject, minItems: number, maxItems: number): JsonObject => ({
  type: "array",
  items,
  minItems,
  maxItems,
});
/** An object in which every property is required and no other may be. */
const object = (properties: Record<string, JsonObject>): JsonObject => ({
  type: "object",
  properties,
  required: Object.keys(properties),
  additionalProperties: false,
});

const term = object({ term: text(100), word: text(100), weight: number, passages: whole(1, 1_000_000) });
const place = { source: text(500), line: whole(1, 10_000_000), label: { type: "string", maxLength: 1_000 } };
const passages = array(object({ ...place, text: text(20_000), score: number }), 1, 20);
const quotes = array(object({ ...place, text: text(1_000), score: number }), 1, 5);

/** What contracts may differ in besides. */
export type Terms = {
  readonly timeout?: Duration;
  readonly retryPolicy?: MessageInitShape<typeof RetryPolicySchema>;
  readonly estimatedTokens?: bigint;
  readonly approvalRequired?: boolean;
  readonly namespace?: string;
};

const contract = (
  contractId: string,
  description: string,
  input: JsonObject,
  output: JsonObject,
  terms: Terms = {},
): RegisterContractRequest =>
  create(RegisterContractRequestSchema, {
    contractId,
    version: "1.0.0",
    description,
    inputSchema: input,
    outputSchema: output,
    timeout: durationFromMs(5_000),
    // Doing it twice does no harm.
    repeatable: true,
    retryPolicy: { maxRetries: 2, backoff: durationFromMs(50), maxBackoff: durationFromMs(200) },
    ...terms,
  });

/** A contract to count the words of a text, which the flaky agents do. */
export const countingContract = (contractId: string, terms: Terms = {}): RegisterContractRequest =>
  contract(
    contractId,
    "Counts the words of a text.",
    object({ text: text(500) }),
    object({ words: whole(0, 500) }),
    terms,
  );

/** Those of the research, in the order in which the planner uses them. */
export const contracts: readonly RegisterContractRequest[] = [
  contract(
    "research/outline",
    "Finds out what to search for: the words of a question, by how rare they are in the documents.",
    object({ question: text(500) }),
    object({ terms: array(term, 1, 8), unknown: array(text(500), 0, 500) }),
  ),
  contract(
    "research/search",
    "Finds the passages that tell most about some terms, best first, each with its file and line.",
    object({ terms: array(term, 1, 8), limit: whole(1, 20) }),
    object({ passages, searched: whole(1, 1_000_000), files: whole(1, 500) }),
  ),
  contract(
    "research/compose",
    "Chooses the sentences of some passages that together tell most about some terms.",
    object({ terms: array(term, 1, 8), passages, limit: whole(1, 5) }),
    object({ quotes }),
  ),
  contract(
    "research/answer",
    "Answers a question in sentences of the documents: outline, search and compose in one.",
    object({ question: text(500) }),
    object({ quotes, searched: whole(1, 1_000_000), files: whole(1, 500) }),
  ),
  contract(
    "research/review",
    "Says whether some quotes answer a question, what they say in short, and which words of the question they leave out.",
    object({ question: text(500), quotes }),
    object({
      verdict: { type: "string", enum: ["answered", "partly", "open"] },
      summary: text(5_000),
      missing: array(text(100), 0, 100),
    }),
    // A large model takes its time.
    { timeout: durationFromMs(60_000) },
  ),
];
