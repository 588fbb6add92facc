/**
 * The well-behaved client, in a process of its own: every few milliseconds a call, in turn of GetAgent and of SubmitTask to the echo, over a session
 * that stays; every tenth over a new connection. It never waits for an answer to ask again, so that a slow server is not asked less.
 */
import http from "node:http";
import https from "node:https";
import { createClient } from "@connectrpc/connect";
import { AgentService } from "../../gen/moltwire/bus/v1/agent_service_pb.ts";
import { BusService } from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import type { Target } from "./attack.ts";
import { transport } from "./transport.ts";

/** What it saw since it was asked last. */
export type Seen = {
  /** Times of calls over the session, and over new connections, in milliseconds. */
  readonly known: number[];
  readonly fresh: number[];
  /** What failed. */
  readonly failures: string[];
};

const everyMs = 5;
/** Beyond so many calls under way it stops asking, and each is a failure. */
const atOnce = 500;
const maxFailures = 20;

let seen: Seen = { known: [], fresh: [], failures: [] };
let underWay = 0;
let turn = 0;

function begin({ port, isTls, key, agentId }: Target): void {
  const url = `${isTls ? "https" : "http"}://127.0.0.1:${port}`;
  const over = transport(url, key);
  const agents = createClient(AgentService, over);
  const bus = createClient(BusService, over);
  const input = { kind: { case: "stringValue" as const, value: "hello" } };
  const call = async () => {
    if (turn % 10 === 9) return freshCall(url, key, agentId);
    if (turn % 2 === 0) return void (await agents.getAgent({ agentId }));
    return void (await bus.submitTask({ contractId: "echo", contractVersion: "1.0.0", input }));
  };
  const ask = async () => {
    const times = turn % 10 === 9 ? "fresh" : "known";
    const startMs = performance.now();
    underWay++;
    try {
      await call();
    } catch (error) {
      if (seen.failures.length < maxFailures) seen.failures.push(`${times}: ${(error as Error).message}`);
    }
    underWay--;
    seen[times].push(performance.now() - startMs);
  };
  setInterval(() => {
    turn++;
    if (underWay < atOnce) void ask();
    else if (seen.failures.length < maxFailures) seen.failures.push(`${atOnce} calls are under way`);
  }, everyMs);
}

function freshCall(url: string, key: string, agentId: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const options = {
      method: "POST",
      agent: false,
      headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
    } as const;
    const request = (url.startsWith("https") ? https : http).request(
      `${url}/moltwire.bus.v1.AgentService/GetAgent`,
      options,
      (response) => {
        response.resume().once("end", () => {
          if (response.statusCode === 200) resolve();
          else reject(new Error(`HTTP ${response.statusCode}`));
        });
      },
    );
    request.once("error", reject).end(JSON.stringify({ agentId }));
  });
}

process.on("message", (message: { begin: Target } | "take") => {
  if (message !== "take") begin(message.begin);
  process.send!(seen);
  seen = { known: [], fresh: [], failures: [] };
});
process.on("disconnect", () => process.exit(0));
