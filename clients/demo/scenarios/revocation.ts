/** A grant is revoked while an agent works under it: the task ends within a second, and what it opened does not seem to exist any more. */
import { setTimeout as delay } from "node:timers/promises";
import { ErrorReasonSchema } from "../../../gen/moltwire/api/v1/error_reason_pb.ts";
import { GrantActSchema, GrantPartySchema, GrantStateSchema } from "../../../gen/moltwire/federation/v1/grant_pb.ts";
import { GrantService } from "../../../gen/moltwire/federation/v1/grant_service_pb.ts";
import { nameIn, stateName } from "../../cli/names.ts";
import { span } from "../../cli/output.ts";
import { outputOf, watch } from "../ask.ts";
import { claim, refused, same } from "./claim.ts";
import { addFlaky } from "./flaky-agent.ts";
import { addPartner, agree, askAcross, openTo, usageOf } from "./partner.ts";
import type { Outcome, World } from "./scenario.ts";

const estimate = 100;
const maxWaitMs = 2_000;
const lookMs = 10;
/** A second, and what the calls take that see it. */
const maxEndMs = 2_000;
const input = { text: "four words at most" };

/** Has a task done, revokes the grant during the next one, and asks again. */
export async function revocation(world: World): Promise<Outcome> {
  const { admin } = world;
  const { contractId, behave, calls } = await addFlaky(world, "revocation", { estimatedTokens: BigInt(estimate) });
  const partner = await addPartner(world, "revocation");
  const { grantId } = await agree(world, partner, { case: "contractId", value: contractId });
  same("what its agent answers before", outputOf(await askAcross(world, partner, contractId, input)), { words: 4 });
  await behave("held");
  const { taskId, traceId } = await askAcross(world, partner, contractId, input, { returnImmediately: true });
  await called(calls, 2);

  const began = performance.now();
  await admin(GrantService).revokeGrant({ grantId });
  const { state, error } = await watch(partner.asker, taskId);
  const tookMs = performance.now() - began;
  same(
    "how the task under way ended",
    [stateName(state), nameIn(ErrorReasonSchema, error?.reason ?? 0)],
    ["REJECTED", "GRANT_NOT_ACTIVE"],
  );
  claim(tookMs <= maxEndMs, `the task ended ${span(tookMs)} after the grant, and should have within a second`);
  await behave("up");
  const next = await refused("NOT_FOUND", askAcross(world, partner, contractId, input));
  same("what is open to the partner", await openTo(partner), []);
  const { grant, revisions } = await partner.admin(GrantService).getGrant({ grantId });
  same(
    "the grant, and who changed it last, as the partner reads it",
    [grant!.state, revisions[0]!.act, revisions[0]!.party].map((number, at) => nameIn(schemas[at]!, number)),
    ["REVOKED", "REVOKE", "GRANTOR"],
  );
  same("what is still set aside", (await usageOf(admin, grantId)).reserved, 0);
  same("calls of the agent", await calls(), 2);
  return {
    proof: `revoked while an agent worked under it: that task was ${stateName(state)} with GRANT_NOT_ACTIVE ${span(tookMs)} later, nothing is set aside any more; the next request is NOT_FOUND: ${next.message}`,
    traceId,
  };
}

const schemas = [GrantStateSchema, GrantActSchema, GrantPartySchema];

/** Waits until so many tasks have come to the agent. */
async function called(calls: () => Promise<number>, count: number): Promise<void> {
  const end = performance.now() + maxWaitMs;
  while ((await calls()) < count) {
    claim(performance.now() < end, `the task did not come to its agent within ${span(maxWaitMs)}`);
    await delay(lookMs);
  }
}
