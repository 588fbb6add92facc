import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Webhook } from "standardwebhooks";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Role } from "../gen/moltwire/api/v1/access_pb.ts";
import { AccountKind, TransactionKind } from "../gen/moltwire/exchange/v1/ledger_pb.ts";
import { ConfigError, readConfig } from "../src/config.ts";
import { randomIds } from "../src/ids.ts";
import { newSecret } from "../src/webhook/signature.ts";
import { credits } from "./exchange-fixtures/ledger.ts";
import { dialects, fakeClock, type Org, start, unique, type World } from "./harness.ts";

const secret = newSecret(randomIds());
const previous = newSecret(randomIds());
const minute = 60_000;

/** A confirmation as a provider sends it: signed by the reference library of Standard Webhooks. */
const signed = (body: string, atMs: number, by = secret): Record<string, string> => ({
  "content-type": "application/json",
  "webhook-id": "msg_1",
  "webhook-timestamp": String(Math.floor(atMs / 1_000)),
  "webhook-signature": new Webhook(by).sign("msg_1", new Date(atMs), body),
});

const post = async (world: World, body: string, headers: Record<string, string>) => {
  const answer = await fetch(`${world.url}/payments/callback`, { method: "POST", headers, body });
  const said = (await answer.json()) as { transfer?: object; details?: { debug?: Record<string, unknown> }[] };
  const { reason, metadata } = (said.details?.[0]?.debug ?? {}) as {
    reason?: string;
    metadata?: Record<string, string>;
  };
  return { status: answer.status, said, reason, metadata };
};

describe.each(dialects)("%s", (dialect) => {
  const clock = fakeClock();
  let world: World;
  let org: Org;
  beforeAll(async () => {
    world = await start(dialect, { clock, paymentSecrets: [secret, previous] });
    org = await world.org();
  });
  afterAll(() => world[Symbol.asyncDispose]());

  const balanceOf = async ({ admin }: Org) => (await admin.billing.getBalance({})).balance!.availableMicros;
  const payment = (of: object) =>
    JSON.stringify({ orgId: org.orgId, amountMicros: String(credits(25)), providerReference: unique("pi"), ...of });
  const confirm = (body: string, headers = signed(body, clock.now())) => post(world, body, headers);

  test("a payment that is confirmed tops the organisation up, with its reference in the statement, an event and an audit row", async () => {
    const mine = await world.org();
    const providerReference = unique("pi");
    const body = payment({
      orgId: mine.orgId,
      providerReference,
      currencyNote: "10.00 EUR",
      paidBy: "a later version",
    });
    const answer = await confirm(body);
    const transferId = `payment/${providerReference}`;
    expect([answer.status, answer.said.transfer]).toEqual([
      200,
      expect.objectContaining({ transferId, amountMicros: String(credits(25)), reference: providerReference }),
    ]);
    expect(await balanceOf(mine)).toBe(credits(1_025));
    const [line] = (await mine.admin.billing.listTransactions({ pageSize: 1 })).transactions;
    expect(line).toMatchObject({
      ...{ transferId, kind: TransactionKind.TOP_UP, amountMicros: credits(25), reference: providerReference },
      counterpartyKind: AccountKind.ISSUANCE,
    });
    await world.settled();
    const told = (await mine.admin.events.listEvents({})).events.filter(({ type }) => type === "payment.received");
    expect(told.map(({ payload }) => payload)).toEqual([
      {
        transfer_id: transferId,
        amount_micros: String(credits(25)),
        provider_reference: providerReference,
        currency_note: "10.00 EUR",
      },
    ]);
    const [audit] = (await mine.admin.admin.listAuditEvents({ pageSize: 1 })).auditEvents;
    expect(audit).toMatchObject({
      ...{ method: "POST /payments/callback", role: Role.PUBLIC, keyId: "" },
      resource: { org_id: mine.orgId, transfer_id: transferId },
      requestSha256: createHash("sha256").update(body).digest("hex"),
    });
  });

  test("a payment counts once however often it is confirmed, and not for another amount or organisation", async () => {
    const [mine, other] = [await world.org(), await world.org()];
    const body = payment({ orgId: mine.orgId });
    const answers = await Promise.all(Array.from({ length: 20 }, () => confirm(body)));
    clock.advance(72 * 60 * minute);
    answers.push(await confirm(body), await confirm(body, signed(body, clock.now(), previous)));
    expect(new Set(answers.map(({ status, said }) => JSON.stringify([status, said]))).size).toBe(1);
    expect(answers[0]!.status).toBe(200);
    for (const change of [{ amountMicros: "1" }, { orgId: other.orgId }]) {
      const { status, reason, metadata } = await confirm(JSON.stringify({ ...JSON.parse(body), ...change }));
      expect([status, reason, metadata?.field]).toEqual([400, "IDEMPOTENCY_KEY_REUSED", "provider_reference"]);
    }
    expect([await balanceOf(mine), await balanceOf(other)]).toEqual([credits(1_025), credits(1_000)]);
    await world.settled();
    const { events } = await mine.admin.events.listEvents({});
    expect(events.filter(({ type }) => type === "payment.received")).toHaveLength(1);
    const { auditEvents } = await mine.admin.admin.listAuditEvents({});
    expect(auditEvents.filter(({ method }) => method.startsWith("POST"))).toHaveLength(1);
  });

  test("nothing is taken without a signature of this body, with the secret, of less than 5 minutes ago or ahead", async () => {
    const body = payment({});
    const now = clock.now();
    const right = signed(body, now);
    const { "webhook-id": _id, ...unnamed } = right;
    for (const [headers, detail] of [
      [{ "content-type": "application/json" }, "MISSING"],
      [unnamed, "MISSING"],
      [signed(body, now - 5 * minute - 1_000), "TIME"],
      [signed(body, now + 5 * minute + 1_000), "TIME"],
      [{ ...right, "webhook-timestamp": "now" }, "TIME"],
      [{ ...right, "webhook-id": "msg_2" }, "WRONG"],
      [{ ...right, "webhook-timestamp": String(Math.floor(now / 1_000) - 1) }, "WRONG"],
      [signed(payment({ amountMicros: "1" }), now), "WRONG"],
      [signed(body, now, newSecret(randomIds())), "WRONG"],
      [{ ...right, "webhook-signature": "v1," }, "WRONG"],
    ] as const) {
      const { status, reason, metadata } = await confirm(body, headers);
      expect([status, reason, metadata?.detail]).toEqual([401, "SIGNATURE_INVALID", detail]);
    }
    expect(await balanceOf(org)).toBe(credits(1_000));
    // One of several signatures is enough, and the edge of the window is within it.
    const edge = signed(body, now - 5 * minute + 1_000);
    const several = { ...edge, "webhook-signature": `v1a,other v1,AAAA ${edge["webhook-signature"]}` };
    expect((await confirm(body, several)).status).toBe(200);
  });

  test.each<[string, () => string, string, string | undefined, number]>([
    ["no JSON", () => "paid", "MALFORMED_REQUEST", undefined, 400],
    ["a number that is none", () => payment({ amountMicros: "ten" }), "MALFORMED_REQUEST", undefined, 400],
    ["nothing paid", () => payment({ amountMicros: "0" }), "INVALID_REQUEST", "amount_micros", 400],
    ["a payment backwards", () => payment({ amountMicros: "-5" }), "INVALID_REQUEST", "amount_micros", 400],
    ["too much", () => payment({ amountMicros: "1000000000000001" }), "INVALID_REQUEST", "amount_micros", 400],
    ["no reference", () => payment({ providerReference: "" }), "INVALID_REQUEST", "provider_reference", 400],
    ["an organisation there is none of", () => payment({ orgId: "org_none" }), "NOT_FOUND", undefined, 404],
    ["a body over 64 KiB", () => payment({ more: "x".repeat(65_536) }), "PAYLOAD_TOO_LARGE", "body", 400],
  ])("%s is refused", async (_what, body, reason, field, status) => {
    const answer = await confirm(body());
    expect([answer.status, answer.reason, answer.metadata?.field]).toEqual([status, reason, field]);
  });
});

