import type { MessageInitShape } from "@bufbuild/protobuf";
import type { ServiceImpl } from "@connectrpc/connect";
import { TrustTier } from "../../gen/moltwire/bus/v1/agent_pb.ts";
import type {
  AgentService,
  DeleteAgentRequest,
  DeleteAgentResponseSchema,
} from "../../gen/moltwire/bus/v1/agent_service_pb.ts";
import type { App } from "../app.ts";
import type { Tx } from "../db/db.ts";
import { badField, Fault, notFound } from "../errors.ts";
import { closeWallet } from "../exchange/ledger/wallet.ts";
import { revokeAgentKeys } from "../federation/api-key-store.ts";
import { checkNamespace } from "../federation/namespace-store.ts";
import { dropMemories } from "../memory/drop.ts";
import { dropSchedules } from "../queue/schedule/drop.ts";
import { dropAgent } from "../relay/drop.ts";
import { type Caller, callerOf } from "../rpc/caller.ts";
import { checkMetadata, checkRevision, maskedFields, unlessTaken } from "../rpc/change.ts";
import { command, runCommand } from "../rpc/command.ts";
import { keyTopic } from "../rpc/feed.ts";
import { readPage } from "../rpc/page.ts";
import { query } from "../rpc/query.ts";
import { orgOf, seesWholeOrg } from "../rpc/scope.ts";
import { dropWebhooksOf } from "../webhook/store.ts";
import { deleteSecret } from "./agent-secret-store.ts";
import {
  type AgentRow,
  breakerText,
  checkAgentQuota,
  deleteAgent,
  endpointText,
  findShownAgent,
  insertAgent,
  listAgents,
  lockAgent,
  toAgent,
  updateAgent,
} from "./agent-store.ts";
import { deleteCircuit, findCircuit, toCircuitMessage } from "./circuit/circuit-store.ts";
import { breakerOfRow } from "./circuit/conduct.ts";
import { afterEndpointCheck } from "./endpoint-check.ts";
import { takeKeyOut } from "./endpoint-key.ts";
import { reviewWaiting } from "./serve/pulled-store.ts";

const changeable = [
  "name",
  "description",
  "trust_tier",
  "capabilities",
  "allowed_tools",
  "endpoint",
  "metadata",
  "disabled",
  "weight",
  "breaker",
  "namespace",
] as const;
/** What decides whether an agent may do the tasks that wait for it. */
const decisive = ["trust_tier", "capabilities", "allowed_tools", "endpoint", "disabled"] as const;
/** Who looks, unless it sees all of its organisation. */
const lookingAgent = (caller: Caller): string | undefined => (seesWholeOrg(caller) ? undefined : caller.agentId);
const taken = (name: string) =>
  new Fault("ALREADY_EXISTS", `the name ${name} is taken`, { resource: "agent", id: name, field: "name" });

