/** What can be known of an endpoint when it is registered. */
import type { HandlerContext } from "@connectrpc/connect";
import type { Endpoint } from "../../gen/moltwire/bus/v1/agent_pb.ts";
import type { App } from "../app.ts";
import type { Egress } from "../egress/egress.ts";
import { EgressError } from "../egress/error.ts";
import { badField, Fault } from "../errors.ts";
import { checkMetadata } from "../rpc/change.ts";
import { adapterFor } from "./adapter.ts";
import { mayUse, notBound } from "./adapter-keys.ts";
import { urlOf } from "./agent-store.ts";

/** Looks at the endpoint before the transaction begins, since a name has to be resolved for it: ENDPOINT_REFUSED. */
export function afterEndpointCheck<Request, Reply>(
  app: App,
  endpointOf: (request: Request) => Endpoint | undefined,
  field: string,
  run: (request: Request, context: HandlerContext) => Promise<Reply>,
) {
  return async (request: Request, context: HandlerContext): Promise<Reply> => {
    const endpoint = endpointOf(request);
    if (endpoint) await checkEndpoint(app, endpoint, field);
    return run(request, context);
  };
}

async function checkEndpoint(app: App, endpoint: Endpoint, field: string): Promise<void> {
  const { kind } = endpoint;
  const place = urlOf(endpoint);
  if (place) await checkUrl(app.egress, place.url, `${field}.${place.field}`);
  if (kind.case === "grpc" && !/^\w+:\/\/[^/?#]+\/?$/.test(kind.value.url))
    throw badField(`${field}.grpc.url`, "has a path; a gRPC endpoint is a scheme, a host and perhaps a port");
  if (kind.case === "openai" && kind.value.credential.case === "apiKeyEnv") {
    const { value: name } = kind.value.credential;
    if (!mayUse(app.config.adapterKeys, name, kind.value.baseUrl))
      throw refused(`${field}.openai.api_key_env`, notBound(name));
  }
  if (kind.case === "peer")
    throw refused(`${field}.peer`, "agents that stand for other servers are made by PeerService/AddPeer");
  if (kind.case === "custom") {
    checkMetadata(kind.value.config, `${field}.custom.config`);
    if (!adapterFor(app.adapters, endpoint))
      throw refused(`${field}.custom.adapter`, `this server has no custom adapter ${kind.value.adapter}`);
  }
}

/** Whether a URL may be called as far as can be known now: ENDPOINT_REFUSED. */
export async function checkUrl(
  egress: Pick<Egress, "check">,
  url: string,
  field: string,
  kind = "an http or https URL",
): Promise<void> {
  try {
    await egress.check(url);
  } catch (error) {
    if (!(error instanceof EgressError)) throw error;
    const fix = `it must be ${kind} of a public address, or one that the operator allows with MOLTWIRE_EGRESS_ALLOW`;
    throw refused(field, error.message, `; ${fix}`, error);
  }
}

const refused = (field: string, description: string, fix = "", cause?: unknown): Fault =>
  new Fault(
    "ENDPOINT_REFUSED",
    `${field}: ${description}${fix}`,
    { field },
    { fields: [{ field, description }], cause },
  );
