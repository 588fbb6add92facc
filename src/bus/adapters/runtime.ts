/** The messages of moltwire.agent.v1.AgentRuntimeService, as adapters send and take them. */
import { type DescMessage, fromJson, type MessageInitShape, type MessageShape, toJson } from "@bufbuild/protobuf";
import { timestampFromMs, ValueSchema } from "@bufbuild/protobuf/wkt";
import { createValidator } from "@bufbuild/protovalidate";
import type { TaskAssignmentSchema } from "../../../gen/moltwire/agent/v1/agent_runtime_pb.ts";
import {
  type HandleTaskResponse,
  HandleTaskResponseSchema,
} from "../../../gen/moltwire/agent/v1/agent_runtime_service_pb.ts";
import { type Answer, type Assignment, noUsage } from "../adapter.ts";
import { jsonFault } from "../payload.ts";
import { unusable } from "./faults.ts";

/** The largest message of an agent; its output may be 1 MiB as JSON. */
export const maxAnswerBytes = 2 * 1_048_576;

const validator = createValidator();

/** A task as the agent receives it. */
export const assignmentOf = (a: Assignment): MessageInitShape<typeof TaskAssignmentSchema> => ({
  taskId: a.taskId,
  attempt: a.attempt,
  contractId: a.contractId,
  contractVersion: a.contractVersion,
  capability: a.capability,
  input: fromJson(ValueSchema, a.input),
  deadlineTime: timestampFromMs(a.deadlineMs),
  traceparent: a.traceparent,
  maxTokens: BigInt(a.maxTokens),
});

/** Refuses what breaks the rules of its proto. */
export function checkMessage<Desc extends DescMessage>(schema: Desc, message: MessageShape<Desc>): void {
  const result = validator.validate(schema, message);
  if (result.kind !== "valid") throw unusable(`its answer breaks the protocol: ${result.error?.message ?? "invalid"}`);
}

/** The answer in an agent's response, checked. */
export function toAnswer(message: HandleTaskResponse): Answer {
  checkMessage(HandleTaskResponseSchema, message);
  const { output, usage } = message;
  if (!output) throw unusable('its answer has no "output"');
  const json = toJson(ValueSchema, output);
  const fault = jsonFault(json);
  if (fault) throw unusable(`its output is ${fault.message}`);
  if (usage?.model.includes("\0")) throw unusable("the name of its model holds a NUL character");
  return {
    output: json,
    usage: usage
      ? { inputTokens: Number(usage.inputTokens), outputTokens: Number(usage.outputTokens), model: usage.model }
      : noUsage,
  };
}
