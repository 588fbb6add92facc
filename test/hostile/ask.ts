/** Calls of every protocol with any bytes as their message, and the code of the answer as that protocol has it. */
import type { ClientHttp2Session } from "node:http2";
import { create, type DescMessage, type MessageInitShape, toBinary, toJsonString } from "@bufbuild/protobuf";
import { codeToString } from "@connectrpc/connect/protocol-connect";
import { GetAgentRequestSchema } from "../../gen/moltwire/bus/v1/agent_service_pb.ts";
import { SubmitTaskRequestSchema, WatchTaskRequestSchema } from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { type CallerName, callers } from "../wire-fixtures/callers.ts";
import { type Answered, request2 } from "../wire-fixtures/raw.ts";
import type { Target } from "./attack.ts";
import { openSession } from "./dial.ts";

export const callerNames = Object.keys(callers) as CallerName[];

export type AskOptions = { readonly path?: string; readonly headers?: Record<string, string>; readonly end?: boolean };
export type Asker = {
  /** Sends the bytes as they are; resolves with the code's name, `ok`, or `untyped` for an answer that is not of the caller's protocol. */
  ask(name: CallerName, bytes: Buffer, options?: AskOptions): Promise<string>;
  end(): void;
};

const bus = "/moltwire.bus.v1.BusService";
const sessions = 4;

export const pathOf = (name: CallerName): string =>
  callers[name].method === "StreamTask" ? `${bus}/WatchTask` : `${bus}/SubmitTask`;

/** Asks over a few sessions, which are opened again when they end. */
export function openAsker(target: Target): Asker {
  const open: (Promise<ClientHttp2Session> | undefined)[] = [];
  let turn = 0;
  async function session(): Promise<ClientHttp2Session> {
    const at = turn++ % sessions;
    const there = await open[at]?.catch(() => undefined);
    if (there && !there.closed && !there.destroyed) return there;
    return (open[at] = openSession(target));
  }
  return {
    async ask(name, bytes, { path = pathOf(name), headers = {}, end = true } = {}) {
      const all = {
        ":path": path,
        "content-type": callers[name].type,
        authorization: `Bearer ${target.key}`,
        ...headers,
      };
      return codeOf(name, await request2(await session(), all, bytes, { end }));
    },
    end() {
      for (const each of open) void each?.then((one) => one.destroy()).catch(() => {});
    },
  };
}

/** The name of the answer's code, if it is an answer of the protocol. */
export function codeOf(name: CallerName, answer: Answered): string {
  const { code, type } = callers[name];
  const given = answer.headers["content-type"] ?? "";
  const isUnary = type === "application/proto" || type === "application/json";
  const wanted = isUnary
    ? /^application\/(json|proto)/
    : new RegExp(`^${type.split("+")[0]!.replace("/", "\\/")}(\\+|;|$)`);
  if (!wanted.test(given)) return `untyped (${answer.status} ${given})`;
  const number = code(answer);
  if (number === 0) return "ok";
  return number < 0 ? `untyped (${answer.status})` : codeToString(number);
}

/** A whole message that the caller's method takes. */
export function validMessage(name: CallerName, { taskId }: Target): Buffer {
  if (callers[name].method === "StreamTask") return encode(name, WatchTaskRequestSchema, { taskId });
  const input = { kind: { case: "stringValue" as const, value: "hello" } };
  return encode(name, SubmitTaskRequestSchema, { contractId: "echo", contractVersion: "1.0.0", input });
}

/** A harmless task of 256 KiB. */
export function largeCall(): [CallerName, Buffer, AskOptions] {
  const input = { kind: { case: "stringValue" as const, value: "x".repeat(256 * 1_024) } };
  const init = { contractId: "echo", contractVersion: "1.0.0", input };
  return ["connect+json", encode("connect+json", SubmitTaskRequestSchema, init), {}];
}

/** The harmless call. */
export const validCall = ({ agentId }: Target): [CallerName, Buffer, AskOptions] => [
  "connect+proto",
  encode("connect+proto", GetAgentRequestSchema, { agentId }),
  { path: "/moltwire.bus.v1.AgentService/GetAgent" },
];

function encode<T extends DescMessage>(name: CallerName, schema: T, init: MessageInitShape<T>): Buffer {
  const message = create(schema, init);
  return Buffer.from(callers[name].type.includes("json") ? toJsonString(schema, message) : toBinary(schema, message));
}
