/** Why calls fail: the reasons of the contract, and the forms of errors in JSON. */
import type { DescEnum } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";
import { codeToString } from "@connectrpc/connect/protocol-connect";
import { commentOf } from "./image.ts";
import type { Schema } from "./limits.ts";

/** A reason by its name without prefix, its number, and its comment in one line. */
export type Reason = { readonly name: string; readonly number: number; readonly comment: string };

/** All reasons but the one that is not set, in the order of the proto. */
export const reasonsOf = (errorReason: DescEnum): Reason[] =>
  errorReason.values
    .filter(({ number }) => number !== 0)
    .map((value) => ({
      name: value.name.replace(/^ERROR_REASON_/, ""),
      number: value.number,
      comment: commentOf(value).replaceAll("\n", " "),
    }));

/** The status that each code has over HTTP. Source: https://connectrpc.com/docs/protocol#error-codes */
export const httpStatuses: Readonly<Record<string, number>> = {
  canceled: 499,
  unknown: 500,
  invalid_argument: 400,
  deadline_exceeded: 504,
  not_found: 404,
  already_exists: 409,
  permission_denied: 403,
  resource_exhausted: 429,
  failed_precondition: 400,
  aborted: 409,
  out_of_range: 400,
  unimplemented: 501,
  internal: 500,
  unavailable: 503,
  data_loss: 500,
  unauthenticated: 401,
};

const codes = Object.values(Code)
  .filter((code): code is Code => typeof code === "number")
  .map((code) => codeToString(code));

/** A list of codes and their statuses, in Markdown. */
export const errorStatuses = codes.map((code) => `- \`${code}\`: ${httpStatuses[code]}`).join("\n");

/** The schemas of an error. */
export function connectError(reasons: readonly Reason[]): Readonly<Record<string, Schema>> {
  return {
    "connect.Error": {
      type: "object",
      description: "Why a call failed. Programs look at the reason, people read the message.",
      properties: {
        code: { type: "string", enum: codes },
        message: { type: "string", description: "What is wrong, the limit, and what to do." },
        details: {
          type: "array",
          description:
            "One is a google.rpc.ErrorInfo with the reason; others say which fields are wrong, or when to try again.",
          items: { $ref: "#/components/schemas/connect.ErrorDetail" },
        },
      },
      required: ["code"],
    },
    "connect.ErrorDetail": {
      type: "object",
      properties: {
        type: { type: "string", description: "The name of a message.", examples: ["google.rpc.ErrorInfo"] },
        value: { type: "string", description: "The message in its binary form, as base64 without padding." },
        debug: {
          description: "The same as JSON. Of an ErrorInfo:",
          anyOf: [{ $ref: "#/components/schemas/moltwire.ErrorInfo" }, true],
        },
      },
      required: ["type", "value"],
    },
    "moltwire.ErrorInfo": {
      type: "object",
      properties: {
        reason: { $ref: "#/components/schemas/moltwire.ErrorReason" },
        domain: { type: "string", const: "moltwire.dev" },
        metadata: { type: "object", additionalProperties: { type: "string" } },
      },
      required: ["reason", "domain"],
    },
    "moltwire.ErrorReason": {
      type: "string",
      enum: reasons.map(({ name }) => name),
      description: reasons.map(({ name, comment }) => `- \`${name}\`: ${comment}`).join("\n"),
    },
  };
}
