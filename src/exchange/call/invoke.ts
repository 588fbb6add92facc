/** A request for a listing: the third door into the pipeline, for a price. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { HandlerContext } from "@connectrpc/connect";
import type {
  InvokeListingRequest,
  InvokeListingResponseSchema,
} from "../../../gen/moltwire/exchange/v1/catalog_service_pb.ts";
import { ListingState } from "../../../gen/moltwire/exchange/v1/listing_pb.ts";
import type { App } from "../../app.ts";
import { refusedStep } from "../../bus/decide.ts";
import { checkRoom, type Dispatcher, startAccepted } from "../../bus/dispatch.ts";
import { deadlineOf, ended } from "../../bus/ended.ts";
import { actingAgent, asRefused, toInput } from "../../bus/submit.ts";
import { toTask } from "../../bus/task-store.ts";
import { openTrace, recordSteps } from "../../bus/trace-store.ts";
import type { Queryable } from "../../db/db.ts";
import { badField, Fault, notFound, Refused } from "../../errors.ts";
import { type AcceptedAcross, acceptAcross } from "../../federation/gateway/accept.ts";
import { type CountUnder, countUnder } from "../../federation/gateway/rate.ts";
import { withdrawGrant } from "../../federation/grant/store.ts";
import { callerOf } from "../../rpc/caller.ts";
import { type Command, runCommand } from "../../rpc/command.ts";
import { orgOf } from "../../rpc/scope.ts";
import { type Account, agentWallet, walletOf } from "../ledger/account.ts";
import { availableOf, unlessRaced } from "../ledger/afford.ts";
import { toFault } from "../ledger/fault.ts";
import { offerOf } from "../listing/offer.ts";
import { mostOf } from "../listing/price.ts";
import { findListing, isOpen, type ListingRow } from "../listing/store.ts";
import { renewOne } from "../subscription/renew.ts";
import { findLive } from "../subscription/store.ts";
import { auditListingGrant, listingGrant } from "./grant.ts";
import { type Sale, sell, tooDear } from "./sell.ts";
import { paidSubscription, peekTariff } from "./tariff.ts";

type Reply = Extract<MessageInitShape<typeof InvokeListingResponseSchema>, { $typeName?: never }>;

/** Accepts the task with its price in one transaction, then works on it, and waits for its end unless told not to. */
export async function invokeListing(
  app: App,
  dispatcher: Dispatcher,
  req: InvokeListingRequest,
  context: HandlerContext,
): Promise<Reply> {
  checkRoom(dispatcher);
  const deadlineMs = deadlineOf(app.clock.now(), req.returnImmediately ? undefined : context.timeoutMs());
  await renewIfDue(app, req, context);
  let accepted: AcceptedAcross | undefined;
  let turn: number | undefined;
  const count = countUnder(app, context.responseHeader);
  const { reply } = await unlessRaced(() =>
    count.around(() =>
      runCommand(app, req, context, async (request, given): Promise<Reply> => {
        accepted = undefined;
        const turnOf = (listing: ListingRow, contractId: string) => {
          // Once, though the body may run again; of the asking organisation's own, so that nobody turns those of others.
          turn ??= dispatcher.turns.take(`${given.orgId} ${listing.org_id}`, contractId);
          return turn;
        };
        const bought = await buy(app, request, given, deadlineMs, { turnOf, count });
        accepted = bought.accepted;
        return { task: toTask(app, { ...accepted.task, receipt: bought.receipt }), grantId: accepted.grant.grant_id };
      }),
    ),
  );
  const { orgId = "", taskId = "" } = reply.task!;
  if (accepted?.work && accepted.task.task_id === taskId) startAccepted(dispatcher, accepted.work);
  if (req.returnImmediately) return reply;
  const { grantId = "" } = reply;
  return { task: toTask(app, await ended(app, orgId, taskId, context.signal)), grantId };
}

/** A period of a subscription that has just ended is followed by the next before the request is priced, however late the sweep is. */
async function renewIfDue(app: App, req: InvokeListingRequest, context: HandlerContext): Promise<void> {
  const orgId = await orgOf(app.db.query, callerOf(context), req.orgId);
  const row = await findLive(app.db.query, orgId, req.listingId);
  if (row && row.period_end_ms <= app.clock.now()) await renewOne(app, row);
}

