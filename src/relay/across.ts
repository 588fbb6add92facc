/**
 * Messages across organisations: which agents of another one may be written to, and by whom. There are three doors: the recipient's profile accepts messages of
 * anybody, a grant of its organisation covers it, or the message answers one that it wrote. What is behind no door is not there.
 */

import type { TrustTier } from "../../gen/moltwire/bus/v1/agent_pb.ts";
import { RelayService } from "../../gen/moltwire/relay/v1/relay_service_pb.ts";
import type { App } from "../app.ts";
import { type AgentRow, findAgent } from "../bus/agent-store.ts";
import { type Decided, policyDenied } from "../bus/policy/decide-task.ts";
import { recordDecisions } from "../bus/policy/decision-store.ts";
import { type AgentFacts, agentEntity, asForeigner } from "../bus/policy/entity.ts";
import { asRefused } from "../bus/policy/keeping.ts";
import type { Question } from "../bus/policy/policies.ts";
import type { Tx } from "../db/db.ts";
import { notFound } from "../errors.ts";
import { auditCrossing } from "../federation/crossing-audit.ts";
import { termsOf } from "../federation/grant/store.ts";
import { type Found, findAnywhere, grantsThatCover, wroteTo } from "./across-store.ts";

/** Who writes, from where. */
export type Sending = {
  readonly orgId: string;
  /** Empty: an administrator, for no agent. */
  readonly agentId: string;
  readonly now: number;
  readonly traceId: string;
  /** The message that it says it answers, or empty. */
  readonly replyTo: string;
};

/** An agent of another organisation that may be written to, and who writes. */
export type Reached = { readonly recipient: AgentRow; readonly sender: AgentRow };

/** By which door a message comes in. */
type Door = { readonly letInBy: "profile" | "grant" | "answer"; readonly grantId: string };

/**
 * The agent of another organisation with this id, if it may be written to: by a door, by the policies of its organisation and then by those of the sender's. Both
 * decisions are kept, each by the organisation that made it.
 *
 * Throws NOT_FOUND for whatever is no agent, is behind no door, or is denied by the policies of its organisation, which alone learn of that: the sender's log would
 * tell otherwise which agents there are. Throws POLICY_DENIED where those of the sender deny it.
 */
export async function reach(tx: Tx, app: App, sending: Sending, toAgentId: string): Promise<Reached> {
  const { orgId, agentId, now, traceId } = sending;
  const sender = agentId === "" ? undefined : await findAgent(tx, orgId, agentId);
  const found = sender && (await findAnywhere(tx, toAgentId));
  const door = found && found.org_id !== orgId ? await doorOf(tx, sending, sender, found) : undefined;
  if (!sender || !found || !door) throw notFound("agent", toAgentId);
  const log = async (of: "in" | "out", decided: Decided) => {
    const [own, other] = of === "in" ? [found.org_id, orgId] : [orgId, found.org_id];
    await recordDecisions(tx, app, { orgId: own, traceId, taskId: "", now }, [decided]);
    await auditCrossing(tx, app, {
      ...{ orgId: own, otherOrgId: other, direction: of, method: RelayService.method.send, traceId, now, keyId: "" },
      ...{ verdict: decided.answer.verdict, callerAgentId: agentId },
      about: { from_agent_id: agentId, to_agent_id: toAgentId, grant_id: door.grantId },
    });
  };

  const inwards = await decide(app, tx, found.org_id, asForeigner(sender), found, now, door);
  if (inwards.answer.verdict !== "ALLOW") {
    await log("in", inwards);
    throw asRefused(notFound("agent", toAgentId));
  }
  const outwards = await decide(app, tx, orgId, sender, asForeigner(found), now, undefined);
  await log("out", outwards);
  if (outwards.answer.verdict !== "ALLOW") throw asRefused(policyDenied(outwards));
  await log("in", inwards);
  return { recipient: found, sender };
}

/** The narrowest first: policies of the recipient's organisation may say more of it than of one that is open to anybody. */
async function doorOf(
  tx: Tx,
  { orgId, now, replyTo }: Sending,
  sender: AgentRow,
  found: Found,
): Promise<Door | undefined> {
  const grants = await grantsThatCover(tx, found, orgId, now);
  const grant = grants.find((row) => letsIn(termsOf(row).allowedTiers, sender.trust_tier));
  if (grant) return { letInBy: "grant", grantId: grant.grant_id };
  if (replyTo !== "" && (await wroteTo(tx, sender, found, replyTo))) return { letInBy: "answer", grantId: "" };
  return found.accept_public_messages !== 0 ? { letInBy: "profile", grantId: "" } : undefined;
}

/** Whether a grant is for agents that their organisation trusts so far. */
const letsIn = (allowedTiers: readonly TrustTier[], tier: number): boolean =>
  allowedTiers.length === 0 || allowedTiers.some((allowed) => allowed === tier);

/** What the policies of one of the two organisations say. `door`: it is that of the recipient. */
async function decide(
  app: App,
  tx: Tx,
  orgId: string,
  from: AgentFacts,
  to: AgentFacts,
  now: number,
  door: Door | undefined,
): Promise<Decided> {
  const context = {
    ...{ tokens: 0, origin: "bus", time: { ms: now } },
    ...(door && { let_in_by: door.letInBy }),
    ...(door?.grantId && { grant_id: door.grantId }),
  };
  const question: Question = {
    principal: agentEntity(from),
    action: "send_message",
    resource: agentEntity(to),
    context,
  };
  return { question, answer: await app.policies.decide(tx, orgId, question) };
}
