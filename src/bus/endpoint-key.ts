/** The key in an endpoint is written and never read: it leaves the endpoint before that is stored. */
import { clone } from "@bufbuild/protobuf";
import { type Endpoint, EndpointSchema, type OpenAiEndpoint } from "../../gen/moltwire/bus/v1/agent_pb.ts";
import type { App } from "../app.ts";
import type { Db, Tx } from "../db/db.ts";
import { badField } from "../errors.ts";
import type { Vault } from "../vault/sealed.ts";
import { AttemptFault } from "./adapter.ts";
import { type AdapterKey, mayUse, notBound } from "./adapter-keys.ts";
import { deleteSecret, findSecret, putSecret } from "./agent-secret-store.ts";

/** The key to send to an OpenAI endpoint of an agent, or undefined for none. Throws an AttemptFault when it may not be sent. */
export type KeyOf = (agent: AgentKey, endpoint: OpenAiEndpoint) => Promise<string | undefined>;

type AgentKey = { readonly orgId: string; readonly agentId: string };

/** As OpenAiEndpoint.api_key takes it. */
const keyPattern = /^[!#-[\]-~]{1,512}$/;

/** Keys by value from storage, or by name from the environment. */
export const endpointKeys =
  (db: Db, vault: Vault, bound: readonly AdapterKey[], env: NodeJS.ProcessEnv): KeyOf =>
  async ({ orgId, agentId }, { baseUrl, credential }) => {
    if (credential.case === "apiKeyEnv") {
      const { value: name } = credential;
      // Again, though it was checked at the registration: the operator may have changed the setting since.
      if (!mayUse(bound, name, baseUrl)) throw noKey(notBound(name));
      const key = env[name];
      if (!key) throw noKey(`the variable ${name} is not set on the server`);
      if (!keyPattern.test(key)) throw noKey(`the variable ${name} does not hold a key`);
      return key;
    }
    if (credential.case === undefined) return undefined;
    const stored = await findSecret(db.query, { vault }, orgId, agentId);
    // The agent may have been changed since the endpoint was read.
    if (stored?.origin !== new URL(baseUrl).origin) throw noKey("no key is stored for this origin");
    return stored.key;
  };

const noKey = (why: string): AttemptFault =>
  new AttemptFault("ENDPOINT_REFUSED", "not-begun", `the endpoint cannot be called: ${why}`);

/**
 * Stores, keeps or removes the agent's key as its new endpoint says, and gives the endpoint as it may be stored and answered. A key is kept
 * only for the origin that it was given for. `field` is the endpoint's, for errors.
 */
export async function takeKeyOut(
  tx: Tx,
  app: Pick<App, "vault">,
  agent: AgentKey,
  endpoint: Endpoint | undefined,
  field: string,
): Promise<Endpoint | undefined> {
  const { orgId, agentId } = agent;
  const openai = endpoint?.kind.case === "openai" ? endpoint.kind.value : undefined;
  const origin = openai && new URL(openai.baseUrl).origin;
  if (openai?.credential.case === "apiKeyStored") {
    const stored = await findSecret(tx, app, orgId, agentId);
    if (stored?.origin === origin) return endpoint;
    const why = stored ? `the stored key was given for ${stored.origin}` : "no key is stored";
    throw badField(`${field}.openai.api_key_stored`, `${why}: send the key as api_key`);
  }
  if (openai?.credential.case !== "apiKey") {
    await deleteSecret(tx, orgId, agentId);
    return endpoint;
  }
  await putSecret(tx, app, orgId, agentId, { origin: origin!, key: openai.credential.value });
  const kept = clone(EndpointSchema, endpoint!);
  if (kept.kind.case === "openai") kept.kind.value.credential = { case: "apiKeyStored", value: true };
  return kept;
}
