/** The server under attack: the real program in a process of its own, and what it says about itself. */
import { join } from "node:path";
import { createClient } from "@connectrpc/connect";
import { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import { AgentService } from "../../gen/moltwire/bus/v1/agent_service_pb.ts";
import { BusService } from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { ApiKeyService } from "../../gen/moltwire/federation/v1/api_key_service_pb.ts";
import { type ServerProcess, startProgram, startServer } from "../crash/server-process.ts";
import { makePair, place } from "../tls-fixtures/certificates.ts";
import type { Target } from "./attack.ts";
import { transport } from "./transport.ts";

export type Victim = {
  readonly process: ServerProcess;
  readonly target: Target;
  /** The server of nobody's, under the same certificate. */
  readonly bare: Target;
  /** The certificate's file. */
  readonly certificate: string | undefined;
  /** What it counts, as `/metrics` has it. */
  metrics(): Promise<string>;
  close(): Promise<void>;
};

/** Not a secret: the server is this suite's own, on the loopback interface. */
const operatorKey = "hostile-0123456789-abcdefghijklmnopqrstuvwxyz";

/** Starts both in a folder, in clear or over TLS. This process must trust every certificate. */
export async function startVictim(folder: string, isTls: boolean): Promise<Victim> {
  const files = isTls ? place(folder, makePair()) : undefined;
  const process = startServer({
    MOLTWIRE_DATA: join(folder, isTls ? "data-tls" : "data"),
    MOLTWIRE_PORT: "0",
    MOLTWIRE_OPERATOR_KEY: operatorKey,
    // It would keep attackers from what is to be tried.
    MOLTWIRE_RATE_LIMIT: "0",
    MOLTWIRE_LOG_LEVEL: "warn",
    ...(files && { MOLTWIRE_TLS_CERT: files.tlsCert, MOLTWIRE_TLS_KEY: files.tlsKey }),
  });
  const bare = startProgram([join(import.meta.dirname, "bare.ts"), ...(files ? [files.tlsKey, files.tlsCert] : [])]);
  const url = await process.ready;
  const target = { port: portOf(url), isTls, ...(await setUp(url)) };
  return {
    process,
    target,
    bare: { ...target, port: portOf(await bare.ready) },
    certificate: files?.tlsCert,
    metrics: async () =>
      (await fetch(`${url}/metrics`, { headers: { authorization: `Bearer ${operatorKey}` } })).text(),
    async close() {
      await Promise.all([process.kill(), bare.kill()]);
    },
  };
}

const portOf = (url: string): number => Number(new URL(url).port);

async function setUp(url: string): Promise<Omit<Target, "port" | "isTls">> {
  const keys = createClient(ApiKeyService, transport(url, operatorKey));
  const { secret: adminKey } = await keys.createApiKey({ role: Role.ORG });
  const admin = transport(url, adminKey);
  const { agent } = await createClient(AgentService, admin).registerAgent({ name: "customer" });
  const { agentId } = agent!;
  const { secret: key } = await createClient(ApiKeyService, admin).createApiKey({ agentId });
  const bus = createClient(BusService, transport(url, key));
  const done = async (value: string) => {
    const input = { kind: { case: "stringValue" as const, value } };
    return (await bus.submitTask({ contractId: "echo", input })).task!.taskId;
  };
  return {
    key,
    agentId,
    adminKey,
    operatorKey,
    taskId: await done("hello"),
    largeTaskId: await done("x".repeat(128 * 1_024)),
  };
}
