/** `moltwire contract`: what may be asked for, and in which form. */

import type { JsonObject } from "@bufbuild/protobuf";
import { durationMs } from "@bufbuild/protobuf/wkt";
import { TrustTierSchema } from "../../gen/moltwire/bus/v1/agent_pb.ts";
import type { Contract, RetryPolicy } from "../../gen/moltwire/bus/v1/contract_pb.ts";
import { type CheckContractResponse, ContractService } from "../../gen/moltwire/bus/v1/contract_service_pb.ts";
import { addCall } from "./call.ts";
import { addNoun, type Noun } from "./command.ts";
import { exitCodes } from "./exit-codes.ts";
import { choices, duration, type Field, json, number, oneOf } from "./field.ts";
import { addList } from "./list.ts";
import { nameIn } from "./names.ts";
import { paint, plain, span } from "./output.ts";
import { age, at, type Column, jsonText, renderFacts } from "./table.ts";

const { registerContract, getContract, listContracts, deprecateContract, checkContract } = ContractService.method;

const which: Field = { name: "contractId", as: "<contract>", help: "the contract's id" };
const schemas: readonly Field[] = [
  { name: "inputSchema", as: "--input <schema>", help: "JSON Schema of the input: JSON, @file or -", read: json },
  { name: "outputSchema", as: "--output <schema>", help: "JSON Schema of the output: JSON, @file or -", read: json },
];
const properties: readonly Field[] = [
  { name: "capability", as: "--capability <name>", help: "what an agent must have (default: the contract's id)" },
  { name: "description", as: "--description <text>", help: "what it is for" },
  ...schemas,
  {
    name: "timeout",
    as: "--timeout <span>",
    help: "how long one attempt may take, such as 5s (default: 30s)",
    read: duration,
  },
  { name: "repeatable", as: "--repeatable", help: "doing the work twice does no harm" },
  {
    name: "retryPolicy.maxRetries",
    as: "--retries <number>",
    help: "repetitions after a failed attempt",
    read: number,
  },
  {
    name: "retryPolicy.backoff",
    as: "--backoff <span>",
    help: "the first wait at most (default: 200ms)",
    read: duration,
  },
  {
    name: "retryPolicy.maxBackoff",
    as: "--max-backoff <span>",
    help: "each wait at most (default: 30s)",
    read: duration,
  },
  {
    name: "securityClass",
    as: "--trust <tier>",
    help: `the least trusted agent that may do it: ${choices(TrustTierSchema)}`,
    read: oneOf(TrustTierSchema),
  },
  { name: "requiredTools", as: "--tool <name>", help: "a tool that the work needs; may be repeated", many: true },
  {
    name: "fallbacks",
    as: "--fallback <contract@version>",
    help: "to try when no agent could do it; may be repeated",
    many: true,
    read: reference,
  },
  { name: "approvalRequired", as: "--approval", help: "somebody has to approve each task" },
];

/** Adds the commands. */
export const contract: Noun = (program) => {
  const noun = addNoun(program, "contract", "what may be asked for, and in which form").addHelpText(
    "after",
    "\nA version is never changed or deleted, since tasks were done under it: register the next one, and deprecate it.",
  );
  addCall(noun, {
    name: "register",
    summary: "add a version of a contract; a version never changes",
    example: "moltwire contract register shout 1.0.0 --input @input.schema.json --timeout 5s",
    method: registerContract,
    fields: [
      { ...which, as: "[contract]", required: true },
      { name: "version", as: "[version]", help: "its version, such as 1.0.0", required: true },
      ...properties,
    ],
    from: true,
    show: (response) => describe(response.contract!),
  });
  addList(noun, {
    summary: "list the versions of contracts, without their schemas",
    method: listContracts,
    filters: [
      { name: "contractId", as: "--contract <id>", help: "only versions of this contract" },
      { name: "capability", as: "--capability <name>", help: "only those that ask for this capability" },
    ],
    rows: ({ contracts }) => contracts,
    columns,
    things: "contracts",
    first: "moltwire contract register CONTRACT 1.0.0 --input @input.schema.json",
  });
  addCall(noun, {
    name: "get",
    summary: "show a version of a contract with its schemas",
    method: getContract,
    fields: [
      which,
      { name: "version", as: "[version]", help: "an exact version, or a range such as ^1.2 (default: the latest)" },
    ],
    show: (response) => describe(response.contract!),
  });
  addCall(noun, {
    name: "deprecate",
    summary: "end a version: it takes no new tasks, running ones go on",
    method: deprecateContract,
    fields: [which, { name: "version", as: "<version>", help: "the exact version" }],
    show: (response) => describe(response.contract!),
  });
  addCall(noun, {
    name: "check",
    summary: "compare new schemas with a version: what would break? Ends with 1 if something would",
    example: "moltwire contract check shout --input @input.schema.json",
    method: checkContract,
    fields: [
      which,
      { name: "againstVersion", as: "--against <version>", help: "exact, or a range (default: the latest)" },
      ...schemas,
    ],
    show: describeCheck,
    exitCode: ({ compatible }) => (compatible ? exitCodes.ok : exitCodes.failed),
  });
};

