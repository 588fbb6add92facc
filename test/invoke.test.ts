import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { BudgetPeriod, BudgetScope } from "../gen/moltwire/bus/v1/budget_pb.ts";
import { Charge, ReceiptState } from "../gen/moltwire/bus/v1/receipt_pb.ts";
import { TaskState } from "../gen/moltwire/bus/v1/task_pb.ts";
import { TraceEventKind } from "../gen/moltwire/bus/v1/trace_pb.ts";
import { AccountKind, TransactionKind, TransactionStep } from "../gen/moltwire/exchange/v1/ledger_pb.ts";
import { BillingPeriod } from "../gen/moltwire/exchange/v1/listing_pb.ts";
import { GrantState } from "../gen/moltwire/federation/v1/grant_pb.ts";
import { sql } from "../src/db/db.ts";
import { freeUseKeptMs } from "../src/exchange/call/sweep.ts";
import { type Adapter, type Assignment, AttemptFault } from "../src/server.ts";
import { eventsOf, nameOf, reasonOf, stateOf, value, whenEnded } from "./bus-fixtures/bus.ts";
import { credits, proofOf } from "./exchange-fixtures/ledger.ts";
import { leave, type Market, market, walletOf } from "./exchange-fixtures/listing.ts";
import { dialects, eventually, fakeClock, type Org, refusal, start, untilTaken, type World } from "./harness.ts";

const day = 86_400_000;
const scripted = { kind: { case: "custom", value: { adapter: "scripted", config: {} } } } as const;
const none = { inputTokens: 0, outputTokens: 0, model: "" };

