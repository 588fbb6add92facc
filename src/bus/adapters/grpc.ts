import { create, type DescMessage, fromBinary, type MessageShape, toBinary } from "@bufbuild/protobuf";
import {
  HandleTaskRequestSchema,
  HandleTaskResponseSchema,
  StreamTaskRequestSchema,
  StreamTaskResponseSchema,
} from "../../../gen/moltwire/agent/v1/agent_runtime_service_pb.ts";
import type { GrpcEndpoint } from "../../../gen/moltwire/bus/v1/agent_pb.ts";
import type { Egress, EgressStream } from "../../egress/egress.ts";
import { EgressError } from "../../egress/error.ts";
import type { Adapter, Answer, Assignment, AttemptFault } from "../adapter.ts";
import { maxTaskBytes } from "../pieces.ts";
import { fromEgress, refusedBy, timedOut, unusable } from "./faults.ts";
import { frame, grpcTimeout, statusOf, unframe } from "./grpc-wire.ts";
import { assignmentOf, checkMessage, maxAnswerBytes, toAnswer } from "./runtime.ts";

const service = "/moltwire.agent.v1.AgentRuntimeService";
/** A stream may be longer than what is kept of it, but not endless. */
const maxStreamBytes = 4 * maxTaskBytes + maxAnswerBytes;

/** Calls an agent's gRPC server, HTTP/2 in the clear or over TLS: HandleTask, or StreamTask where the endpoint says so. */
export const grpcAdapter =
  (egress: Egress): Adapter =>
  async (endpoint, assignment, signal) => {
    if (endpoint.kind.case !== "grpc") throw new Error(`not a gRPC endpoint: ${endpoint.kind.case}`);
    const { value } = endpoint.kind;
    const { timeoutMs } = assignment;
    try {
      return await egress.stream(
        {
          protocol: "h2",
          url: new URL(`${service}/${value.stream ? "StreamTask" : "HandleTask"}`, value.url).href,
          method: "POST",
          headers: {
            "content-type": "application/grpc+proto",
            "grpc-timeout": grpcTimeout(timeoutMs),
            "idempotency-key": assignment.taskId,
            traceparent: assignment.traceparent,
            "user-agent": "moltwire",
          },
          body: frame(requestOf(value, assignment)),
          timeoutMs,
          signal,
          maxResponseBytes: value.stream ? maxStreamBytes : maxAnswerBytes,
        },
        async (answer) => {
          checkHead(answer);
          const found = value.stream ? await readStream(answer, assignment) : await readOne(answer);
          const status = statusOf(answer.trailers()) ?? statusOf(answer.headers);
          if (status?.code) throw refused(answer, status.code, status.message, assignment);
          if (!status) throw unusable("it ended without a grpc-status");
          if (!found) throw unusable(value.stream ? "its stream ended without a result" : "there is no message in it");
          return found;
        },
      );
    } catch (error) {
      if (error instanceof EgressError) throw fromEgress(error, timeoutMs);
      throw error;
    }
  };

const requestOf = ({ stream }: GrpcEndpoint, assignment: Assignment): Uint8Array => {
  const task = assignmentOf(assignment);
  return stream
    ? toBinary(StreamTaskRequestSchema, create(StreamTaskRequestSchema, { task }))
    : toBinary(HandleTaskRequestSchema, create(HandleTaskRequestSchema, { task }));
};

/** Refuses what is not gRPC: a server or gateway that does not know of it. */
function checkHead({ status, headers }: EgressStream): void {
  if (status !== 200) throw refusedBy(status, undefined, `HTTP status ${status}`);
  const type = headers["content-type"] ?? "";
  if (!/^application\/grpc(\+proto)?(;|$)/.test(type)) throw unusable("its content-type is not application/grpc");
}

/** Servers watch the deadline too, and may be the first to say so. */
const refused = ({ status }: EgressStream, code: string, message: string, { timeoutMs }: Assignment): AttemptFault =>
  code === "deadline_exceeded" ? timedOut("lost", timeoutMs) : refusedBy(status, code, message);

async function readOne({ body }: EgressStream): Promise<Answer | undefined> {
  let found: Answer | undefined;
  for await (const message of unframe(body, maxAnswerBytes)) {
    if (found) throw unusable("there is more than one message in it");
    found = toAnswer(parse(HandleTaskResponseSchema, message));
  }
  return found;
}

async function readStream({ body }: EgressStream, assignment: Assignment): Promise<Answer | undefined> {
  let found: Answer | undefined;
  for await (const message of unframe(body, maxAnswerBytes)) {
    if (found) throw unusable("something follows its result");
    const { event } = parse(StreamTaskResponseSchema, message);
    switch (event.case) {
      case "progress":
        await assignment.progress(event.value.fraction, event.value.message);
        break;
      case "chunk":
        await assignment.chunk(event.value);
        break;
      case "result":
        found = toAnswer(event.value);
    }
  }
  return found;
}

function parse<Desc extends DescMessage>(schema: Desc, bytes: Uint8Array): MessageShape<Desc> {
  let message: MessageShape<Desc>;
  try {
    message = fromBinary(schema, bytes);
  } catch (error) {
    throw unusable(`it is no ${schema.name}`, { cause: error });
  }
  checkMessage(schema, message);
  return message;
}