test("a server without a secret takes no payment and says so, and none of a wrong form is set", async () => {
  await using world = await start("sqlite");
  const body = JSON.stringify({ orgId: "org_1", amountMicros: "1", providerReference: "pi_1" });
  const { status, said, reason } = await post(world, body, signed(body, Date.now()));
  expect([status, reason]).toEqual([404, "NOT_FOUND"]);
  expect(said).toMatchObject({ message: expect.stringContaining("MOLTWIRE_PAYMENT_SECRET") });
  const read = (value: string) => readConfig([], { MOLTWIRE_PAYMENT_SECRET: value }).paymentSecrets;
  expect(read(`${secret},${previous}`)).toEqual([secret, previous]);
  for (const wrong of ["whsec_c2hvcnQ=", "a password", `${secret},${secret},${secret}`, `${secret},`])
    expect(() => read(wrong)).toThrow(ConfigError);
});

test("the bridge that the README shows joins a provider as it stands", async () => {
  const readme = readFileSync(new URL("../README.md", import.meta.url), "utf8");
  const [, bridge] = /```js\n(import \{ Webhook \} from "standardwebhooks";\n[\s\S]*?)```/.exec(readme)!;
  // Inside the package, so that its imports are found.
  const folder = mkdtempSync(join(import.meta.dirname, "payment-bridge-"));
  try {
    writeFileSync(join(folder, "bridge.mjs"), bridge!);
    const { confirm } = (await import(join(folder, "bridge.mjs"))) as {
      confirm(session: object, url: string, secret: string): Promise<void>;
    };
    await using world = await start("sqlite", { paymentSecrets: [secret] });
    const { orgId, admin } = await world.org();
    const session = { id: "cs_1", payment_intent: "pi_1", amount_total: 1_000, currency: "eur" };
    for (let n = 0; n < 2; n++) await confirm({ ...session, metadata: { org_id: orgId } }, world.url, secret);
    expect((await admin.billing.getBalance({})).balance!.availableMicros).toBe(credits(1_010));
    const stranger = { ...session, payment_intent: "pi_2", metadata: { org_id: "org_none" } };
    await expect(confirm(stranger, world.url, secret)).rejects.toThrow("organization not found");
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});

test("an address that sends wrong signatures is told to slow down, while right ones are not counted", async () => {
  const clock = fakeClock();
  await using world = await start("sqlite", { clock, paymentSecrets: [secret], rateLimit: 24 });
  const { orgId } = await world.org();
  const body = (n: number) => JSON.stringify({ orgId, amountMicros: "1", providerReference: `pi_${n}` });
  const right = async (n: number) => (await post(world, body(n), signed(body(n), clock.now()))).status;
  for (let n = 0; n < 5; n++) expect(await right(n)).toBe(200);
  const wrong = async () => (await post(world, body(0), {})).reason;
  expect([await wrong(), await wrong(), await wrong()]).toEqual([
    "SIGNATURE_INVALID",
    "SIGNATURE_INVALID",
    "RATE_LIMITED",
  ]);
  expect(await right(5)).toBe(200);
});
