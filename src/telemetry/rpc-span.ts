import type { DescMethod } from "@bufbuild/protobuf";
import type { Caller } from "../rpc/caller.ts";
import type { TraceContext } from "../rpc/trace-context.ts";
import type { FinishedSpan } from "./span.ts";

/** A call that is over. */
export type EndedCall = {
  readonly method: DescMethod;
  /** `connect`, `grpc` or `grpc-web`. */
  readonly protocol: string;
  readonly trace: TraceContext;
  readonly caller: Caller;
  /** The code as Connect names it, or `ok`. */
  readonly code: string;
  /** The ErrorReason, or empty. */
  readonly reason: string;
  /** Milliseconds since 1970. */
  readonly startMs: number;
  readonly tookMs: number;
};

/** What is the server's own failure; the rest a caller can cause: https://opentelemetry.io/docs/specs/semconv/rpc/grpc/ */
const serverFaults: ReadonlySet<string> = new Set([
  "unknown",
  "deadline_exceeded",
  "unimplemented",
  "internal",
  "unavailable",
  "data_loss",
]);

/**
 * The server span of a call, by the conventions of 1.45 (https://opentelemetry.io/docs/specs/semconv/rpc/), in which `rpc.system` and
 * `rpc.service` are deprecated: they stay as long as most backends group by them.
 */
export function rpcSpan(call: EndedCall): FinishedSpan {
  const { method, protocol, trace, caller, code, reason, startMs, tookMs } = call;
  const isGrpc = protocol.startsWith("grpc");
  const service = method.parent.typeName;
  const name = `${service}/${method.name}`;
  const failed = serverFaults.has(code);
  return {
    ...trace,
    name,
    kind: "server",
    startMs,
    endMs: startMs + tookMs,
    attributes: {
      "rpc.system.name": isGrpc ? "grpc" : "connectrpc",
      "rpc.system": isGrpc ? "grpc" : "connect_rpc",
      "rpc.service": service,
      "rpc.method": name,
      "rpc.status_code": isGrpc ? code.toUpperCase() : code,
      ...(code !== "ok" && { "error.type": reason || code }),
      ...(caller.orgId && { "moltwire.org_id": caller.orgId }),
      ...(caller.agentId && { "moltwire.agent_id": caller.agentId }),
    },
    failed,
  };
}
