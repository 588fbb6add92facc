/** Payloads against the schemas of a contract. */
import type { JsonValue } from "@bufbuild/protobuf";
import type { App } from "../app.ts";
import type { ContractRow } from "./contract-store.ts";
import type { Violation } from "./schema/schema.ts";

/** What is wrong with an input by the contract's schema. */
export const inputViolations = (app: App, contract: ContractRow, input: JsonValue): Violation[] =>
  app.schemas.checker(contract.input_schema_sha256, () => JSON.parse(contract.input_schema) as JsonValue).check(input);

/** What is wrong with an output by the contract's schema. */
export const outputViolations = (app: App, contract: ContractRow, output: JsonValue): Violation[] =>
  app.schemas
    .checker(contract.output_schema_sha256, () => JSON.parse(contract.output_schema) as JsonValue)
    .check(output);