export const agentHandler = (app: App): ServiceImpl<typeof AgentService> => ({
  registerAgent: afterEndpointCheck(
    app,
    (req) => req.endpoint,
    "endpoint",
    command(app, async (req, { tx, orgId, now }) => {
      await checkAgentQuota(tx, orgId);
      await checkNamespace(tx, orgId, req.namespace);
      const agentId = app.ids.next("agt");
      const endpoint = await takeKeyOut(tx, app, { orgId, agentId }, req.endpoint, "endpoint");
      const row: AgentRow = {
        org_id: orgId,
        agent_id: agentId,
        name: req.name,
        description: req.description,
        trust_tier: req.trustTier || TrustTier.INTERNAL_RESTRICTED,
        capabilities: JSON.stringify(req.capabilities),
        allowed_tools: JSON.stringify(req.allowedTools),
        endpoint: endpointText(endpoint),
        metadata: checkMetadata(req.metadata),
        disabled: 0,
        create_ms: now,
        update_ms: now,
        revision: 1,
        weight: req.weight || 1,
        breaker: breakerText(req.breaker),
        namespace: req.namespace,
      };
      if ((await insertAgent(tx, row)) === 0) throw taken(req.name);
      return { agent: toAgent(row) };
    }),
  ),

  getAgent: query(app, async (req, { db, caller, orgId, now }) => {
    const row = await findShownAgent(db, orgId, req.agentId, lookingAgent(caller));
    if (!row) throw notFound("agent", req.agentId);
    const circuit = await findCircuit(db, orgId, req.agentId);
    return { agent: toAgent(row, toCircuitMessage(circuit, breakerOfRow(row), now)) };
  }),

  listAgents: query(app, async (req, { db, caller, orgId }) => {
    const scope = ["ListAgents", orgId, req.capability, req.name, req.namespace];
    const filter = {
      capability: req.capability,
      name: req.name,
      namespace: req.namespace,
      asAgentId: lookingAgent(caller),
    };
    const page = await readPage(
      app.cursors,
      scope,
      req,
      (after, limit) => listAgents(db, orgId, filter, after, limit),
      (row) => [row.agent_id],
    );
    return { agents: page.rows.map((row) => toAgent(row)), nextPageToken: page.nextPageToken };
  }),

  updateAgent: afterEndpointCheck(
    app,
    (req) => (req.updateMask?.paths.includes("endpoint") ? req.change?.endpoint : undefined),
    "change.endpoint",
    command(app, async (req, { tx, orgId, now }) => {
      const mask = maskedFields(req.updateMask, changeable);
      const row = await lockAgent(tx, orgId, req.agentId);
      if (!row) throw notFound("agent", req.agentId);
      checkRevision(req.ifRevision, row.revision);
      const change = req.change!;
      if (mask.has("name") && change.name === "") throw badField("change.name", "must not be empty");
      if (mask.has("trust_tier") && change.trustTier === TrustTier.UNSPECIFIED)
        throw badField("change.trust_tier", "must not be empty");
      if (mask.has("namespace")) await checkNamespace(tx, orgId, change.namespace);
      const endpoint = mask.has("endpoint")
        ? await takeKeyOut(tx, app, { orgId, agentId: req.agentId }, change.endpoint, "change.endpoint")
        : undefined;
      const next: AgentRow = {
        ...row,
        ...(mask.has("name") && { name: change.name }),
        ...(mask.has("description") && { description: change.description }),
        ...(mask.has("trust_tier") && { trust_tier: change.trustTier }),
        ...(mask.has("capabilities") && { capabilities: JSON.stringify(change.capabilities) }),
        ...(mask.has("allowed_tools") && { allowed_tools: JSON.stringify(change.allowedTools) }),
        ...(mask.has("endpoint") && { endpoint: endpointText(endpoint) }),
        ...(mask.has("metadata") && { metadata: checkMetadata(change.metadata, "change.metadata") }),
        ...(mask.has("disabled") && { disabled: change.disabled ? 1 : 0 }),
        ...(mask.has("weight") && { weight: change.weight || 1 }),
        ...(mask.has("breaker") && { breaker: breakerText(change.breaker) }),
        ...(mask.has("namespace") && { namespace: change.namespace }),
        update_ms: now,
        revision: row.revision + 1,
      };
      await unlessTaken(updateAgent(tx, next), () => taken(change.name));
      // Before the circuit, as who claims a task locks that first, and then looks whether the circuit lets it through.
      if (decisive.some((field) => mask.has(field))) await reviewWaiting(tx, orgId, req.agentId);
      if (mask.has("endpoint") || mask.has("breaker")) await deleteCircuit(tx, orgId, req.agentId);
      return { agent: toAgent(next) };
    }),
  ),

  deleteAgent: (req, context) =>
    req.validateOnly
      ? wouldGo(app, req, callerOf(context))
      : runCommand(app, req, context, ({ agentId }, { tx, orgId, now }) => removeAgent(tx, orgId, agentId, now)).then(
          ({ reply }) => reply,
        ),
});

type Gone = MessageInitShape<typeof DeleteAgentResponseSchema>;

/** Takes the agent away with all that is its own. */
async function removeAgent(tx: Tx, orgId: string, agentId: string, now: number): Promise<Gone> {
  if ((await deleteAgent(tx, orgId, agentId)) === 0) throw notFound("agent", agentId);
  await reviewWaiting(tx, orgId, agentId);
  await deleteCircuit(tx, orgId, agentId);
  await deleteSecret(tx, orgId, agentId);
  const revoked = await revokeAgentKeys(tx, orgId, agentId, now);
  for (const keyId of revoked) tx.ring(keyTopic(keyId));
  const deletedMemories = await dropMemories(tx, orgId, agentId);
  const deletedSchedules = await dropSchedules(tx, orgId, agentId);
  const deletedMessages = BigInt(await dropAgent(tx, orgId, agentId));
  const deletedWebhooks = await dropWebhooksOf(tx, orgId, agentId);
  const returnedCreditsMicros = await closeWallet(tx, orgId, agentId, now);
  const deleted = { deletedMemories, deletedSchedules, deletedMessages, deletedWebhooks };
  return { revokedApiKeys: revoked.length, ...deleted, returnedCreditsMicros };
}

/** Thrown to undo what was only tried. */
const undone = new Error("tried, and undone");

/** What would be gone: it is removed, counted, and all of that undone. */
async function wouldGo(app: App, { orgId: named, agentId }: DeleteAgentRequest, caller: Caller): Promise<Gone> {
  let gone: Gone = {};
  const trying = app.db.tx(async (tx) => {
    gone = await removeAgent(tx, await orgOf(tx, caller, named), agentId, app.clock.now());
    throw undone;
  });
  await trying.catch((error: unknown) => {
    if (error !== undone) throw error;
  });
  return gone;
}
