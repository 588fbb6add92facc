import { randomBytes } from "node:crypto";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Role } from "../gen/moltwire/api/v1/access_pb.ts";
import {
  AccountKind,
  type Transaction,
  TransactionKind,
  TransactionStep,
} from "../gen/moltwire/exchange/v1/ledger_pb.ts";
import { agentWallet, escrowOf, walletOf } from "../src/exchange/ledger/account.ts";
import { postTransfers } from "../src/exchange/ledger/post.ts";
import { reserve, settle } from "../src/exchange/ledger/reserve.ts";
import { closeWallet } from "../src/exchange/ledger/wallet.ts";
import { backUp, restore } from "./backup-fixtures/backup.ts";
import { emptyStorage, storage } from "./bus-fixtures/storage.ts";
import { credits, proofOf } from "./exchange-fixtures/ledger.ts";
import {
  type Clients,
  dialects,
  fakeClock,
  type Org,
  type OrgAgent,
  refusal,
  start,
  unique,
  untilTaken,
  type World,
} from "./harness.ts";

const newId = () => `txn_${randomBytes(16).toString("hex")}`;
const kind = TransactionKind.TRANSFER;

describe.each(dialects)("%s", (dialect) => {
  const clock = fakeClock();
  let world: World;
  let org: Org;
  let agent: OrgAgent;
  beforeAll(async () => {
    world = await start(dialect, { clock, registration: "open-own-org" });
    org = await world.org();
    agent = await org.agent();
  });
  afterAll(() => world[Symbol.asyncDispose]());

  const availableOf = async (as: Clients, request: Parameters<Clients["billing"]["getBalance"]>[0] = {}) =>
    (await as.billing.getBalance(request)).balance!.availableMicros;

  test("an organisation that the operator made begins with 1,000 credits, one that registered itself and the operator's own with none", async () => {
    const { balance } = await (await world.org()).admin.billing.getBalance({});
    expect(balance).toMatchObject({
      accountId: "wallet",
      kind: AccountKind.ORG_WALLET,
      balanceMicros: credits(1_000),
      reservedMicros: 0n,
      availableMicros: credits(1_000),
    });
    const own = await world.as(undefined).directory.register({ name: unique("newcomer") });
    expect(await availableOf(world.as(own.orgApiKey))).toBe(0n);
    expect((await world.as(own.orgApiKey).billing.listTransactions({})).transactions).toEqual([]);
    expect(await availableOf(world.operator)).toBe(0n);
    const name = unique("taken");
    await world.org(name);
    const { issuedMicros } = await proofOf(world.operator);
    expect((await refusal(world.org(name))).reason).toBe("ALREADY_EXISTS");
    expect((await proofOf(world.operator)).issuedMicros).toBe(issuedMicros);
  });

  test("the operator tops up an organisation, and what an invoice is paid for twice comes once", async () => {
    const { orgId, admin } = await world.org();
    const request = { orgId, amountMicros: credits(500), transferId: newId(), reference: "invoice 17/b" };
    const first = await world.operator.billing.topUp(request);
    expect(first.balance!.availableMicros).toBe(credits(1_500));
    expect(first.transfer).toMatchObject({
      transferId: request.transferId,
      fromAccountId: "issuance",
      toAccountId: "wallet",
      amountMicros: credits(500),
      reference: "invoice 17/b",
    });
    clock.advance(72 * 3_600_000);
    expect(await world.operator.billing.topUp(request)).toEqual(first);
    const other = await refusal(world.operator.billing.topUp({ ...request, amountMicros: credits(501) }));
    expect([other.code, other.reason]).toEqual(["InvalidArgument", "IDEMPOTENCY_KEY_REUSED"]);
    expect(await availableOf(admin)).toBe(credits(1_500));
    const [line] = (await admin.billing.listTransactions({})).transactions;
    expect(line).toMatchObject({
      kind: TransactionKind.TOP_UP,
      step: TransactionStep.MOVED,
      amountMicros: credits(500),
      counterpartyKind: AccountKind.ISSUANCE,
      counterpartyOrgId: "",
      reference: "invoice 17/b",
    });
    expect((await refusal(admin.billing.topUp({ amountMicros: 1n }))).reason).toBe("ROLE_REQUIRED");
    expect((await refusal(world.operator.billing.topUp({ orgId: "org_none", amountMicros: 1n }))).reason).toBe(
      "NOT_FOUND",
    );
    const [audit] = (await admin.admin.listAuditEvents({ pageSize: 1 })).auditEvents;
    expect(audit).toMatchObject({
      method: "moltwire.exchange.v1.BillingService/TopUp",
      role: Role.OPERATOR,
      resource: expect.objectContaining({ org_id: orgId, transfer_id: request.transferId }),
    });
  });

  test("credits go from the organisation to an agent, on to another, and back", async () => {
    const mine = await world.org();
    const [one, other] = [await mine.agent(), await mine.agent()];
    const { billing } = mine.admin;
    const there = await billing.transferCredits({ toAgentId: one.agentId, amountMicros: credits(12.5) });
    expect([there.from!.availableMicros, there.to!.availableMicros]).toEqual([credits(987.5), credits(12.5)]);
    expect(there.transfer!.transferId).toMatch(/^txn_[0-9a-f]{32}$/);
    await billing.transferCredits({ fromAgentId: one.agentId, toAgentId: other.agentId, amountMicros: 1n });
    await billing.transferCredits({ fromAgentId: one.agentId, amountMicros: credits(2.5) });
    expect(await availableOf(one.as)).toBe(credits(10) - 1n);
    expect(await availableOf(other.as)).toBe(1n);
    expect(await availableOf(mine.admin)).toBe(credits(990));
    const more = await refusal(billing.transferCredits({ fromAgentId: other.agentId, amountMicros: 2n }));
    expect(more).toMatchObject({ code: "FailedPrecondition", reason: "INSUFFICIENT_CREDITS" });
    expect(more.metadata).toMatchObject({ account_id: other.agentId, available_micros: "1", required_micros: "2" });
    const nobody = await refusal(billing.transferCredits({ toAgentId: "agt_none", amountMicros: 1n }));
    expect([nobody.reason, nobody.metadata.resource]).toEqual(["NOT_FOUND", "agent"]);
    expect((await refusal(billing.transferCredits({ fromAgentId: "agt_none", amountMicros: 1n }))).reason).toBe(
      "NOT_FOUND",
    );
    for (const same of [{}, { fromAgentId: one.agentId, toAgentId: one.agentId }]) {
      const { reason, metadata } = await refusal(billing.transferCredits({ ...same, amountMicros: 1n }));
      expect([reason, metadata.field]).toEqual(["INVALID_REQUEST", "to_agent_id"]);
    }
    expect((await refusal(one.as.billing.transferCredits({ amountMicros: 1n }))).reason).toBe("ROLE_REQUIRED");
  });

  test("amounts that are negative, nothing or too many are refused with the field named", async () => {
    const tooMuch = credits(1_000_000_000) + 1n;
    for (const amountMicros of [-1n, 0n, tooMuch, 2n ** 63n - 1n, -(2n ** 63n)]) {
      const calls = [
        () => org.admin.billing.transferCredits({ toAgentId: agent.agentId, amountMicros }),
        () => world.operator.billing.topUp({ orgId: org.orgId, amountMicros }),
      ];
      for (const call of calls) {
        const { code, reason, metadata } = await refusal(call());
        expect([code, reason, metadata.field]).toEqual(["InvalidArgument", "INVALID_REQUEST", "amount_micros"]);
      }
    }
    for (const amount of ["9223372036854775808", "1.5", "1e30", "many"]) {
      const answer = await fetch(`${world.url}/moltwire.exchange.v1.BillingService/TransferCredits`, {
        method: "POST",
        headers: { authorization: `Bearer ${org.adminKey}`, "content-type": "application/json" },
        body: `{"toAgentId":"${agent.agentId}","amountMicros":"${amount}"}`,
      });
      expect(answer.status).toBe(400);
    }
    expect(await availableOf(org.admin)).toBe(credits(1_000));
  });

  test("balances beyond 2^53 are told to the last micro-credit", async () => {
    const { orgId, admin, adminKey } = await world.org();
    const most = credits(1_000_000_000);
    for (let n = 0; n < 10; n++) await world.operator.billing.topUp({ orgId, amountMicros: most });
    await world.operator.billing.topUp({ orgId, amountMicros: 1n });
    const expected = credits(1_000) + 10n * most + 1n;
    expect(expected).toBeGreaterThan(2n ** 53n);
    expect(await availableOf(admin)).toBe(expected);
    const { balance } = await world.as(adminKey, "connect-json").billing.getBalance({});
    expect(balance!.balanceMicros).toBe(expected);
  });

  test("500 transfers of 1 at once from a wallet with 100 move exactly 100", async () => {
    const mine = await world.org();
    const [from, to] = [await mine.agent(), await mine.agent()];
    await mine.admin.billing.transferCredits({ toAgentId: from.agentId, amountMicros: credits(100) });
    const request = { fromAgentId: from.agentId, toAgentId: to.agentId, amountMicros: credits(1) };
    const clients = Array.from({ length: 10 }, () => world.as(mine.adminKey));
    const calls = Array.from({ length: 500 }, (_, n) =>
      untilTaken(() => clients[n % clients.length]!.billing.transferCredits(request)),
    );
    const ends = await Promise.allSettled(calls);
    expect(ends.filter(({ status }) => status === "fulfilled")).toHaveLength(100);
    const refused = calls[ends.findIndex(({ status }) => status === "rejected")]!;
    expect((await refusal(refused)).reason).toBe("INSUFFICIENT_CREDITS");
    expect([await availableOf(from.as), await availableOf(to.as)]).toEqual([0n, credits(100)]);
  });

  test("one transfer id in 50 calls at once moves once", async () => {
    const mine = await world.org();
    const to = await mine.agent();
    const request = { toAgentId: to.agentId, amountMicros: credits(900), transferId: newId() };
    const answers = await Promise.all(Array.from({ length: 50 }, () => mine.admin.billing.transferCredits(request)));
    expect(new Set(answers.map(({ transfer }) => transfer!.createTime!.seconds)).size).toBe(1);
    expect(await availableOf(mine.admin)).toBe(credits(100));
    const headers = { "idempotency-key": unique("key") };
    const byHeader = { toAgentId: to.agentId, amountMicros: credits(90) };
    const [first, again] = [
      await mine.admin.billing.transferCredits(byHeader, { headers }),
      await mine.admin.billing.transferCredits(byHeader, { headers }),
    ];
    expect(again).toEqual(first);
    expect(await availableOf(mine.admin)).toBe(credits(10));
  });

  test("an agent reads its own wallet and no other, an administrator all of the organisation's", async () => {
    const mine = await world.org();
    const [one, other] = [await mine.agent(), await mine.agent()];
    await mine.admin.billing.transferCredits({ toAgentId: one.agentId, amountMicros: 5n });
    expect((await one.as.billing.getBalance({})).balance).toMatchObject({
      accountId: one.agentId,
      kind: AccountKind.AGENT_WALLET,
      availableMicros: 5n,
    });
    expect(await availableOf(mine.admin, { agentId: one.agentId })).toBe(5n);
    expect(await availableOf(mine.admin, { accountId: one.agentId })).toBe(5n);
    expect(await availableOf(mine.admin, { agentId: other.agentId })).toBe(0n);
    expect(await availableOf(world.operator, { orgId: mine.orgId, agentId: one.agentId })).toBe(5n);
    for (const [as, request] of [
      [other.as, { agentId: one.agentId }],
      [other.as, { accountId: "wallet" }],
      [mine.admin, { agentId: agent.agentId }],
      [mine.admin, { accountId: "fees" }],
      [mine.admin, { accountId: "issuance" }],
      [agent.as, { agentId: one.agentId }],
    ] as const)
      expect((await refusal(as.billing.getBalance(request))).reason).toBe("NOT_FOUND");
    expect(
      (await refusal(mine.admin.billing.getBalance({ agentId: "agt_a", accountId: "wallet" }))).metadata.field,
    ).toBe("account_id");
    const seen = async (as: Clients, request = {}) =>
      (await as.billing.listTransactions(request)).transactions.map(({ accountId }) => accountId);
    expect(await seen(one.as)).toEqual([one.agentId]);
    expect(await seen(other.as)).toEqual([]);
    expect(await seen(other.as, { agentId: one.agentId })).toEqual([]);
    expect((await seen(mine.admin)).toSorted()).toEqual([one.agentId, "wallet", "wallet"].toSorted());
    // Nor does an administrator of the operator's own organisation read them: they tell of all organisations.
    const { secret } = await world.operator.keys.createApiKey({ role: Role.ORG });
    const home = world.as(secret);
    for (const accountId of ["fees", "issuance"]) {
      expect((await refusal(home.billing.getBalance({ accountId }))).reason).toBe("NOT_FOUND");
      expect(await seen(home, { accountId })).toEqual([]);
      expect(await seen(home)).not.toContain(accountId);
    }
    expect(await seen(world.operator)).toContain("issuance");
    const { balance } = await world.operator.billing.getBalance({ accountId: "issuance" });
    expect(balance).toMatchObject({
      kind: AccountKind.ISSUANCE,
      balanceMicros: -(await proofOf(world.operator)).issuedMicros,
    });
  });

  test("a price that is set aside shows as reserved, and what of it is paid in both statements, each side seeing its own", async () => {
    const [buyer, seller] = [await world.org(), await world.org()];
    const { db } = world.server.app;
    const [from, to] = [walletOf(buyer.orgId), walletOf(seller.orgId)];
    const of = { orgId: buyer.orgId, transferId: "tsk_1/price" };
    await db.tx((tx) =>
      reserve(
        tx,
        { transferId: of.transferId, kind, from, to, amount: credits(5), reference: "tsk_1", timeoutMs: 60_000 },
        clock.now(),
      ),
    );
    expect((await buyer.admin.billing.getBalance({})).balance).toMatchObject({
      balanceMicros: credits(1_000),
      reservedMicros: credits(5),
      availableMicros: credits(995),
    });
    expect((await seller.admin.billing.listTransactions({})).transactions).toHaveLength(1);
    clock.advance(1_000);
    await db.tx((tx) => settle(tx, of, credits(4.5), clock.now()));
    const [paid, set] = (await buyer.admin.billing.listTransactions({ pageSize: 2 })).transactions;
    expect(set).toMatchObject({
      step: TransactionStep.RESERVED,
      amountMicros: 0n,
      reservedMicros: credits(5),
      reference: "tsk_1",
    });
    expect(paid).toMatchObject({
      step: TransactionStep.SETTLED,
      amountMicros: -credits(4.5),
      reservedMicros: -credits(5),
      reserveId: of.transferId,
      counterpartyOrgId: seller.orgId,
      counterpartyAccountId: "",
    });
    const [earned] = (await seller.admin.billing.listTransactions({ pageSize: 1 })).transactions;
    expect(earned).toMatchObject({
      amountMicros: credits(4.5),
      reservedMicros: 0n,
      reserveId: "",
      counterpartyOrgId: buyer.orgId,
      counterpartyAccountId: "",
    });
    await db.tx((tx) =>
      reserve(tx, { transferId: "tsk_2/price", kind, from, to, amount: credits(7), timeoutMs: 1_000 }, clock.now()),
    );
    expect(await availableOf(buyer.admin)).toBe(credits(988.5));
    clock.advance(1_000);
    expect((await buyer.admin.billing.getBalance({})).balance).toMatchObject({
      reservedMicros: 0n,
      availableMicros: credits(995.5),
    });
  });

  test("a deleted agent's credits go back to its organisation, and later what was set aside", async () => {
    const mine = await world.org();
    const one = await mine.agent();
    await mine.admin.billing.transferCredits({ toAgentId: one.agentId, amountMicros: credits(10) });
    const { db } = world.server.app;
    const of = { orgId: mine.orgId, transferId: "tsk_3/price" };
    const wallet = agentWallet(mine.orgId, one.agentId);
    await db.tx((tx) =>
      reserve(
        tx,
        { transferId: of.transferId, kind, from: wallet, to: escrowOf(mine.orgId, "mkt_1"), amount: credits(4) },
        clock.now(),
      ),
    );
    const { returnedCreditsMicros } = await mine.admin.agents.deleteAgent({ agentId: one.agentId });
    expect(returnedCreditsMicros).toBe(credits(6));
    expect(await availableOf(mine.admin)).toBe(credits(996));
    await db.tx((tx) => postTransfers(tx, [{ does: "void", transferId: "tsk_3/void", of }], clock.now()));
    await mine.admin.billing.transferCredits({ fromAgentId: one.agentId, amountMicros: credits(4) });
    expect(await availableOf(mine.admin)).toBe(credits(1_000));
    expect(
      (await refusal(mine.admin.billing.transferCredits({ toAgentId: one.agentId, amountMicros: 1n }))).reason,
    ).toBe("NOT_FOUND");
    expect((await mine.admin.agents.deleteAgent({ agentId: (await mine.agent()).agentId })).returnedCreditsMicros).toBe(
      0n,
    );
  });

  test("a transfer that happened is answered again with its id when an agent of it is gone, and with nothing else", async () => {
    const mine = await world.org();
    const [one, other] = [await mine.agent(), await mine.agent()];
    const { billing } = mine.admin;
    const to = { toAgentId: one.agentId, amountMicros: credits(3), transferId: newId() };
    const from = { fromAgentId: one.agentId, toAgentId: other.agentId, amountMicros: credits(1), transferId: newId() };
    const first = [(await billing.transferCredits(to)).transfer, (await billing.transferCredits(from)).transfer];
    for (const { agentId } of [one, other]) await mine.admin.agents.deleteAgent({ agentId });
    const again = [(await billing.transferCredits(to)).transfer, (await billing.transferCredits(from)).transfer];
    expect(again).toEqual(first);
    for (const changed of [
      { ...to, amountMicros: 1n },
      { ...to, toAgentId: other.agentId },
      { ...from, fromAgentId: "" },
    ])
      expect((await refusal(billing.transferCredits(changed))).reason).toBe("IDEMPOTENCY_KEY_REUSED");
    expect((await refusal(billing.transferCredits({ ...to, transferId: newId() }))).reason).toBe("NOT_FOUND");
    expect(await availableOf(mine.admin)).toBe(credits(1_000));
  });

  test("an agent is deleted however much of what it had set aside has expired; what is released later is still its organisation's", async () => {
    const mine = await world.org();
    const one = await mine.agent();
    await mine.admin.billing.transferCredits({ toAgentId: one.agentId, amountMicros: 1_300n });
    const { db } = world.server.app;
    const [from, to] = [agentWallet(mine.orgId, one.agentId), walletOf(mine.orgId)];
    await db.tx(async (tx) => {
      for (let n = 0; n < 1_200; n += 15) {
        const wishes = Array.from({ length: 15 }, (_, nth) => ({
          ...({ does: "reserve", transferId: `late-${n + nth}`, kind, from, to } as const),
          ...{ amount: 1n, timeoutMs: 1_000 },
        }));
        await postTransfers(tx, wishes, clock.now());
      }
    });
    // Not by the server's own clock, which would have them swept meanwhile.
    const returned = await db.tx((tx) => closeWallet(tx, mine.orgId, one.agentId, clock.now() + 1_000));
    expect(returned).toBe(1_100n);
    expect(await availableOf(mine.admin, { agentId: one.agentId })).toBe(0n);
    clock.advance(1_000);
    expect(await availableOf(mine.admin, { agentId: one.agentId })).toBe(200n);
    await mine.admin.billing.transferCredits({ fromAgentId: one.agentId, amountMicros: 200n });
    expect(await availableOf(mine.admin)).toBe(credits(1_000));
  });

  describe("the statement", () => {
    let mine: Org;
    let one: OrgAgent;
    const startMs = clock.now() + 1_000_000_000;
    beforeAll(async () => {
      clock.advance(startMs - clock.now());
      mine = await world.org();
      one = await mine.agent();
      for (let n = 1; n <= 12; n++) {
        clock.advance(1_000);
        await mine.admin.billing.transferCredits({
          toAgentId: one.agentId,
          amountMicros: BigInt(n),
          reference: `no. ${n}`,
        });
        if (n === 6) await world.operator.billing.topUp({ orgId: mine.orgId, amountMicros: 1n });
      }
    });

    test.each<[string, () => object, (bigint | string)[]]>([
      ["an agent", () => ({ agentId: one.agentId }), [12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1].map(BigInt)],
      ["a kind", () => ({ kind: TransactionKind.TOP_UP }), [1n]],
      [
        "an account and a kind",
        () => ({ accountId: "wallet", kind: TransactionKind.STARTING_CREDITS }),
        [credits(1_000)],
      ],
      [
        "a window",
        () => ({
          agentId: one.agentId,
          startTime: timestampFromMs(startMs + 3_000),
          endTime: timestampFromMs(startMs + 6_000),
        }),
        [5n, 4n, 3n],
      ],
      [
        "a kind in a window",
        () => ({ kind: TransactionKind.TRANSFER, startTime: timestampFromMs(startMs + 12_000) }),
        [-12n, 12n],
      ],
      ["an account that is none", () => ({ accountId: "fees" }), []],
    ])("filters by %s, newest first, page by page", async (_, filter, amounts) => {
      const seen: bigint[] = [];
      for (let pageToken = "", pages = 0; pages < 20; pages++) {
        const page = await mine.admin.billing.listTransactions({ ...filter(), pageSize: 2, pageToken });
        seen.push(...page.transactions.map(({ amountMicros }) => amountMicros));
        pageToken = page.nextPageToken;
        if (!pageToken) break;
      }
      expect(seen).toHaveLength(amounts.length);
      const sorted = amounts.length === 2 ? seen.toSorted((a, b) => Number(a - b)) : seen;
      expect(sorted).toEqual(amounts);
    });

    test("all pages together are all lines, once, and sum to the balances", async () => {
      const lines: Transaction[] = [];
      for (let pageToken = ""; ; ) {
        const page = await mine.admin.billing.listTransactions({ pageSize: 7, pageToken });
        lines.push(...page.transactions);
        if (!(pageToken = page.nextPageToken)) break;
      }
      expect(lines).toHaveLength(26);
      expect(new Set(lines.map(({ transferId, accountId }) => `${transferId} ${accountId}`)).size).toBe(26);
      const sum = (accountId: string) =>
        lines.filter((line) => line.accountId === accountId).reduce((all, { amountMicros }) => all + amountMicros, 0n);
      expect([sum("wallet"), sum(one.agentId)]).toEqual([await availableOf(mine.admin), 78n]);
      const page = await mine.admin.billing.listTransactions({ pageSize: 2 });
      const foreign = await refusal(org.admin.billing.listTransactions({ pageSize: 2, pageToken: page.nextPageToken }));
      expect(foreign.reason).toBe("INVALID_PAGE_TOKEN");
    });

    test("the export has the same lines as CSV", async () => {
      const fileOf = async (as: Clients, request: object) => {
        let file = "";
        for await (const { csv } of as.billing.exportTransactions(request)) file += csv;
        return file.split("\r\n");
      };
      const [head, ...rows] = await fileOf(mine.admin, { agentId: one.agentId });
      expect(head).toBe(
        "transfer_id,account_id,account_kind,step,kind,amount_micros,reserved_micros,counterparty_kind,counterparty_org_id,counterparty_account_id,reserve_id,chain_id,reverses_id,reference,time",
      );
      expect(rows.pop()).toBe("");
      const { transactions } = await mine.admin.billing.listTransactions({ agentId: one.agentId });
      expect(rows).toHaveLength(12);
      expect(rows[0]).toBe(
        `${transactions[0]!.transferId},${one.agentId},AGENT_WALLET,MOVED,TRANSFER,12,0,ORG_WALLET,${mine.orgId},wallet,,,,no. 12,${new Date(startMs + 12_000).toISOString()}`,
      );
      expect(await fileOf(one.as, {})).toEqual([head, ...rows, ""]);
      expect(await fileOf(one.as, { accountId: "wallet" })).toEqual([head, ""]);
    });
  });

  test("of two proofs at once one is refused, and only the operator has any", async () => {
    const both = await Promise.allSettled([proofOf(world.operator), proofOf(world.operator)]);
    expect(both.map(({ status }) => status).toSorted()).toEqual(["fulfilled", "rejected"]);
    expect((await refusal(proofOf(org.admin))).reason).toBe("ROLE_REQUIRED");
    expect((await proofOf(world.operator)).faults).toEqual([]);
  });
});