async function buy(
  app: App,
  req: InvokeListingRequest,
  given: Command,
  deadlineMs: number | null,
  {
    turnOf,
    count,
  }: { readonly turnOf: (listing: ListingRow, contractId: string) => number; readonly count: CountUnder },
): Promise<{ readonly accepted: AcceptedAcross; readonly receipt: string }> {
  const { tx, caller, orgId, now, trace } = given;
  const callerAgentId = await actingAgent(tx, caller, orgId, req.agentId);
  const payer = payerOf(req, orgId, callerAgentId);
  const listing = await purchasable(tx, orgId, req.listingId, now);
  const offer = offerOf(listing.offer);
  const { contractId, contractVersion, agentId: wantedAgentId } = offer;
  const input = toInput(req.input);
  const { listing_id: listingId, org_id: targetOrgId } = listing;
  const refuse = async (fault: Fault): Promise<never> => {
    const span = { orgId, ...trace, taskId: "", callerAgentId, contractId };
    await openTrace(tx, span, now);
    await recordSteps(tx, app, span, [refusedStep(fault, now)]);
    throw asRefused(fault, trace);
  };
  const expectedMicros = mostOf((await peekTariff(tx, { orgId, listingId, offer, now })).prices);
  const dear = tooDear(listingId, expectedMicros, req.maxPriceMicros);
  const unaffordable = dear ?? (await lacks(tx, payer, expectedMicros, now));
  if (unaffordable) return refuse(unaffordable);
  const granted = await listingGrant(tx, app, listing, orgId, now);
  if (granted instanceof Fault) return refuse(granted);
  const { grant, isNew } = granted;
  const wish = {
    ...{ orgId, callerAgentId, origin: "listing" as const, grantId: grant.grant_id },
    ...{ contract: { contractId, version: contractVersion }, input, wantedAgentId },
  };
  const priced = { listingId, priceMicros: Number(expectedMicros) };
  const order = { wish, targetOrgId, ...priced, labels: req.labels, deadlineMs, trace, retryOfDeadLetterId: "" };
  const accepting = acceptAcross(app, order, given, turnOf(listing, contractId), count);
  const accepted = await accepting.catch(async (error: unknown) => {
    // What is kept of a refusal is why, and not a grant for what was refused.
    if (isNew && error instanceof Refused) await withdrawGrant(tx, grant);
    throw error;
  });
  if (isNew) await auditListingGrant(tx, app, grant, given);
  const sale: Sale = {
    ...{ listing, offer, home: accepted.task, guest: accepted.work?.task, payer, now },
    ...{ maxPriceMicros: req.maxPriceMicros, expectedMicros },
  };
  return { accepted, receipt: await sell(tx, app, sale) };
}

function payerOf(req: InvokeListingRequest, orgId: string, callerAgentId: string): Account {
  if (!req.fromAgentWallet) return walletOf(orgId);
  if (callerAgentId === "") throw badField("from_agent_wallet", "name the agent that pays: agent_id");
  return agentWallet(orgId, callerAgentId);
}

/** A listing that the organisation may ask for: a published one of another that works, or one that it has paid a period of. */
async function purchasable(db: Queryable, orgId: string, listingId: string, now: number): Promise<ListingRow> {
  const row = await findListing(db, listingId);
  const isThere =
    row !== undefined &&
    (row.org_id === orgId ||
      ((await isOpen(db, row.org_id)) &&
        (row.state === ListingState.PUBLISHED ||
          (await paidSubscription(db, { orgId, listingId, now })) !== undefined)));
  if (!isThere) throw notFound("listing", listingId);
  if (row.org_id === orgId)
    throw badField("listing_id", "it is your organisation's own: submit to its contract (BusService/SubmitTask)");
  return row;
}

/** Why the request would be refused for its price as the wallet stands. */
async function lacks(db: Queryable, payer: Account, required: bigint, now: number): Promise<Fault | undefined> {
  const available = required > 0n ? await availableOf(db, payer, now) : 0n;
  return available < required ? toFault({ why: "insufficient", account: payer, available, required }) : undefined;
}
