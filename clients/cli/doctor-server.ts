/** What doctor sees of the server, by the public protocol alone. */
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { OrganizationService } from "../../gen/moltwire/federation/v1/organization_service_pb.ts";
import {
  type GetStatusResponse,
  type ServerDetails,
  StatusService,
} from "../../gen/moltwire/ops/v1/status_service_pb.ts";
import { type Clients, connectClients, grpcClients } from "./connect.ts";
import type { Finding } from "./doctor.ts";
import { checkSchema } from "./doctor-schema.ts";
import { exitCodes } from "./exit-codes.ts";
import { span } from "./output.ts";
import { explain } from "./problem.ts";
import type { Settings } from "./settings.ts";

const timeoutMs = 5_000;
const maxSkewMs = 2_000;

/** Looks at a server. When it does not answer, that is all there is to say. */
export async function checkServer(settings: Settings): Promise<Finding[]> {
  // Without the key: a wrong key must not look like a server that is down.
  const connect = connectClients({ url: settings.url });
  const grpc = grpcClients({ url: settings.url });
  const [byConnect, byGrpc] = await Promise.all([
    reach("connect", connect, settings.url),
    reach("grpc", grpc, settings.url),
  ]);
  const answer = byConnect.answer ?? byGrpc.answer;
  const reached = [byConnect.finding, byGrpc.finding];
  if (!answer) return reached;
  return [
    ...reached,
    checkHealth(answer.status),
    checkClock(answer),
    ...(await checkKey(settings)),
    byGrpc.answer
      ? await checkSchema(grpc, timeoutMs)
      : { check: "schema", state: "skip", detail: "reflection needs gRPC" },
  ];
}

type Answer = { readonly status: GetStatusResponse; readonly sentMs: number; readonly heardMs: number };

async function reach(check: string, clients: Clients, url: string): Promise<{ finding: Finding; answer?: Answer }> {
  const sentMs = Date.now();
  const began = performance.now();
  try {
    const status = await clients(StatusService).getStatus({}, { timeoutMs });
    const answer = { status, sentMs, heardMs: Date.now() };
    return { answer, finding: { check, state: "ok", detail: `${url} answers in ${span(performance.now() - began)}` } };
  } catch (error) {
    const { reason, message, fix } = explain(error, url);
    const late = reason === "DEADLINE_EXCEEDED";
    const detail = late ? `${url} takes connections and did not answer in ${span(timeoutMs)}` : message;
    const help = late ? "see whether it is a Moltwire server, and what its log says" : fix;
    return { finding: { check, state: "fail", detail, fix: help ?? "look at the server's log" } };
  }
}

function checkHealth({ healthy, version }: GetStatusResponse): Finding {
  if (healthy) return { check: "server", state: "ok", detail: `version ${version}, healthy` };
  return {
    check: "server",
    state: "fail",
    detail: `version ${version}, not healthy`,
    fix: "read the server's log: its storage does not answer, or it is stopping",
  };
}

/** Compares the clocks; the server's time was taken somewhere between sending and hearing. */
function checkClock({ status, sentMs, heardMs }: Answer): Finding {
  const check = "clock";
  if (!status.time) return { check, state: "skip", detail: "the server tells no time" };
  const serverMs = timestampMs(status.time);
  const skewMs = serverMs < sentMs ? serverMs - sentMs : Math.max(0, serverMs - heardMs);
  if (Math.abs(skewMs) <= maxSkewMs) return { check, state: "ok", detail: "agrees with the server's" };
  const detail = `the server's is ${span(Math.abs(skewMs))} ${skewMs > 0 ? "ahead" : "behind"}`;
  return { check, state: "warn", detail, fix: "set both machines' clocks by NTP: deadlines and expiries go by them" };
}

async function checkKey(settings: Settings): Promise<Finding[]> {
  const check = "key";
  if (settings.key === undefined) {
    return [{ check, state: "warn", detail: "none is set", fix: "set MOLTWIRE_API_KEY, or give --key-file" }];
  }
  const clients = connectClients(settings);
  try {
    const { details } = await clients(StatusService).getStatus({}, { timeoutMs });
    if (details)
      return [{ check, state: "ok", detail: `from ${settings.keyFrom}; the operator's` }, ...checkStorage(details)];
    const { organizations } = await clients(OrganizationService).listOrganizations({ pageSize: 1 }, { timeoutMs });
    return [
      { check, state: "ok", detail: `from ${settings.keyFrom}; organisation ${organizations[0]?.name ?? "unknown"}` },
    ];
  } catch (error) {
    const { exitCode, reason, message, fix } = explain(error, settings.url);
    // A key without the scope to read organisations is a key all the same.
    if (reason === "SCOPE_REQUIRED") return [{ check, state: "ok", detail: `from ${settings.keyFrom}; of few scopes` }];
    const detail = exitCode === exitCodes.refused ? `from ${settings.keyFrom}; ${reason}: ${message}` : message;
    return [{ check, state: "fail", detail, fix: fix ?? "use a key of this server" }];
  }
}

function checkStorage({ engine, schemaVersion, encryptionAtRest }: ServerDetails): Finding[] {
  const storage: Finding = { check: "storage", state: "ok", detail: `${engine}, schema ${schemaVersion}` };
  if (encryptionAtRest)
    return [storage, { check: "encryption", state: "ok", detail: "payloads are encrypted at rest" }];
  const fix = "start the server with MOLTWIRE_MASTER_KEY; `moltwire vault generate-key` makes one";
  return [storage, { check: "encryption", state: "warn", detail: "payloads are not encrypted at rest", fix }];
}