const [first = "sqlite", second = first] = dialects;

test.each([
  [first, second],
  [second, first],
] as const)("a backup of %s restored into %s keeps the books", async (dialect, into) => {
  await using from = await storage(dialect);
  await using to = await emptyStorage(into);
  const path = `${from.folder}/books.backup`;
  let adminKey: string;
  let operatorKey: string;
  let before: Awaited<ReturnType<typeof proofOf>>;
  const request = { amountMicros: 7n, transferId: newId(), toAgentId: "" };
  {
    await using world = await start(dialect, from.options);
    const org = await world.org();
    const agent = await org.agent();
    ({ adminKey } = org);
    ({ operatorKey } = world);
    request.toAgentId = agent.agentId;
    await org.admin.billing.transferCredits(request);
    const { db, clock } = world.server.app;
    const wish = {
      transferId: "r",
      kind,
      from: walletOf(org.orgId),
      to: agentWallet(org.orgId, agent.agentId),
      amount: 9n,
    };
    await db.tx((tx) => reserve(tx, wish, clock.now()));
    await world.operator.billing.topUp({ orgId: org.orgId, amountMicros: credits(1_000_000_000) });
    before = await proofOf(world.operator);
    await backUp(world.operator, path);
  }
  await restore(path, into === "sqlite" ? { data: to.folder } : { databaseUrl: to.options.databaseUrl! });
  await using world = await start(into, to.options);
  expect(before).toMatchObject({ ok: true, liveReserves: 1n });
  expect(await proofOf(world.as(operatorKey))).toEqual(before);
  const { transfer, from: wallet } = await world.as(adminKey).billing.transferCredits(request);
  expect(transfer!.transferId).toBe(request.transferId);
  expect(wallet).toMatchObject({ balanceMicros: credits(1_000_001_000) - 7n, reservedMicros: 9n });
});
