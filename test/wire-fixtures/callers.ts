import type { ClientHttp2Session } from "node:http2";
import { Code } from "@connectrpc/connect";
import { AgentRuntimeService } from "../../gen/moltwire/agent/v1/agent_runtime_service_pb.ts";
import { type Answered, envelope, request2 } from "./raw.ts";

/** Sends bytes as a caller of each protocol would, and reads the code of the answer as it would. */
export const callers = {
  "connect+proto": {
    type: "application/proto",
    wrap: (bytes: Buffer) => bytes,
    code: connectCode,
    method: "HandleTask",
  },
  "connect+json": { type: "application/json", wrap: (bytes: Buffer) => bytes, code: connectCode, method: "HandleTask" },
  "connect stream": { type: "application/connect+proto", wrap: envelope, code: endCode, method: "StreamTask" },
  "connect stream json": { type: "application/connect+json", wrap: envelope, code: endCode, method: "StreamTask" },
  grpc: { type: "application/grpc", wrap: envelope, code: grpcCode, method: "HandleTask" },
  "grpc json": { type: "application/grpc+json", wrap: envelope, code: grpcCode, method: "HandleTask" },
  "grpc stream": { type: "application/grpc", wrap: envelope, code: grpcCode, method: "StreamTask" },
  "grpc-web": { type: "application/grpc-web+proto", wrap: envelope, code: webCode, method: "HandleTask" },
  "grpc-web stream": { type: "application/grpc-web+proto", wrap: envelope, code: webCode, method: "StreamTask" },
} as const;
/** One of them. */
export type CallerName = keyof typeof callers;

const codeNames = Object.fromEntries(
  Object.entries(Code).flatMap(([name, code]) =>
    typeof code === "number" ? [[name.replace(/(?<=.)[A-Z]/g, (c) => `_${c}`).toLowerCase(), code]] : [],
  ),
);
/** The code in a Connect unary answer; 0 for none. */
export function connectCode({ status, body }: Answered): number {
  return status === 200 ? 0 : (codeNames[JSON.parse(body.toString()).code] ?? -1);
}
function endCode({ body }: Answered): number {
  for (let at = 0; at + 5 <= body.length; at += 5 + body.readUInt32BE(at + 1)) {
    if (body[at] !== 2) continue;
    const { error } = JSON.parse(body.subarray(at + 5).toString());
    return error === undefined ? 0 : (codeNames[error.code] ?? -1);
  }
  return -1;
}
/** The code in a gRPC answer. */
export function grpcCode({ grpcStatus }: Answered): number {
  return Number(grpcStatus ?? -1);
}
function webCode({ body }: Answered): number {
  return Number(/grpc-status: (\d+)/.exec(body.toString("latin1"))?.[1] ?? -1);
}
/** Sends bytes as one of them on the session, and returns the code of the answer. `end: false` leaves the body open. */
export async function sendAs(
  session: ClientHttp2Session,
  name: CallerName,
  bytes: Buffer,
  headers: Record<string, string> = {},
  end = true,
): Promise<number> {
  const { type, method, code } = callers[name];
  const path = `/${AgentRuntimeService.typeName}/${method}`;
  return code(await request2(session, { ":path": path, "content-type": type, ...headers }, bytes, { end }));
}
/** Those that send protobuf. */
export const binaryCallers = [
  "connect+proto",
  "connect stream",
  "grpc",
  "grpc stream",
  "grpc-web",
  "grpc-web stream",
] as const;
/** Those that send JSON. */
export const jsonCallers = ["connect+json", "connect stream json", "grpc json"] as const;
/** The header by which one of them names its compression. */
export const encodingHeader = (name: CallerName) =>
  name.startsWith("grpc")
    ? "grpc-encoding"
    : name.startsWith("connect stream")
      ? "connect-content-encoding"
      : "content-encoding";