const columns: readonly Column<Contract>[] = [
  { title: "CONTRACT", cell: ({ contractId }) => contractId },
  { title: "VERSION", cell: ({ version }) => version },
  { title: "STATE", cell: ({ deprecated }) => (deprecated ? "deprecated" : "open"), colour: stateColour },
  { title: "AGE", cell: ({ createTime }) => age(createTime), right: true },
  { title: "TIMEOUT", cell: timeoutText, right: true },
  { title: "CAPABILITY", cell: ({ capability }) => capability, cut: true },
  { title: "FOR", cell: ({ description }) => description, cut: true },
];

function describe(contract: Contract): string[] {
  const state = paint(stateColour(contract), contract.deprecated ? "deprecated" : "open");
  return renderFacts(`${paint("bold", plain(contract.contractId))}  ${plain(contract.version)}  ${state}`, [
    ["for", contract.description],
    ["capability", contract.capability],
    ["timeout", timeoutText(contract)],
    ["repeatable", contract.repeatable ? "yes" : "no: after a lost answer a task ends as OUTCOME_UNKNOWN"],
    ["retries", retryText(contract.retryPolicy)],
    ["trust", `${nameIn(TrustTierSchema, contract.securityClass)} or more`],
    ["tools", contract.requiredTools.join(" ")],
    [
      "fallbacks",
      contract.fallbacks.map(({ contractId, version }) => `${contractId}@${version || "latest"}`).join(", "),
    ],
    ["approval", contract.approvalRequired ? "each task needs one" : ""],
    ["registered", at(contract.createTime)],
    ["deprecated", at(contract.deprecateTime)],
    ["input", jsonText(contract.inputSchema) ?? "anything"],
    ["output", jsonText(contract.outputSchema) ?? "anything"],
  ]);
}

function describeCheck({ compatible, againstVersion, changes, suggestedVersion }: CheckContractResponse): string[] {
  const verdict = compatible ? paint("green", "✔ compatible") : paint("red", "✘ breaks");
  const lines = changes.map(({ breaking, direction, path, message }) => {
    const mark = breaking ? paint("red", "breaks") : paint("dim", "fine  ");
    return `  ${mark}  ${direction.padEnd(6)}  ${plain(path) || "/"}  ${plain(message)}`;
  });
  const advice = changes.length === 0 ? "nothing changes" : `the next version should be ${plain(suggestedVersion)}`;
  return [`${verdict}  with ${plain(againstVersion)}; ${advice}`, ...lines];
}

function stateColour({ deprecated }: Contract) {
  return deprecated ? "yellow" : "green";
}

function timeoutText({ timeout }: Contract): string {
  return timeout ? span(durationMs(timeout)) : "";
}

function retryText(policy: RetryPolicy | undefined): string {
  if (!policy || policy.maxRetries === 0) return "none";
  const waits = [policy.backoff, policy.maxBackoff].map((wait) => (wait ? span(durationMs(wait)) : "the default"));
  return `${policy.maxRetries}, the first after ${waits[0]} at most, each after ${waits[1]} at most`;
}

function reference(text: string): JsonObject {
  const [contractId = "", version = ""] = text.split("@");
  return { contractId, version };
}
