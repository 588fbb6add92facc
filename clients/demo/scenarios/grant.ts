/** A grant of 50,000 tokens a day: proposed it opens nothing; accepted by the other organisation it does, and both read the same terms. */
import { GrantActSchema, GrantPartySchema, GrantStateSchema } from "../../../gen/moltwire/federation/v1/grant_pb.ts";
import { GrantService } from "../../../gen/moltwire/federation/v1/grant_service_pb.ts";
import { nameIn } from "../../cli/names.ts";
import { refused, same } from "./claim.ts";
import { addFlaky } from "./flaky-agent.ts";
import { addPartner, askAcross, openTo, propose } from "./partner.ts";
import type { Outcome, World } from "./scenario.ts";

const tokensPerDay = 50_000;
const input = { text: "not before both agree" };
const purpose = "counting words";

/** Proposes to one partner, has it accept, and has another look. */
export async function grant(world: World): Promise<Outcome> {
  const { admin } = world;
  const { contractId, calls } = await addFlaky(world, "grant", {});
  const [partner, other] = [await addPartner(world, "grant"), await addPartner(world, "grant-other")];
  const subject = { case: "contractId", value: contractId } as const;
  const { grantId, state } = await propose(world, partner, subject, { tokensPerDay: BigInt(tokensPerDay), purpose });
  same("the state of a new grant", nameIn(GrantStateSchema, state), "PROPOSED");
  const { metadata } = await refused("NOT_FOUND", askAcross(world, partner, contractId, input));
  await refused("GRANT_PARTY_REQUIRED", admin(GrantService).acceptGrant({ grantId }));

  await partner.admin(GrantService).acceptGrant({ grantId });
  const [mine, theirs] = await Promise.all(
    [admin, partner.admin].map((reader) => reader(GrantService).getGrant({ grantId })),
  );
  same("the grant, as the two organisations read it", mine!.grant, theirs!.grant);
  const { terms, revision, state: agreed } = mine!.grant!;
  same(
    "state, tokens and purpose of the grant",
    [nameIn(GrantStateSchema, agreed), Number(terms?.tokensPerDay), terms?.purpose],
    ["ACTIVE", tokensPerDay, purpose],
  );
  const history = mine!.revisions.map(({ act, party }) => [
    nameIn(GrantPartySchema, party),
    nameIn(GrantActSchema, act),
  ]);
  same("who did what to it, latest first", history, [
    ["GRANTEE", "ACCEPT"],
    ["GRANTOR", "PROPOSE"],
  ]);
  same(
    "what it opens to the partner, and to another",
    [await openTo(partner), await openTo(other)],
    [[contractId], []],
  );
  await refused("NOT_FOUND", other.admin(GrantService).getGrant({ grantId }));
  same("calls of the agent", await calls(), 0);
  return {
    proof: `PROPOSED with ${tokensPerDay.toLocaleString("en")} tokens a day it opens nothing (NOT_FOUND), and its giver may not accept it (GRANT_PARTY_REQUIRED); accepted it is ACTIVE at revision ${revision}, opens 1 contract, and a third organisation does not see it`,
    traceId: metadata.trace_id!,
  };
}
