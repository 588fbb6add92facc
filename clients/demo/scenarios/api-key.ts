/** Who calls is known by a key: none, a forged, a narrower, a rotated and a revoked one are each refused for what they are. */
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { AgentService } from "../../../gen/moltwire/bus/v1/agent_service_pb.ts";
import { ApiKeyService } from "../../../gen/moltwire/federation/v1/api_key_service_pb.ts";
import { connectClients } from "../../cli/connect.ts";
import { ask, outputOf } from "../ask.ts";
import { addCaller } from "../setup.ts";
import { claim, refused, same } from "./claim.ts";
import { addFlaky } from "./flaky-agent.ts";
import type { Outcome, World } from "./scenario.ts";

const scope = "*:read";
const input = { text: "who is calling" };
const words = { words: 3 };

/** Calls with keys that may, and with keys that may not. */
export async function apiKey(world: World): Promise<Outcome> {
  const { admin, url } = world;
  const keys = admin(ApiKeyService);
  const { contractId, calls } = await addFlaky(world, "api-key", {});
  const { agentId, key } = await addCaller(admin, "key-holder", "Calls with keys of its own.");
  const as = (key?: string) => connectClients({ url, ...(key !== undefined && { key }) });
  const use = (key?: string) => ask(as(key), contractId, input);

  await refused("KEY_MISSING", use());
  const at = key.length - 10;
  await refused("KEY_INVALID", use(`${key.slice(0, at)}${key[at] === "x" ? "y" : "x"}${key.slice(at + 1)}`));
  const first = await use(key);
  same("who asked, and what was answered", [first.callerAgentId, outputOf(first)], [agentId, words]);

  const reader = await keys.createApiKey({ name: "demo reader", agentId, scopes: [scope] });
  same("what a key may read", (await as(reader.secret)(AgentService).getAgent({ agentId })).agent?.agentId, agentId);
  const { metadata } = await refused("SCOPE_REQUIRED", use(reader.secret));

  const { apiKeys } = await keys.listApiKeys({ agentId });
  const { keyId } = apiKeys.find(({ scopes }) => scopes.length === 0)!;
  claim(!JSON.stringify(apiKeys.flatMap(Object.values).map(String)).includes(key), "a list of keys shows a secret");
  const next = await keys.rotateApiKey({ keyId, overlap: durationFromMs(0) });
  await refused("KEY_EXPIRED", use(key));
  const task = await use(next.secret);
  same("what is answered to the key that follows", outputOf(task), words);
  await keys.revokeApiKey({ keyId: next.apiKey!.keyId });
  await refused("KEY_REVOKED", use(next.secret));
  same("calls of the agent", await calls(), 2);
  return {
    proof: `none: KEY_MISSING; one letter changed: KEY_INVALID; scope ${scope}: it reads, and may not ask (SCOPE_REQUIRED, ${metadata.required_scope}); rotated: the old one KEY_EXPIRED, the new one COMPLETED; revoked: KEY_REVOKED at once`,
    traceId: task.traceId,
  };
}
