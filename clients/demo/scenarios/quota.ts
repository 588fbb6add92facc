/** A grant's tokens of the day run out: of requests at once exactly those pass for which there is room, and what is not used is free again. */
import { outputOf, watch } from "../ask.ts";
import { claim, refused, same } from "./claim.ts";
import { addFlaky } from "./flaky-agent.ts";
import { addPartner, agree, askAcross, usageOf } from "./partner.ts";
import type { Outcome, World } from "./scenario.ts";

const tokensPerDay = 50_000;
const estimate = 20_000;
const callers = 6;
const input = { text: "each sets twenty thousand tokens aside" };

/** Uses a grant up by requests at once, and again when they have ended. */
export async function quota(world: World): Promise<Outcome> {
  const { contractId, behave, calls } = await addFlaky(world, "quota", { estimatedTokens: BigInt(estimate) });
  const partner = await addPartner(world, "quota");
  const subject = { case: "contractId", value: contractId } as const;
  const { grantId } = await agree(world, partner, subject, { tokensPerDay: BigInt(tokensPerDay) });
  const begin = () => askAcross(world, partner, contractId, input, { returnImmediately: true });

  await behave("held");
  const asked = Array.from({ length: callers }, begin);
  const results = await Promise.allSettled(asked);
  const passed = results.flatMap((one) => (one.status === "fulfilled" ? [one.value] : []));
  const room = Math.floor(tokensPerDay / estimate);
  same("requests at once that passed", passed.length, room);
  for (const [at, one] of results.entries())
    if (one.status === "rejected") await refused("GRANT_QUOTA_EXCEEDED", asked[at]!);
  const reserved = room * estimate;
  const { metadata, retryMs = 0 } = await refused("GRANT_QUOTA_EXCEEDED", begin());
  const figures = { limit: String(tokensPerDay), used: "0", reserved: String(reserved), wanted: String(estimate) };
  same("the refusal", metadata, { ...metadata, ...figures, unit: "tokens", grant_id: grantId });
  const reset = metadata.reset_time ?? "";
  claim(/T00:00:00/.test(reset) && retryMs > 0, "the refusal says no time to come back");

  await behave("up");
  const ended = await Promise.all(passed.map(({ taskId }) => watch(partner.asker, taskId)));
  const last = await askAcross(world, partner, contractId, input);
  const spent = [...ended, last].reduce((sum, task) => {
    outputOf(task);
    return sum + Number(task.usage!.inputTokens + task.usage!.outputTokens);
  }, 0);
  same("what was used of the grant", await usageOf(partner.admin, grantId), {
    ...{ tokens: spent, reserved: 0 },
    ...{ requests: room + 1, denials: callers - room + 1 },
  });
  same("calls of the agent", await calls(), room + 1);
  return {
    proof: `of ${callers} requests at once ${room} passed, the others GRANT_QUOTA_EXCEEDED: limit ${metadata.limit}, used ${metadata.used}, reserved ${metadata.reserved}, wanted ${metadata.wanted}, resets ${reset.slice(0, 16)}Z; when they had ended the next passed, ${spent} used in all`,
    traceId: metadata.trace_id!,
  };
}