describe.each(dialects)("%s", (dialect) => {
  const clock = fakeClock();
  let world: World;
  /** What the custom adapter does with the next attempts. */
  let work: (assignment: Assignment, signal: AbortSignal) => ReturnType<Adapter>;
  beforeAll(async () => {
    const adapters = {
      scripted: (_: unknown, assignment: Assignment, signal: AbortSignal) => work(assignment, signal),
    };
    world = await start(dialect, { clock, adapters });
  });
  afterAll(() => world[Symbol.asyncDispose]());

  /** An attempt that hangs until it is told how it ends. */
  function held() {
    const begun = Promise.withResolvers<void>();
    const ended = Promise.withResolvers<Awaited<ReturnType<Adapter>>>();
    work = async () => {
      begun.resolve();
      return ended.promise;
    };
    return { begun: begun.promise, end: (usage = none) => ended.resolve({ output: null, usage }), fail: ended.reject };
  }
  const feesHeld = async () =>
    (await world.operator.billing.getBalance({ accountId: "fees" }).catch(() => undefined))?.balance?.balanceMicros ??
    0n;
  const chargesOf = async (org: Org, traceId: string) =>
    (await eventsOf(org.admin, traceId)).filter(({ kind }) => kind === TraceEventKind.CHARGED);

  test("5 credits at 10 % are 4.5 for the provider and 0.5 for the platform, with a receipt on both sides and in both traces", async () => {
    const { seller, buyer, listingId, buy } = await market(world);
    const fees = await feesHeld();
    const task = await buy({ input: { ask: "anything" } });
    expect([stateOf(task), task.grantId.slice(0, 4)]).toEqual(["COMPLETED", "grt_"]);
    const receipt = {
      ...{ listingId, listingVersion: 1n, charge: Charge.PRICED, state: ReceiptState.SETTLED },
      ...{ reservedMicros: credits(5), amountMicros: credits(5), feeMicros: credits(0.5), payerAccountId: "wallet" },
    };
    expect(task.receipt).toMatchObject(receipt);
    expect(await walletOf(buyer)).toEqual([credits(995), 0n]);
    expect(await walletOf(seller)).toEqual([credits(1_004.5), 0n]);
    expect((await feesHeld()) - fees).toBe(credits(0.5));
    for (const org of [buyer, seller]) {
      const { task: side } = await org.admin.bus.getTask({ taskId: task.taskId });
      expect(side!.receipt).toMatchObject(receipt);
      const steps = await chargesOf(org, task.traceId);
      expect(steps.map(({ details }) => details!.state)).toEqual(["RECEIPT_STATE_RESERVED", "RECEIPT_STATE_SETTLED"]);
      expect(steps[1]!.details).toMatchObject({
        amount_micros: "5000000",
        fee_micros: "500000",
        listing_id: listingId,
      });
    }
    const lines = (await buyer.admin.billing.listTransactions({ kind: TransactionKind.LISTING })).transactions;
    expect(lines.map(({ step }) => step)).toEqual([TransactionStep.SETTLED, TransactionStep.RESERVED]);
    expect(lines[0]).toMatchObject({
      reference: listingId,
      counterpartyOrgId: seller.orgId,
      amountMicros: -credits(5),
    });
    const earned = (await seller.admin.billing.listTransactions({ pageSize: 2 })).transactions;
    expect(new Set(earned.map(({ chainId }) => chainId)).size).toBe(1);
    expect(earned.map(({ amountMicros }) => amountMicros).toSorted()).toEqual([-credits(0.5), credits(5)].toSorted());
    expect(earned.some(({ counterpartyKind }) => counterpartyKind === AccountKind.FEES)).toBe(true);
    expect((await proofOf(world.operator)).faults).toEqual([]);
  });

  test("a grant is made with the first request, on the listing and nothing else; the provider holds and ends it as any other", async () => {
    const { seller, buyer, asker, contractId, listingId, buy } = await market(world);
    const { grantId } = await buy();
    expect((await buy()).grantId).toBe(grantId);
    const { grant } = await buyer.admin.grants.getGrant({ grantId });
    expect(grant).toMatchObject({ state: GrantState.ACTIVE, subject: { case: "listingId", value: listingId } });
    const submit = (wish: object) =>
      asker.as.gateway.submitTask({ targetOrgId: seller.orgId, contractId, input: value({}), ...wish });
    for (const wish of [{}, { grantId }]) expect((await refusal(submit(wish))).reason).toBe("NOT_FOUND");
    expect((await asker.as.gateway.listContracts({})).contracts).toEqual([]);
    const { state } = (await seller.admin.grants.suspendGrant({ grantId })).grant!;
    expect(state).toBe(GrantState.SUSPENDED);
    const before = await walletOf(buyer);
    const refused = await refusal(buy());
    expect([refused.reason, refused.metadata.grant_id]).toEqual(["GRANT_NOT_ACTIVE", grantId]);
    await seller.admin.grants.resumeGrant({ grantId });
    await seller.admin.grants.updateGrant({
      grantId,
      change: { requestsPerDay: 2n },
      updateMask: { paths: ["requests_per_day"] },
    });
    expect((await refusal(buy())).reason).toBe("GRANT_QUOTA_EXCEEDED");
    await seller.admin.grants.revokeGrant({ grantId });
    expect((await refusal(buy())).reason).toBe("GRANT_NOT_ACTIVE");
    expect(await walletOf(buyer)).toEqual(before);
    const other = await market(world);
    const left = await other.buy();
    await other.buyer.admin.grants.revokeGrant({ grantId: left.grantId });
    expect((await other.buy()).grantId).not.toBe(left.grantId);
  });

  test("concurrent first requests make one grant", async () => {
    const { buyer, buy } = await market(world);
    const tasks = await Promise.all(Array.from({ length: 12 }, () => buy()));
    expect(new Set(tasks.map(({ grantId }) => grantId)).size).toBe(1);
    expect((await buyer.admin.grants.listGrants({})).grants).toHaveLength(1);
    expect(await walletOf(buyer)).toEqual([credits(940), 0n]);
  });

  test("with a balance of 100, of 500 concurrent purchases of 1 exactly 100 happen", async () => {
    const { seller, buyer, buy } = await market(world, { offer: { pricing: { requestMicros: credits(1) } } });
    await leave(buyer, credits(100));
    const outcomes = { completed: 0, short: 0 };
    const one = async (_: unknown, n: number) => {
      // Bought once, though it may be asked for again when the server had no room.
      const options = { headers: { "idempotency-key": `purchase-${n}` } };
      try {
        expect(stateOf(await untilTaken(() => buy({}, options)))).toBe("COMPLETED");
        outcomes.completed++;
      } catch (error) {
        expect((await refusal(Promise.reject(error))).reason).toBe("INSUFFICIENT_CREDITS");
        outcomes.short++;
      }
    };
    await Promise.all(Array.from({ length: 500 }, one));
    expect(outcomes).toEqual({ completed: 100, short: 400 });
    expect(await walletOf(buyer)).toEqual([0n, 0n]);
    expect(await walletOf(seller)).toEqual([credits(1_090), 0n]);
    expect((await proofOf(world.operator)).faults).toEqual([]);
  });

  test("a request that fails, is canceled or rejected costs nothing, and no dead letter brings it back for nothing", async () => {
    const init = { agent: { endpoint: scripted } };
    const { seller, buyer, listingId, buy } = await market(world, init);
    const before = [await walletOf(seller), await walletOf(buyer)];
    work = async () => {
      throw new Error("it broke");
    };
    const failed = await buy();
    expect([stateOf(failed), failed.receipt!.state]).toEqual(["FAILED", ReceiptState.VOIDED]);
    expect(failed.receipt).toMatchObject({ amountMicros: 0n, feeMicros: 0n, reservedMicros: credits(5) });
    work = async () => {
      throw new AttemptFault("AGENT_UNREACHABLE", "lost", "no answer came");
    };
    const unknown = await buy();
    expect([reasonOf(unknown), unknown.receipt!.state]).toEqual(["OUTCOME_UNKNOWN", ReceiptState.VOIDED]);
    // Nothing was bought so far, and so there is nothing to say of it.
    const review = buyer.admin.reviews.createReview({ listingId, rating: 1 });
    expect((await refusal(review)).reason).toBe("FAILED_PRECONDITION");
    const hung = held();
    const { taskId } = await buy({ returnImmediately: true });
    await hung.begun;
    expect(await walletOf(buyer)).toEqual([credits(1_000), credits(5)]);
    await buyer.admin.bus.cancelTask({ taskId });
    const canceled = await whenEnded(buyer.admin, taskId);
    expect([stateOf(canceled), canceled.receipt!.state]).toEqual(["CANCELED", ReceiptState.VOIDED]);
    hung.end();
    const again = held();
    const last = await buy({ returnImmediately: true });
    await again.begun;
    await seller.admin.grants.revokeGrant({ grantId: last.grantId });
    const rejected = await eventually(async () => {
      clock.advance(500);
      const { task } = await buyer.admin.bus.getTask({ taskId: last.taskId });
      return task!.state === TaskState.REJECTED && task;
    });
    expect([reasonOf(rejected), rejected.receipt!.state]).toEqual(["GRANT_NOT_ACTIVE", ReceiptState.VOIDED]);
    again.end();
    expect([await walletOf(seller), await walletOf(buyer)]).toEqual(before);
    const { measured } = await seller.admin.catalog.getListing({ listingId });
    expect([measured!.requests, measured!.failed]).toEqual([2n, 2n]);
    const retry = async () => {
      const { deadLetters } = await buyer.admin.deadLetters.listDeadLetters({});
      return buyer.admin.deadLetters.retryDeadLetter({ deadLetterId: deadLetters[0]!.deadLetterId });
    };
    expect((await refusal(retry())).reason).toBe("FAILED_PRECONDITION");
  });

  test("an output that breaks the contract costs nothing", async () => {
    const outputSchema = { type: "object", required: ["answer"] };
    const { buyer, buy } = await market(world, { contract: { outputSchema } });
    const task = await buy({ input: { question: 1 } });
    expect([stateOf(task), reasonOf(task)]).toEqual(["FAILED", "CONTRACT_VIOLATION"]);
    expect(await walletOf(buyer)).toEqual([credits(1_000), 0n]);
    expect((await buy({ input: { answer: 1 } })).receipt!.amountMicros).toBe(credits(5));
  });

  test("tokens are set aside at their most and paid as they were used, and not beyond the most", async () => {
    const pricing = { requestMicros: credits(1), thousandTokensMicros: credits(2), maxTokens: 5_000n };
    const { buyer, buy } = await market(world, { offer: { pricing }, agent: { endpoint: scripted } });
    const hung = held();
    const { taskId, receipt } = await buy({ returnImmediately: true });
    expect(receipt).toMatchObject({ state: ReceiptState.RESERVED, reservedMicros: credits(11), amountMicros: 0n });
    await hung.begun;
    expect(await walletOf(buyer)).toEqual([credits(1_000), credits(11)]);
    hung.end({ inputTokens: 1_000, outputTokens: 501, model: "m" });
    const task = await whenEnded(buyer.admin, taskId);
    expect(task.receipt).toMatchObject({ amountMicros: credits(4.002), tokens: 1_501n, feeMicros: credits(0.4002) });
    expect(await walletOf(buyer)).toEqual([credits(995.998), 0n]);
    work = async () => ({ output: null, usage: { inputTokens: 9_000, outputTokens: 9_000, model: "m" } });
    expect((await buy()).receipt).toMatchObject({ amountMicros: credits(11), tokens: 5_000n });
  });

  test("a price that changes while a request is under way does not touch it", async () => {
    const { seller, buyer, buy, change } = await market(world, { agent: { endpoint: scripted } });
    const hung = held();
    const { taskId } = await buy({ returnImmediately: true });
    await hung.begun;
    await change({ pricing: { requestMicros: credits(50) } });
    await seller.admin.catalog.unpublishListing({
      listingId: (await buyer.admin.bus.getTask({ taskId })).task!.receipt!.listingId,
    });
    hung.end();
    const task = await whenEnded(buyer.admin, taskId);
    expect(task.receipt).toMatchObject({ state: ReceiptState.SETTLED, listingVersion: 1n, amountMicros: credits(5) });
    expect(await walletOf(buyer)).toEqual([credits(995), 0n]);
    await change({ pricing: { requestMicros: credits(50) } });
    const dear = await refusal(buy({ maxPriceMicros: credits(5) }));
    expect([dear.reason, dear.metadata.price_micros]).toEqual(["FAILED_PRECONDITION", String(credits(50))]);
    expect((await buy({ maxPriceMicros: credits(50) })).receipt!.listingVersion).toBe(3n);
  });

  test("of the free tier exactly so many are free in a period, however many come at once; those that fail do not count", async () => {
    const pricing = { requestMicros: credits(1), freeTier: { requests: 5, period: BillingPeriod.DAY } };
    const { buyer, buy } = await market(world, { offer: { pricing }, agent: { endpoint: scripted } });
    work = async () => {
      throw new Error("it broke");
    };
    expect((await buy()).receipt).toMatchObject({
      charge: Charge.FREE,
      state: ReceiptState.VOIDED,
      reservedMicros: 0n,
    });
    work = async () => ({ output: null, usage: none });
    const tasks = await Promise.all(Array.from({ length: 20 }, () => buy()));
    const charges = tasks.map(({ receipt }) => receipt!.charge);
    expect(charges.filter((one) => one === Charge.FREE)).toHaveLength(5);
    expect(charges.filter((one) => one === Charge.PRICED)).toHaveLength(15);
    expect(await walletOf(buyer)).toEqual([credits(985), 0n]);
    clock.advance(day);
    expect((await buy()).receipt).toMatchObject({ charge: Charge.FREE, amountMicros: 0n });
    const others = await market(world, { seller: await world.org(), buyer });
    expect((await others.buy()).receipt!.charge).toBe(Charge.PRICED);
    // Long after, none of it is kept.
    const counts = () =>
      world.server.app.db.query.all(sql`select 1 as one from exchange_free_use where org_id = ${buyer.orgId}`);
    expect(await counts()).toHaveLength(2);
    clock.advance(freeUseKeptMs);
    await eventually(async () => {
      clock.advance(60_000);
      return (await counts()).length === 0;
    });
  });

  test("a refusal for too few credits is in the trace, writes nothing else, and is none for who has more", async () => {
    const { buyer, asker, listingId, buy } = await market(world);
    await leave(buyer, credits(4));
    const refused = await refusal(buy());
    expect([refused.code, refused.reason]).toEqual(["FailedPrecondition", "INSUFFICIENT_CREDITS"]);
    expect(refused.metadata).toMatchObject({ available_micros: "4000000", required_micros: "5000000" });
    const events = await eventsOf(buyer.admin, refused.metadata.trace_id!);
    expect(events.map(({ kind }) => kind)).toEqual([TraceEventKind.REFUSED]);
    expect((await buyer.admin.grants.listGrants({})).grants).toEqual([]);
    const pays = (by = asker.as, agentId = "") =>
      by.catalog.invokeListing({ listingId, agentId, input: value({}), fromAgentWallet: true });
    expect((await refusal(pays())).metadata.account_id).toBe(asker.agentId);
    await buyer.admin.billing.transferCredits({ toAgentId: asker.agentId, amountMicros: credits(4) });
    await world.operator.billing.topUp({ orgId: buyer.orgId, amountMicros: credits(10) });
    expect((await refusal(pays(buyer.admin))).metadata.field).toBe("from_agent_wallet");
    await buyer.admin.billing.transferCredits({ toAgentId: asker.agentId, amountMicros: credits(10) });
    expect((await pays()).task!.receipt).toMatchObject({ payerAccountId: asker.agentId, amountMicros: credits(5) });
    expect((await asker.as.billing.getBalance({})).balance!.availableMicros).toBe(credits(9));
  });

  test("one's own listing is not bought, and both organisations' policies and budgets hold", async () => {
    const { seller, buyer, asker, worker, listingId, buy } = await market(world);
    const own = await refusal(worker.as.catalog.invokeListing({ listingId }));
    expect([own.reason, own.metadata.field]).toEqual(["INVALID_REQUEST", "listing_id"]);
    const forbid = (org: Org) =>
      org.admin.policies.putPolicy({
        policyId: "no-market",
        cedarText: 'forbid (principal, action, resource) when { context.origin == "listing" };',
      });
    for (const org of [buyer, seller]) {
      await forbid(org);
      expect((await refusal(buy())).reason).toBe("POLICY_DENIED");
      // What was refused has left no grant, though it is told why.
      expect((await buyer.admin.grants.listGrants({})).grants).toEqual([]);
      await org.admin.policies.deletePolicy({ policyId: "no-market" });
    }
    await seller.admin.budgets.setBudget({
      ...{ scope: BudgetScope.ORG, period: BudgetPeriod.DAY, limitTokens: 0n },
    });
    expect(stateOf(await buy())).toBe("COMPLETED");
    expect(await walletOf(buyer)).toEqual([credits(995), 0n]);
    const idle = await buyer.agent();
    expect((await refusal(asker.as.catalog.invokeListing({ listingId, agentId: idle.agentId }))).reason).toBe(
      "NOT_FOUND",
    );
  });

  test("a price counts in the budgets of credits of who buys, as tokens do: set aside at its most, spent as it is paid, released when nothing is", async () => {
    const pricing = { requestMicros: credits(1), thousandTokensMicros: credits(2), maxTokens: 5_000n };
    const { seller, worker, buyer, asker, buy } = await market(world, {
      offer: { pricing },
      agent: { endpoint: scripted },
    });
    await seller.admin.costs.setRates({
      rates: [{ agentId: worker.agentId, inputPer1000TokensMicros: 70n, outputPer1000TokensMicros: 70n }],
    });
    const daily = { scope: BudgetScope.ORG, period: BudgetPeriod.DAY };
    const own = { scope: BudgetScope.AGENT, subjectId: asker.agentId, period: BudgetPeriod.TOTAL };
    await buyer.admin.budgets.setBudget({ ...daily, limitCreditsMicros: credits(14) });
    await buyer.admin.budgets.setBudget({ ...own, limitCreditsMicros: credits(100) });
    await seller.admin.budgets.setBudget({ ...daily, limitCreditsMicros: credits(1) });
    const standing = async (
      of: Org,
      name: { scope: BudgetScope; period: BudgetPeriod; subjectId?: string } = daily,
    ) => {
      const { spentMicros, reservedMicros } = (await of.admin.budgets.getBudget(name)).budget!.credits!;
      return [spentMicros, reservedMicros];
    };
    const first = held();
    const { taskId, traceId } = await buy({ returnImmediately: true });
    await first.begun;
    expect(await standing(buyer)).toEqual([0n, credits(11)]);
    expect(await standing(buyer, own)).toEqual([0n, credits(11)]);
    const refused = await refusal(buy());
    expect([refused.reason, refused.metadata.unit, refused.metadata.reserved]).toEqual([
      ...["BUDGET_EXCEEDED", "credits_micros", String(credits(11))],
    ]);
    expect(await walletOf(buyer)).toEqual([credits(1_000), credits(11)]);
    first.end({ inputTokens: 600, outputTokens: 400, model: "" });
    const { receipt } = await whenEnded(buyer.admin, taskId);
    expect(receipt!.amountMicros).toBe(credits(3));
    for (const name of [daily, own]) expect(await standing(buyer, name)).toEqual([credits(3), 0n]);
    // Who does the work counts what that costs.
    expect(await standing(seller)).toEqual([70n, 0n]);
    const told = (await eventsOf(buyer.admin, traceId)).filter(({ kind }) => kind === TraceEventKind.BUDGETED);
    expect(told.map(({ details }) => details!.credits_micros)).toEqual([Number(credits(11)), Number(credits(3))]);
    for (const aftermath of ["not-begun", "lost"] as const) {
      work = async () => {
        throw new AttemptFault("ADAPTER_ERROR", aftermath, "it broke");
      };
      expect((await buy()).receipt).toMatchObject({ state: ReceiptState.VOIDED, amountMicros: 0n });
      expect(await standing(buyer)).toEqual([credits(3), 0n]);
    }
    await buyer.admin.budgets.setBudget({ ...daily, limitCreditsMicros: credits(13) });
    expect((await refusal(buy())).reason).toBe("BUDGET_EXCEEDED");
    expect(await walletOf(buyer)).toEqual([credits(997), 0n]);
  });

  test("of 30 at once the free ones pass a budget of credits, and of the others as many as it has room for", async () => {
    const pricing = { requestMicros: credits(1), freeTier: { requests: 5, period: BillingPeriod.DAY } };
    const { buyer, buy } = await market(world, { offer: { pricing } });
    const daily = { scope: BudgetScope.ORG, period: BudgetPeriod.DAY };
    await buyer.admin.budgets.setBudget({ ...daily, limitCreditsMicros: credits(3) });
    const asked = Array.from({ length: 30 }, () =>
      buy().then(
        ({ receipt }) => nameOf(Charge, receipt!.charge),
        async (error: unknown) => (await refusal(Promise.reject(error))).reason,
      ),
    );
    const counts = Map.groupBy(await Promise.all(asked), (one) => one);
    expect(Object.fromEntries([...counts].map(([one, all]) => [one, all.length]))).toEqual({
      ...{ FREE: 5, PRICED: 3, BUDGET_EXCEEDED: 22 },
    });
    expect((await buyer.admin.budgets.getBudget(daily)).budget!.credits).toMatchObject({
      ...{ spentMicros: credits(3), reservedMicros: 0n },
    });
    expect(await walletOf(buyer)).toEqual([credits(997), 0n]);
  });

  test.each(["buyer", "seller"] as const)(
    "a request that waits for an approval of the %s holds its price, which is released when that is denied and paid when it is done",
    async (side) => {
      const at = await market(world);
      await at[side].admin.policies.putPolicy({
        policyId: "own",
        cedarText: `@approval("a human looks")\npermit (principal, action == Action::"invoke", resource) when { context.origin == "listing" };`,
      });
      const { approvals } = at[side].admin;
      const asked = async () => {
        const task = await at.buy();
        expect(stateOf(task)).toBe("AWAITING_APPROVAL");
        const [approval] = (await approvals.listApprovals({})).approvals;
        return { task, approvalId: approval!.approvalId };
      };
      const denied = await asked();
      expect(await walletOf(at.buyer)).toEqual([credits(1_000), credits(5)]);
      await approvals.deny({ approvalId: denied.approvalId });
      const rejected = await whenEnded(at.buyer.admin, denied.task.taskId);
      expect([stateOf(rejected), rejected.receipt!.state]).toEqual(["REJECTED", ReceiptState.VOIDED]);
      expect(await walletOf(at.buyer)).toEqual([credits(1_000), 0n]);
      const approved = await asked();
      await approvals.approve({ approvalId: approved.approvalId });
      const done = await whenEnded(at.buyer.admin, approved.task.taskId);
      expect([stateOf(done), done.receipt!.state]).toEqual(["COMPLETED", ReceiptState.SETTLED]);
      expect(await walletOf(at.buyer)).toEqual([credits(995), 0n]);
      const { task: there } = await at.seller.admin.bus.getTask({ taskId: done.taskId });
      expect(there!.receipt).toEqual(done.receipt);
    },
  );

  test("the same idempotency key buys once", async () => {
    const { buyer, buy } = await market(world);
    const options = { headers: { "idempotency-key": "once" } };
    const [one, other] = [await buy({}, options), await buy({}, options)];
    expect(other.taskId).toBe(one.taskId);
    expect(await walletOf(buyer)).toEqual([credits(995), 0n]);
  });

  test("earnings are told by day and listing, to the provider alone", async () => {
    const seller = await world.org();
    const sell = async (price: number): Promise<Market> =>
      market(world, { seller, offer: { pricing: { requestMicros: credits(price) } } });
    const [cheap, dear] = [await sell(1), await sell(10)];
    const dateOf = () => new Date(clock.now()).toISOString().slice(0, 10);
    const first = dateOf();
    for (let n = 0; n < 3; n++) await cheap.buy();
    await dear.buy();
    clock.advance(day);
    const second = dateOf();
    await dear.buy();
    const { days, total } = await seller.admin.billing.getEarnings({});
    expect(days.map(({ date, listingId }) => [date, listingId])).toEqual([
      [second, dear.listingId],
      [first, dear.listingId],
      [first, cheap.listingId],
    ]);
    expect(days[2]!.earnings).toMatchObject({
      ...{ requestsMicros: credits(3), feesMicros: credits(0.3), netMicros: credits(2.7), completedRequests: 3n },
    });
    expect(total).toMatchObject({ requestsMicros: credits(23), netMicros: credits(20.7), completedRequests: 5n });
    const one = await seller.admin.billing.getEarnings({ listingId: dear.listingId, endDate: first });
    expect([one.days.length, one.total!.netMicros]).toEqual([1, credits(9)]);
    const paged = await seller.admin.billing.getEarnings({ pageSize: 2 });
    const rest = await seller.admin.billing.getEarnings({ pageSize: 2, pageToken: paged.nextPageToken });
    expect([...paged.days, ...rest.days]).toEqual(days);
    expect((await cheap.buyer.admin.billing.getEarnings({})).days).toEqual([]);
    expect((await refusal(cheap.asker.as.billing.getEarnings({}))).reason).toBe("ROLE_REQUIRED");
    const foreign = cheap.buyer.admin.billing.getEarnings({ orgId: seller.orgId });
    expect((await refusal(foreign)).reason).toBe("NOT_FOUND");
    expect((await refusal(seller.admin.billing.getEarnings({ startDate: "2026-02-30" }))).reason).toBe(
      "INVALID_REQUEST",
    );
  });
});

test.each([
  [333, 5_000_001n, 166_500n],
  [0, 5_000_001n, 0n],
  [10_000, 7n, 7n],
])(
  "of a fee of %i basis points the platform keeps what is due, rounded down, and the provider the rest",
  async (feeBps, price, fee) => {
    await using world = await start("sqlite", { feeBps });
    const { seller, buyer, buy } = await market(world, { offer: { pricing: { requestMicros: price } } });
    const before = (await walletOf(seller))[0];
    expect((await buy()).receipt).toMatchObject({ amountMicros: price, feeMicros: fee });
    expect((await walletOf(seller))[0] - before).toBe(price - fee);
    expect(await walletOf(buyer)).toEqual([credits(1_000) - price, 0n]);
    const kept = world.operator.billing.getBalance({ accountId: "fees" });
    // The account is there from its first credit on.
    expect(
      await kept.then(
        ({ balance }) => balance!.balanceMicros,
        () => 0n,
      ),
    ).toBe(fee);
    expect((await proofOf(world.operator)).faults).toEqual([]);
  },
);
