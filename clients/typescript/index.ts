/** The client of a Moltwire server: every service, typed, and `serve`, by which a program without a port is an agent. */
import { createClient, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { AgentService } from "../../gen/moltwire/bus/v1/agent_service_pb.ts";
import { BusService } from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { ContractService } from "../../gen/moltwire/bus/v1/contract_service_pb.ts";
import { TraceService } from "../../gen/moltwire/bus/v1/trace_service_pb.ts";
import { ApiKeyService } from "../../gen/moltwire/federation/v1/api_key_service_pb.ts";
import { OrganizationService } from "../../gen/moltwire/federation/v1/organization_service_pb.ts";
import { EventService } from "../../gen/moltwire/ops/v1/event_service_pb.ts";
import { StatusService } from "../../gen/moltwire/ops/v1/status_service_pb.ts";
import { type Handler, type ServeOptions, serveTasks } from "./serve.ts";

export { type Handler, type ServeOptions, TaskError, type TaskInHand } from "./serve.ts";

export type ConnectOptions = {
  /** Where the server listens, such as `http://127.0.0.1:6658`. Default: the variable MOLTWIRE_URL, or that. */
  readonly url?: string;
  /** The caller's key. Default: the variable MOLTWIRE_API_KEY. */
  readonly apiKey?: string;
};

/** Clients of a server for one key. */
export type Moltwire = ReturnType<typeof connect>;

const defaultUrl = "http://127.0.0.1:6658";
const maxMessageBytes = 16 << 20;

/** Clients of every service over one HTTP/2 connection, which is opened at the first call and again whenever it breaks. */
export function connect(options: ConnectOptions = {}) {
  const { url = process.env.MOLTWIRE_URL ?? defaultUrl, apiKey = process.env.MOLTWIRE_API_KEY } = options;
  const withKey: Interceptor = (next) => (request) => {
    if (apiKey !== undefined) request.header.set("authorization", `Bearer ${apiKey}`);
    return next(request);
  };
  const transport = createConnectTransport({
    baseUrl: url,
    httpVersion: "2",
    readMaxBytes: maxMessageBytes,
    interceptors: [withKey],
    // A connection that died without a word is noticed within some 20 s, and the stream opened anew.
    pingIntervalMs: 15_000,
    pingTimeoutMs: 5_000,
  });
  const bus = createClient(BusService, transport);
  return {
    bus,
    contracts: createClient(ContractService, transport),
    agents: createClient(AgentService, transport),
    traces: createClient(TraceService, transport),
    organizations: createClient(OrganizationService, transport),
    keys: createClient(ApiKeyService, transport),
    events: createClient(EventService, transport),
    status: createClient(StatusService, transport),
    /**
     * Does the tasks of the key's agent, whose endpoint must be `pull`, until `signal` aborts or the process gets SIGTERM: then nothing new is taken, what is in
     * hand is finished, and it resolves. Rejects when the server refuses for good, such as for a revoked key. Everything else is tried again.
     */
    serve: (handler: Handler, options: ServeOptions = {}): Promise<void> => serveTasks(bus, handler, options),
  };
}
