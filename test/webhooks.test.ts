import type { ServerResponse } from "node:http";
import { durationFromMs, durationMs, timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { Webhook } from "standardwebhooks";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { BudgetScope } from "../gen/moltwire/bus/v1/budget_pb.ts";
import { BillingPeriod } from "../gen/moltwire/exchange/v1/listing_pb.ts";
import { DeliveryState } from "../gen/moltwire/webhook/v1/delivery_pb.ts";
import { DisableReason } from "../gen/moltwire/webhook/v1/webhook_pb.ts";
import { sql } from "../src/db/db.ts";
import { randomIds } from "../src/ids.ts";
import { emit } from "../src/ops/outbox.ts";
import { attemptTimeoutMs } from "../src/webhook/claim.ts";
import { maxFailingPerOrg } from "../src/webhook/courier.ts";
import { eventNames } from "../src/webhook/event-types.ts";
import { newSecret } from "../src/webhook/signature.ts";
import { removeDroppedWebhooks } from "../src/webhook/sweep.ts";
import { contract, echoEndpoint, value } from "./bus-fixtures/bus.ts";
import { limit } from "./bus-fixtures/metered.ts";
import { credits } from "./exchange-fixtures/ledger.ts";
import { leave, market } from "./exchange-fixtures/listing.ts";
import { accept, agentWith, post, work } from "./exchange-fixtures/market.ts";
import { dialects, eventually, fakeClock, type Org, refusal, start, unique, type World } from "./harness.ts";
import { submit } from "./queue-fixtures/jobs.ts";
import { tell, toAgent } from "./relay-fixtures/relay.ts";
import { deliveriesWhen, eventSource, hook, stateOf } from "./webhook-fixtures/hooks.ts";
import { type Received, receiver, verify } from "./webhook-fixtures/receiver.ts";

const paymentSecret = newSecret(randomIds());
/** Nobody listens there. */
const nowhere = "http://127.0.0.1:9";
const [second, minute, hour, day] = [1_000, 60_000, 3_600_000, 86_400_000];

describe.each(dialects)("%s", (dialect) => {
  const clock = fakeClock();
  let world: World;
  let org: Org;
  let happen: Awaited<ReturnType<typeof eventSource>>;
  beforeAll(async () => {
    // Who says nothing is waited for: what is said of others then depends on no time.
    world = await start(dialect, { clock, webhookTimeoutMs: 600_000, paymentSecrets: [paymentSecret] });
    org = await world.org();
    happen = await eventSource(org);
  });
  afterAll(() => world[Symbol.asyncDispose]());

  test("an event is told at once: signed, typed, with its payload", async () => {
    await using at = await receiver();
    const agent = await org.agent();
    const { secret, webhookId } = await hook(agent.as, at.url, { eventTypes: ["task.*"] });
    expect(secret).toMatch(/^whsec_[A-Za-z0-9+/]{43}=$/);
    const taskId = await happen(agent.as);
    const got = await at.nth(1);
    expect(verify(secret, got)).toEqual({
      type: "task.completed",
      timestamp: new Date(clock.now()).toISOString(),
      org_id: org.orgId,
      agent_id: agent.agentId,
      trace_id: expect.stringMatching(/^[0-9a-f]{32}$/),
      data: {
        task_id: taskId,
        contract_id: expect.any(String),
        contract_version: "1.0.0",
        state: "COMPLETED",
        reason: "",
      },
    });
    expect(got.headers).toMatchObject({
      "content-type": "application/json",
      "user-agent": expect.stringMatching(/^moltwire\//),
    });
    expect(() => verify(secret.replace(/^whsec_./, "whsec_x"), got)).toThrow();
    expect(() => verify(secret, { ...got, body: `${got.body} ` })).toThrow();
    const [delivery] = await deliveriesWhen(agent.as, webhookId, ([one]) => stateOf(one) === "DELIVERED");
    expect(delivery).toMatchObject({
      eventId: got.id,
      eventType: "task.completed",
      attemptCount: 1,
      agentId: agent.agentId,
    });
    expect(delivery!.attempts).toMatchObject([{ attempt: 1, statusCode: 204, error: "", responseBody: "" }]);
    // The feed shows only what is settled, which on PostgreSQL any other transaction can delay.
    await eventually(async () =>
      (await agent.as.events.listEvents({})).events.some(({ eventId }) => eventId === got.id),
    );
  });

  test("a page of deliveries with many attempts is bounded in bytes, and all of them are met", async () => {
    const agent = await org.agent();
    const { webhookId } = await hook(agent.as, nowhere, { eventTypes: ["task.*"] });
    const ids = Array.from({ length: 40 }, (_, n) => `evt_${String(n).padStart(32, "0")}`);
    await world.server.app.db.tx(async (tx) => {
      for (const [n, id] of ids.entries())
        await tx.run(sql`
          insert into webhook_delivery (org_id, webhook_id, event_id, type, agent_id, event_ms, trace_id, state, attempts, failures, next_ms, lease_token,
            attempt_ms, end_ms, touch_ms, payload)
          values (${org.orgId}, ${webhookId}, ${id}, 'task.completed', '', ${n}, '', 2, 50, 0, 0, '', 0, 0, ${clock.now()}, ${new Uint8Array([1, 0, 0])})`);
    });
    const pages: string[][] = [];
    for (let pageToken = ""; ; ) {
      const page = await agent.as.webhooks.listDeliveries({ webhookId, pageSize: 250, pageToken });
      pages.push(page.deliveries.map(({ eventId }) => eventId));
      pageToken = page.nextPageToken;
      if (!pageToken) break;
    }
    expect(pages.flat()).toEqual(ids.toReversed());
    expect(pages.map(({ length }) => length)).toEqual([13, 13, 13, 1]);
  });

  test("500, 500, 200: one id, three timestamps, each signature right, and every attempt listed", async () => {
    await using at = await receiver((response, _received, nth) =>
      nth < 3 ? response.writeHead(500).end(`no ${nth}`) : response.writeHead(200).end("yes"),
    );
    const agent = await org.agent();
    const { secret, webhookId } = await hook(agent.as, at.url);
    await happen(agent.as);
    await at.nth(1);
    await deliveriesWhen(agent.as, webhookId, ([one]) => one!.attempts.length === 1);
    expect((await agent.as.webhooks.getWebhook({ webhookId })).webhook!.failingSinceTime).toBeDefined();
    clock.advance(6 * second);
    await at.nth(2);
    await deliveriesWhen(agent.as, webhookId, ([one]) => one!.attempts.length === 2);
    clock.advance(4 * minute);
    const [waiting] = (await agent.as.webhooks.listDeliveries({ webhookId })).deliveries;
    expect(timestampMs(waiting!.nextAttemptTime!) - clock.now()).toBeGreaterThan(20 * second);
    clock.advance(2 * minute);
    await at.nth(3);
    const [delivery] = await deliveriesWhen(agent.as, webhookId, ([one]) => stateOf(one) === "DELIVERED");
    for (const received of at.received) verify(secret, received);
    expect(new Set(at.received.map(({ id }) => id))).toEqual(new Set([delivery!.eventId]));
    expect(new Set(at.received.map(({ body }) => body)).size).toBe(1);
    expect(new Set(at.received.map(({ timestamp }) => timestamp)).size).toBe(3);
    expect(
      delivery!.attempts.map(({ attempt, statusCode, error, responseBody }) => [
        attempt,
        statusCode,
        error,
        responseBody,
      ]),
    ).toEqual([
      [1, 500, "the endpoint answered 500", "no 1"],
      [2, 500, "the endpoint answered 500", "no 2"],
      [3, 200, "", "yes"],
    ]);
    expect((await agent.as.webhooks.getWebhook({ webhookId })).webhook!.failingSinceTime).toBeUndefined();
    const { body } = await agent.as.webhooks.getDelivery({ webhookId, eventId: delivery!.eventId });
    expect(body).toBe(at.received[0]!.body);
  });

  test("after 8 attempts over more than a day it has failed, and a replay sends it again under its id", async () => {
    await using at = await receiver(503);
    const agent = await org.agent();
    const { webhookId } = await hook(agent.as, at.url);
    await happen(agent.as);
    const begin = clock.now();
    for (let attempts = 1; attempts < 8; attempts++) {
      const [one] = await deliveriesWhen(agent.as, webhookId, ([one]) => one!.attempts.length === attempts);
      clock.advance(timestampMs(one!.nextAttemptTime!) - clock.now());
    }
    const [failed] = await deliveriesWhen(agent.as, webhookId, ([one]) => stateOf(one) === "FAILED");
    expect(clock.now() - begin).toBeGreaterThan(24 * hour);
    expect(clock.now() - begin).toBeLessThan(31 * hour);
    expect(failed!.attempts.map(({ attempt }) => attempt)).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
    expect(failed!.nextAttemptTime).toBeUndefined();
    clock.advance(2 * day);
    at.answer(200);
    const { eventId } = failed!;
    const { delivery } = await agent.as.webhooks.replayDelivery({ webhookId, eventId });
    expect(stateOf(delivery)).toBe("PENDING");
    const [again] = await deliveriesWhen(agent.as, webhookId, ([one]) => stateOf(one) === "DELIVERED");
    expect(again!.attempts).toHaveLength(9);
    expect(at.received.map(({ id }) => id)).toEqual(Array(9).fill(eventId));
  });

  test("retry-after is respected, in seconds and as a date, and not beyond ten hours", async () => {
    await using at = await receiver();
    const agent = await org.agent();
    const { webhookId } = await hook(agent.as, at.url);
    const waitFor = async (header: string): Promise<number> => {
      at.answer((response) => response.writeHead(429, { "retry-after": header }).end());
      const seen = at.received.length;
      await happen(agent.as);
      await at.nth(seen + 1);
      const [one] = await deliveriesWhen(agent.as, webhookId, ([one]) => one!.attempts.length === 1);
      const waitMs = timestampMs(one!.nextAttemptTime!) - timestampMs(one!.eventTime!);
      at.answer(200);
      await agent.as.webhooks.replayDelivery({ webhookId, eventId: one!.eventId });
      await deliveriesWhen(agent.as, webhookId, ([one]) => stateOf(one) === "DELIVERED");
      clock.advance(1); // so that the next event is the newest
      return waitMs;
    };
    expect(await waitFor("120")).toBe(120 * second);
    expect(await waitFor("999999")).toBe(10 * hour);
    const date = new Date(Math.ceil(clock.now() / 1_000) * 1_000 + hour);
    expect(await waitFor(date.toUTCString())).toBeGreaterThan(hour - 2 * second);
    for (const nonsense of ["soon", "-5", "1", "Wed, 99 Foo 2026 00:00:00 GMT"])
      expect(await waitFor(nonsense)).toBeLessThan(6 * second);
  });

  test.each([301, 302, 307, 308])("a redirect by %i is a failure, and nobody follows it", async (status) => {
    await using elsewhere = await receiver();
    await using at = await receiver((response) => response.writeHead(status, { location: elsewhere.url }).end());
    const agent = await org.agent();
    const { webhookId } = await hook(agent.as, at.url);
    await happen(agent.as);
    const [one] = await deliveriesWhen(agent.as, webhookId, ([one]) => one!.attempts.length === 1);
    expect(one).toMatchObject({
      state: DeliveryState.PENDING,
      attempts: [{ statusCode: status, error: expect.stringContaining("redirect") }],
    });
    expect(elsewhere.received).toHaveLength(0);
  });

  test("410 disables the webhook with an event, and what happens then waits until it is enabled", async () => {
    await using at = await receiver(410);
    await using administrator = await receiver();
    const agent = await org.agent();
    const watching = await hook(org.admin, administrator.url, { eventTypes: ["webhook.disabled"] });
    const { webhookId } = await hook(agent.as, at.url);
    await happen(agent.as);
    const told = verify(watching.secret, await administrator.nth(1));
    expect(told).toMatchObject({
      type: "webhook.disabled",
      agent_id: agent.agentId,
      data: { webhook_id: webhookId, url: at.url, reason: "GONE" },
    });
    const { webhook } = await agent.as.webhooks.getWebhook({ webhookId });
    expect(webhook).toMatchObject({ disabled: true, disableReason: DisableReason.GONE, revision: 2n });
    expect((await deliveriesWhen(agent.as, webhookId, (all) => all.length > 0)).map(stateOf)).toContain("FAILED");
    at.answer(200);
    clock.advance(1);
    await happen(agent.as);
    const waiting = await deliveriesWhen(agent.as, webhookId, (all) => all.length === 3); // its own webhook.disabled too
    expect(waiting.filter((one) => stateOf(one) === "PENDING").map(({ nextAttemptTime }) => nextAttemptTime)).toEqual([
      undefined,
      undefined,
    ]);
    expect((await refusal(agent.as.webhooks.testWebhook({ webhookId }))).reason).toBe("FAILED_PRECONDITION");
    await agent.as.webhooks.updateWebhook({
      webhookId,
      change: { disabled: false },
      updateMask: { paths: ["disabled"] },
    });
    const after = await deliveriesWhen(
      agent.as,
      webhookId,
      (all) => all.filter((one) => stateOf(one) === "DELIVERED").length === 2,
    );
    expect(after.map(stateOf).toSorted()).toEqual(["DELIVERED", "DELIVERED", "FAILED"]);
    await org.admin.webhooks.deleteWebhook({ webhookId: watching.webhookId });
  });

  test("five days of nothing but failures disable it; one success begins them anew", async () => {
    await using at = await receiver(500);
    const agent = await org.agent();
    const { webhookId } = await hook(agent.as, at.url, { eventTypes: ["task.completed"] });
    const look = async () => (await agent.as.webhooks.getWebhook({ webhookId })).webhook!;
    const attempt = async () => {
      clock.advance(1);
      await happen(agent.as);
      return eventually(async () => {
        const { disabled } = await look();
        const { deliveries } = await agent.as.webhooks.listDeliveries({ webhookId });
        const settled = deliveries.every((one) => one.attempts.length > 0 && one.attemptCount === one.attempts.length);
        return (disabled || settled) && { disabled };
      });
    };
    await attempt();
    // Nothing was tried for days, and then a second attempt fails too: two bad moments.
    clock.advance(6 * day);
    const twice = await deliveriesWhen(agent.as, webhookId, ([one]) => one!.attempts.length === 2);
    expect([twice[0]!.attempts.length, (await look()).disabled]).toEqual([2, false]);
    at.answer(200);
    clock.advance(hour);
    await deliveriesWhen(agent.as, webhookId, (all) => all.every((one) => stateOf(one) === "DELIVERED"));
    expect(await look()).toMatchObject({ disabled: false });
    at.answer(500);
    await attempt();
    const began = timestampMs((await look()).failingSinceTime!);
    for (let hours = 0; !(await attempt()).disabled; hours += 6) {
      expect(hours).toBeLessThan(6 * 24);
      clock.advance(6 * hour);
    }
    const { disableReason, disableTime } = await look();
    expect(disableReason).toBe(DisableReason.FAILING);
    expect(timestampMs(disableTime!) - began).toBeGreaterThanOrEqual(5 * day);
    expect(timestampMs(disableTime!) - began).toBeLessThan(5.6 * day);
  });

  test("while a secret is rotated there are two signatures, then one; the new secret is shown once", async () => {
    await using at = await receiver();
    const agent = await org.agent();
    const { webhookId, secret } = await hook(agent.as, at.url);
    const rotated = await agent.as.webhooks.rotateSecret({ webhookId, overlap: durationFromMs(hour) });
    expect(timestampMs(rotated.webhook!.formerSecretExpireTime!)).toBe(clock.now() + hour);
    await happen(agent.as);
    const during = await at.nth(1);
    expect(during.signatures).toHaveLength(2);
    verify(secret, during);
    verify(rotated.secret, during);
    clock.advance(hour);
    await happen(agent.as);
    const after = await at.nth(2);
    expect(after.signatures).toHaveLength(1);
    expect(() => verify(secret, after)).toThrow();
    verify(rotated.secret, after);
    const usual = await agent.as.webhooks.rotateSecret({ webhookId });
    expect(timestampMs(usual.webhook!.formerSecretExpireTime!)).toBe(clock.now() + day);
    const own = `whsec_${Buffer.alloc(24, 7).toString("base64")}`;
    const given = await agent.as.webhooks.rotateSecret({ webhookId, secret: own, overlap: durationFromMs(0) });
    expect(given.webhook!.formerSecretExpireTime).toBeUndefined();
    await happen(agent.as);
    const last = await at.nth(3);
    expect(last.signatures).toHaveLength(1);
    verify(own, last);
    const headers = { "idempotency-key": unique("key") };
    const first = await agent.as.webhooks.createWebhook({ url: at.url, eventTypes: ["*"] }, { headers });
    const again = await agent.as.webhooks.createWebhook({ url: at.url, eventTypes: ["*"] }, { headers });
    expect(again.webhook).toEqual(first.webhook);
    expect([first.secret === "", again.secret]).toEqual([false, ""]);
    expect(
      JSON.stringify(await agent.as.webhooks.listWebhooks({}), (_, of) => String(of?.webhooks ?? of)),
    ).not.toContain("whsec_");
  });

  test("a dead endpoint does not hold up others, not even of its own organisation", async () => {
    await using dead = await receiver(() => {}); // takes requests and says nothing
    await using alive = await receiver();
    const agent = await org.agent();
    for (let n = 0; n < 10; n++) await hook(agent.as, dead.url);
    const { webhookId } = await hook(agent.as, alive.url);
    await Promise.all(Array.from({ length: 20 }, () => happen(agent.as)));
    await alive.nth(20);
    // As many as may be under way to each: it waited for none of them.
    expect(dead.received.length).toBeLessThanOrEqual(80);
    await deliveriesWhen(
      agent.as,
      webhookId,
      (all) => all.length === 20 && all.every((one) => stateOf(one) === "DELIVERED"),
    );
    await org.admin.agents.deleteAgent({ agentId: agent.agentId });
  });

  test("the more than a hundred dead endpoints of an organisation take half of its places, and the others are told at once; places go round", async () => {
    const held: ServerResponse[] = [];
    await using dead = await receiver((response) => held.push(response)); // takes requests and says nothing
    await using alive = await receiver();
    const home = await world.org();
    const happenThere = await eventSource(home);
    const agents = [await home.agent(), await home.agent(), await home.agent()];
    for (const { as, agentId } of agents)
      await Promise.all(
        Array.from({ length: 50 }, (_, n) =>
          hook(as, `${dead.url}/${agentId}/${n}`, { eventTypes: ["task.completed"] }),
        ),
      );
    await world.server.app.db.tx((tx) => tx.run(sql`update webhook set failing_ms = 1 where org_id = ${home.orgId}`));
    for (const { as } of [...agents, ...agents]) await happenThere(as);
    await dead.nth(maxFailingPerOrg);
    const other = await home.agent();
    await hook(other.as, alive.url, { eventTypes: ["task.completed"] });
    const leased = () =>
      world.server.app.db.query.one<{ n: number }>(
        sql`select count(*) as n from webhook_delivery where org_id = ${home.orgId} and lease_token <> ''`,
      );
    await happenThere(other.as);
    await alive.nth(1);
    expect((await leased())!.n).toBeLessThanOrEqual(maxFailingPerOrg + 1);
    // One place after the other: each of them has one before any has a second, though what it has pending is due.
    for (let n = maxFailingPerOrg; n < 150; n++) {
      held[n - maxFailingPerOrg]!.writeHead(500).end();
      await dead.nth(n + 1);
    }
    expect(new Set(dead.received.slice(0, 150).map(({ path }) => path)).size).toBe(150);
    for (const { agentId } of agents) await home.admin.agents.deleteAgent({ agentId });
  });

  test("who says nothing, or does not come to an end, is given up in time; what was answered by then counts", async () => {
    const timeoutMs = 5_000;
    await using impatient = await start(dialect, { clock, webhookTimeoutMs: timeoutMs });
    const home = await impatient.org();
    const happenThere = await eventSource(home);
    const endless = (status: number) => (response: ServerResponse) =>
      void response.writeHead(status, { "content-length": "9" }).write("begun");
    const givenUp = async (how: (response: ServerResponse) => void, attempt: object, state: string) => {
      const agent = await home.agent();
      await using at = await receiver(how);
      const { webhookId } = await hook(agent.as, at.url, { eventTypes: ["task.completed"] });
      await happenThere(agent.as);
      const [delivery] = await deliveriesWhen(agent.as, webhookId, ([one]) => one?.attempts.length === 1);
      expect([stateOf(delivery), delivery!.attempts[0]]).toEqual([state, expect.objectContaining(attempt)]);
      expect(durationMs(delivery!.attempts[0]!.duration!)).toBeGreaterThan(timeoutMs - 50);
    };
    const tooLong = expect.stringMatching(/took too long/) as string;
    await Promise.all([
      givenUp(() => {}, { statusCode: 0, error: tooLong }, "PENDING"),
      givenUp(endless(500), { statusCode: 500, error: tooLong }, "PENDING"),
      givenUp(endless(200), { statusCode: 200, error: "" }, "DELIVERED"),
    ]);
    // Nobody waits so long in a test.
    expect(attemptTimeoutMs).toBe(10 * second);
  });

  test("of an answer 4 KB are kept; what a transaction that fails has written of events nobody is told", async () => {
    await using at = await receiver((response) => response.writeHead(500).end("é".repeat(100_000)));
    const agent = await org.agent();
    const { webhookId } = await hook(agent.as, at.url, { eventTypes: ["task.completed"] });
    const event = { orgId: org.orgId, type: "task.completed", agentId: agent.agentId, timeMs: clock.now() } as const;
    const { app } = world.server;
    const failing = app.db.tx(async (tx) => {
      await emit(tx, app, { ...event, traceId: app.ids.trace(), payload: { task_id: "undone" } });
      throw new Error("undone");
    });
    await expect(failing).rejects.toThrow("undone");
    await happen(agent.as);
    await at.nth(1);
    const deliveries = await deliveriesWhen(agent.as, webhookId, ([one]) => one!.attempts.length === 1);
    expect(deliveries).toHaveLength(1);
    const { delivery } = await agent.as.webhooks.getDelivery({ webhookId, eventId: deliveries[0]!.eventId });
    const { responseBody } = delivery!.attempts[0]!;
    expect(responseBody.slice(0, 2_000)).toBe("é".repeat(2_000));
    expect(Buffer.byteLength(responseBody)).toBeLessThanOrEqual(4_096);
    await world.settled();
    const { events } = await agent.as.events.listEvents({});
    expect(events.filter(({ payload }) => JSON.stringify(payload ?? {}).includes("undone"))).toEqual([]);
    expect(at.received.some(({ body }) => body.includes("undone"))).toBe(false);
  });

  test("TestWebhook tells how the first attempt went", async () => {
    await using at = await receiver((response) => response.writeHead(200).end("hello"));
    const agent = await org.agent();
    const { webhookId, secret } = await hook(agent.as, at.url, { eventTypes: ["job.completed"] });
    const { delivery } = await agent.as.webhooks.testWebhook({ webhookId });
    expect(delivery).toMatchObject({
      state: DeliveryState.DELIVERED,
      eventType: "webhook.test",
      attempts: [{ statusCode: 200, responseBody: "hello" }],
    });
    expect(verify(secret, at.received[0]!)).toMatchObject({ type: "webhook.test", data: { webhook_id: webhookId } });
    const gone = await receiver();
    const { webhookId: deadId } = await hook(agent.as, gone.url);
    await gone[Symbol.asyncDispose]();
    const failed = (await agent.as.webhooks.testWebhook({ webhookId: deadId })).delivery!;
    expect(failed).toMatchObject({
      state: DeliveryState.PENDING,
      attempts: [{ statusCode: 0, error: expect.stringContaining("no connection") }],
    });
  });

  test("all since a time are replayed, the failed or every one, page by page", async () => {
    await using at = await receiver(410);
    const agent = await org.agent();
    const { webhookId } = await hook(agent.as, at.url, { eventTypes: ["task.completed"] });
    const enable = () =>
      agent.as.webhooks.updateWebhook({ webhookId, change: { disabled: false }, updateMask: { paths: ["disabled"] } });
    await happen(agent.as); // fails
    await deliveriesWhen(agent.as, webhookId, ([one]) => stateOf(one) === "FAILED");
    at.answer(200);
    await enable();
    clock.advance(minute);
    const sinceTime = timestampFromMs(clock.now());
    at.answer(410);
    await happen(agent.as); // fails, and is within
    await deliveriesWhen(agent.as, webhookId, ([one]) => stateOf(one) === "FAILED");
    at.answer(200);
    await enable();
    clock.advance(minute);
    await happen(agent.as); // is delivered
    await deliveriesWhen(agent.as, webhookId, ([one]) => stateOf(one) === "DELIVERED");
    const seen = at.received.length;
    expect(await agent.as.webhooks.replayDeliveries({ webhookId, sinceTime })).toMatchObject({
      replayedCount: 1,
      nextPageToken: "",
    });
    await at.nth(seen + 1);
    await deliveriesWhen(agent.as, webhookId, (all) => all.map(stateOf).join() === "DELIVERED,DELIVERED,FAILED");
    expect(await agent.as.webhooks.replayDeliveries({ webhookId, sinceTime, includeDelivered: true })).toMatchObject({
      replayedCount: 2,
    });
    await at.nth(seen + 3);
    await deliveriesWhen(agent.as, webhookId, (all) => all.map(stateOf).join() === "DELIVERED,DELIVERED,FAILED");
    expect(
      (await agent.as.webhooks.listDeliveries({ webhookId, state: DeliveryState.FAILED })).deliveries,
    ).toHaveLength(1);
    expect((await refusal(agent.as.webhooks.replayDeliveries({ webhookId, sinceTime, pageToken: "x" }))).reason).toBe(
      "INVALID_PAGE_TOKEN",
    );
  });

  test("a replay of many goes in steps of a thousand", async () => {
    await using at = await receiver();
    const agent = await org.agent();
    const { webhookId } = await hook(agent.as, at.url);
    await agent.as.webhooks.updateWebhook({
      webhookId,
      change: { disabled: true },
      updateMask: { paths: ["disabled"] },
    });
    await world.server.app.db.tx(async (tx) => {
      for (let n = 0; n < 1_200; n++)
        await tx.run(sql`
          insert into webhook_delivery (org_id, webhook_id, event_id, type, agent_id, event_ms, trace_id, state, attempts, failures, next_ms, lease_token, touch_ms, payload)
          values (${org.orgId}, ${webhookId}, ${`evt_${String(n).padStart(5, "0")}`}, 'task.completed', '', ${1_000 + (n % 700)}, '', 3, 8, 8, 0, '', ${clock.now()}, ${new Uint8Array([1, 0, 0, 123, 125])})`);
    });
    const counts: number[] = [];
    let pageToken = "";
    do {
      const step = await agent.as.webhooks.replayDeliveries({ webhookId, sinceTime: timestampFromMs(0), pageToken });
      counts.push(step.replayedCount);
      pageToken = step.nextPageToken;
    } while (pageToken);
    expect(counts).toEqual([1_000, 200]);
    await agent.as.webhooks.updateWebhook({
      webhookId,
      change: { disabled: false },
      updateMask: { paths: ["disabled"] },
    });
    await eventually(() => new Set(at.received.map(({ id }) => id)).size === 1_200);
    expect(at.received).toHaveLength(1_200);
  });

  test("an agent's webhooks are told what that agent may see, an organisation's all of it, and another organisation's nothing", async () => {
    await using own = await receiver();
    await using sibling = await receiver();
    await using whole = await receiver();
    await using foreign = await receiver();
    const [agent, mate, other] = [await org.agent(), await org.agent(), await world.org()];
    await hook(agent.as, own.url);
    await hook(mate.as, sibling.url);
    const { webhookId } = await hook(org.admin, whole.url);
    await hook(other.admin, foreign.url);
    await hook(org.admin, own.url, { agentId: agent.agentId, eventTypes: ["*", "task.*", "task.completed"] });
    await happen(agent.as);
    await happen(org.admin); // concerns nobody in particular
    await whole.nth(2);
    await own.nth(4);
    const ofAgent = (received: Received): string => (JSON.parse(received.body) as { agent_id: string }).agent_id;
    expect(whole.received.map(ofAgent).toSorted()).toEqual(["", agent.agentId]);
    expect(own.received.map(ofAgent).toSorted()).toEqual(["", "", agent.agentId, agent.agentId]);
    await sibling.nth(1);
    expect(sibling.received.map(ofAgent)).toEqual([""]);
    expect(foreign.received).toHaveLength(0);
    await org.admin.webhooks.deleteWebhook({ webhookId });
  });

  test("a webhook for everything is told what the feed of events is, all eighteen kinds", {
    timeout: 180_000,
  }, async () => {
    await using at = await receiver();
    await using gone = await receiver(410);
    const plan = {
      planId: "daily",
      period: BillingPeriod.DAY,
      priceMicros: credits(50),
      includedRequests: 1n,
      overageMicros: 1n,
    };
    const shop = await market(world, { offer: { plans: [plan] } });
    const other = shop.buyer;
    const { webhookId } = await hook(other.admin, at.url);
    await hook(other.admin, gone.url, { eventTypes: ["grant.revoked"] });
    const agent = await other.agent();
    const source = await eventSource(other);
    await source(agent.as);
    const capability = unique("dead");
    const endpoint = { kind: { case: "http", value: { url: nowhere } } } as const;
    await other.agent({ capabilities: [capability], endpoint, breaker: { failureThreshold: 1 } });
    const failing = await contract(other, { contractId: capability, capability });
    await agent.as.bus.submitTask({ contractId: failing, input: value(1) });
    const approved = unique("approved");
    await other.agent({ capabilities: [approved], endpoint: echoEndpoint });
    const gated = await contract(other, { contractId: approved, capability: approved, approvalRequired: true });
    await agent.as.bus.submitTask({ contractId: gated, input: value(1), returnImmediately: true });
    await limit(other.admin, 9, { scope: BudgetScope.AGENT, subjectId: agent.agentId });
    for (const estimatedTokens of [8n, 10n]) {
      const costly = await contract(other, { contractId: unique("costly"), capability: approved, estimatedTokens });
      await agent.as.bus.submitTask({ contractId: costly, input: value(1) }).catch(() => {});
    }
    for (const succeeds of [true, false]) {
      await submit(agent.as, { queue: "default", maxAttempts: 1 });
      const [leased] = (await agent.as.queues.claimJobs({ queues: ["default"] })).jobs;
      const { job, leaseToken } = leased!;
      const of = { jobId: job!.jobId, leaseToken };
      await (succeeds ? agent.as.queues.completeJob(of) : agent.as.queues.failJob(of));
    }
    await tell(agent.as, toAgent(shop.asker.agentId), "hello");
    const [creator, worker] = [await agentWith(other, 20), await other.agent()];
    const { taskId } = await post(creator.as);
    await work(worker.as, taskId);
    await accept(creator.as, taskId);
    await creator.as.market.cancelTask({ taskId: (await post(creator.as)).taskId });
    const subject = { case: "capability", value: approved } as const;
    const { grant } = await other.admin.grants.createGrant({ granteeOrgId: shop.seller.orgId, subject });
    await shop.seller.admin.grants.acceptGrant({ grantId: grant!.grantId });
    await other.admin.grants.revokeGrant({ grantId: grant!.grantId });
    const payment = JSON.stringify({ orgId: other.orgId, amountMicros: "1", providerReference: unique("pi") });
    const signature = new Webhook(paymentSecret).sign("msg_1", new Date(clock.now()), payment);
    const signed = { "webhook-timestamp": String(Math.floor(clock.now() / second)), "webhook-signature": signature };
    const headers = { "content-type": "application/json", "webhook-id": "msg_1", ...signed };
    expect((await fetch(`${world.url}/payments/callback`, { method: "POST", headers, body: payment })).status).toBe(
      200,
    );
    await leave(other, credits(60));
    await other.admin.subscriptions.subscribe({ listingId: shop.listingId, planId: "daily" });
    clock.advance(day);
    const told = async () => {
      await world.settled();
      const { events } = await other.admin.events.listEvents({ pageSize: 250 });
      const missing = eventNames.filter((name) => !events.some(({ type }) => type === name));
      // What was under way when a day went by comes twice.
      const received = [...new Set(at.received.map(({ id }) => id))].toSorted();
      return { events, missing, received };
    };
    let { events, missing, received } = await told();
    await eventually(async () => {
      clock.advance(second);
      ({ events, missing, received } = await told());
      return missing.length === 0 && received.length === events.length;
    }).catch(() => {}); // what is missing is said below
    expect(missing).toEqual([]);
    expect(received).toEqual(events.map(({ eventId }) => eventId).toSorted());
    await deliveriesWhen(other.admin, webhookId, (all) => all.every((one) => stateOf(one) === "DELIVERED"));
    for (const { eventId, payload } of events)
      expect((JSON.parse(at.received.find(({ id }) => id === eventId)!.body) as { data: unknown }).data).toEqual(
        payload,
      );
  });

  test("a disabled organisation's webhooks are sent nothing until it is enabled", async () => {
    await using at = await receiver(500);
    const other = await world.org();
    const { webhookId } = await hook(other.admin, at.url);
    await other.admin.webhooks.testWebhook({ webhookId });
    const disable = (disabled: boolean) =>
      world.operator.organizations.updateOrganization({
        orgId: other.orgId,
        change: { disabled },
        updateMask: { paths: ["disabled"] },
      });
    await disable(true);
    at.answer(200);
    clock.advance(hour);
    await happen(org.admin); // others are served meanwhile
    await using neighbour = await receiver();
    const near = await hook(org.admin, neighbour.url);
    await org.admin.webhooks.testWebhook({ webhookId: near.webhookId });
    expect(at.received).toHaveLength(1);
    await disable(false);
    await at.nth(2);
    await org.admin.webhooks.deleteWebhook({ webhookId: near.webhookId });
  });

  test("a webhook is nobody's but its owner's and the administrators': to others it does not exist", async () => {
    const agent = await org.agent();
    const mate = await org.agent();
    const other = await world.org();
    const stranger = await other.agent();
    const { webhookId } = await hook(agent.as, nowhere);
    const { webhookId: orgs } = await hook(org.admin, nowhere);
    const change = { change: { description: "x" }, updateMask: { paths: ["description"] } };
    const noEvent = { eventId: "evt_none" };
    const sinceTime = timestampFromMs(0);
    for (const by of [mate.as, stranger.as, other.admin])
      for (const [real, random] of [
        [webhookId, `whk_${"0".repeat(32)}`],
        [orgs, `whk_${"1".repeat(32)}`],
      ] as const) {
        const answers = async (id: string) => {
          const calls = [
            by.webhooks.getWebhook({ webhookId: id }),
            by.webhooks.updateWebhook({ webhookId: id, ...change }),
            by.webhooks.deleteWebhook({ webhookId: id }),
            by.webhooks.rotateSecret({ webhookId: id }),
            by.webhooks.testWebhook({ webhookId: id }),
            by.webhooks.listDeliveries({ webhookId: id }),
            by.webhooks.getDelivery({ webhookId: id, ...noEvent }),
            by.webhooks.replayDelivery({ webhookId: id, ...noEvent }),
            by.webhooks.replayDeliveries({ webhookId: id, sinceTime }),
          ];
          return (await Promise.all(calls.map(refusal))).map(({ reason, metadata, error }) => [
            reason,
            { ...metadata, id: "", trace_id: "" },
            error.rawMessage,
          ]);
        };
        const given = await answers(real);
        expect(given).toEqual(await answers(random));
        expect(new Set(given.map(([reason]) => reason))).toEqual(new Set(["NOT_FOUND"]));
      }
    expect((await mate.as.webhooks.listWebhooks({})).webhooks).toEqual([]);
    expect((await mate.as.webhooks.listWebhooks({ agentId: agent.agentId })).webhooks).toEqual([]);
    expect(
      (await refusal(mate.as.webhooks.createWebhook({ url: nowhere, eventTypes: ["*"], agentId: agent.agentId })))
        .reason,
    ).toBe("NOT_FOUND");
    expect((await agent.as.webhooks.listWebhooks({})).webhooks.map((one) => one.webhookId)).toEqual([webhookId]);
    const { webhooks } = await org.admin.webhooks.listWebhooks({ agentId: agent.agentId });
    expect(webhooks).toMatchObject([{ webhookId, agentId: agent.agentId }]);
    expect((await org.admin.webhooks.updateWebhook({ webhookId, ...change })).webhook).toMatchObject({
      description: "x",
      revision: 2n,
    });
    expect((await org.admin.webhooks.getWebhook({ webhookId: orgs })).webhook!.agentId).toBe("");
    await org.admin.webhooks.deleteWebhook({ webhookId: orgs });
  });

  test.each([
    ["no event type", { eventTypes: [] }, "event_types"],
    ["an event there is not", { eventTypes: ["task.completed", "task.begun"] }, "event_types[1]"],
    ["an area there is not", { eventTypes: ["nothing.*"] }, "event_types[0]"],
    ["an event in capitals", { eventTypes: ["Task.completed"] }, "event_types"],
    ["a pattern in the middle", { eventTypes: ["task.*.x"] }, "event_types"],
    ["an event twice", { eventTypes: ["*", "*"] }, "event_types"],
    ["51 events", { eventTypes: Array.from({ length: 51 }, (_, n) => `task.${"x".repeat(n + 1)}`) }, "event_types"],
    ["an empty url", { url: "" }, "url"],
    ["a long url", { url: `${nowhere}/${"x".repeat(2_040)}` }, "url"],
    ["a long description", { description: "x".repeat(257) }, "description"],
    ["a secret without its prefix", { secret: "hmac_key" }, "secret"],
    ["a short secret", { secret: `whsec_${Buffer.alloc(23).toString("base64")}` }, "secret"],
    ["a long secret", { secret: `whsec_${Buffer.alloc(65).toString("base64")}` }, "secret"],
    [
      "a secret without its padding",
      { secret: `whsec_${Buffer.alloc(25).toString("base64").replaceAll("=", "")}` },
      "secret",
    ],
  ])("%s is refused by name", async (_what, init, field) => {
    const agent = await org.agent();
    const { code, metadata } = await refusal(
      agent.as.webhooks.createWebhook({ url: nowhere, eventTypes: ["*"], ...init }),
    );
    expect([code, metadata.field?.startsWith(field)]).toEqual(["InvalidArgument", true]);
    expect((await agent.as.webhooks.listWebhooks({})).webhooks).toEqual([]);
  });

  test("updates take only what the mask names, refuse a lost update, and say what is wrong", async () => {
    const agent = await org.agent();
    const { webhookId } = await hook(agent.as, `${nowhere}/a`, { description: "before" });
    const update = (request: object) =>
      agent.as.webhooks.updateWebhook({ webhookId, change: {}, updateMask: { paths: [] }, ...request });
    const { webhook } = await update({
      change: { url: `${nowhere}/b`, description: "after" },
      updateMask: { paths: ["url"] },
    });
    expect(webhook).toMatchObject({ url: `${nowhere}/b`, description: "before", eventTypes: ["*"], revision: 2n });
    const lost = { change: { description: "x" }, updateMask: { paths: ["description"] }, ifRevision: 1n };
    expect((await refusal(update(lost))).reason).toBe("FAILED_PRECONDITION");
    expect((await refusal(update({}))).metadata.field).toBe("update_mask");
    expect((await refusal(update({ updateMask: { paths: ["secret"] } }))).metadata.field).toBe("update_mask");
    expect((await refusal(update({ updateMask: { paths: ["event_types"] } }))).metadata.field).toBe(
      "change.event_types",
    );
    expect((await refusal(update({ updateMask: { paths: ["url"] } }))).metadata.field).toBe("change.url");
    const inside = { change: { url: "http://10.0.0.1/" }, updateMask: { paths: ["url"] } };
    expect(await refusal(update(inside))).toMatchObject({
      reason: "ENDPOINT_REFUSED",
      metadata: { field: "change.url" },
    });
    await update({ change: { eventTypes: ["job.*"] }, updateMask: { paths: ["event_types"] } });
    await happen(agent.as);
    expect((await agent.as.webhooks.listDeliveries({ webhookId })).deliveries).toEqual([]);
  });

  test("an agent has at most 50, however many are made at once, and so has the organisation", async () => {
    const other = await world.org();
    const agent = await other.agent();
    for (const by of [agent.as, other.admin]) {
      const results = await Promise.allSettled(Array.from({ length: 60 }, () => hook(by, nowhere)));
      expect(results.filter(({ status }) => status === "fulfilled")).toHaveLength(50);
      expect((await refusal(hook(by, nowhere))).reason).toBe("QUOTA_EXCEEDED");
    }
    const seen: string[] = [];
    let pageToken = "";
    do {
      const page = await other.admin.webhooks.listWebhooks({ pageSize: 30, pageToken });
      seen.push(...page.webhooks.map(({ webhookId }) => webhookId));
      pageToken = page.nextPageToken;
    } while (pageToken);
    expect(new Set(seen).size).toBe(100);
  });

  test("what is deleted is sent nothing more, and its deliveries go; an agent takes its webhooks with it", async () => {
    await using at = await receiver(500);
    const agent = await org.agent();
    const first = await hook(agent.as, at.url);
    const other = await hook(agent.as, at.url);
    await happen(agent.as);
    await at.nth(2);
    await agent.as.webhooks.deleteWebhook({ webhookId: first.webhookId });
    expect((await refusal(agent.as.webhooks.getWebhook({ webhookId: first.webhookId }))).reason).toBe("NOT_FOUND");
    expect((await org.admin.agents.deleteAgent({ agentId: agent.agentId })).deletedWebhooks).toBe(1);
    expect((await refusal(org.admin.webhooks.getWebhook({ webhookId: other.webhookId }))).reason).toBe("NOT_FOUND");
    const left = async (table: "webhook_delivery" | "webhook_attempt" | "webhook_subscription" | "webhook_drop") => {
      const of = {
        webhook_delivery: sql`webhook_delivery`,
        webhook_attempt: sql`webhook_attempt`,
        webhook_subscription: sql`webhook_subscription`,
        webhook_drop: sql`webhook_drop`,
      }[table];
      const { n } = (await world.server.app.db.query.one<{ n: number }>(
        sql`select count(*) as n from ${of} where webhook_id in (${first.webhookId}, ${other.webhookId})`,
      ))!;
      return n;
    };
    await eventually(async () => {
      clock.advance(11 * second);
      return (
        (await left("webhook_delivery")) +
          (await left("webhook_attempt")) +
          (await left("webhook_subscription")) +
          (await left("webhook_drop")) ===
        0
      );
    });
    expect(at.received).toHaveLength(2);
  });

  test("of a deleted webhook nothing is left, also when several servers clear it away at once", async () => {
    const agent = await org.agent();
    const { webhookId } = await hook(agent.as, nowhere);
    const { app } = world.server;
    await app.db.tx(async (tx) => {
      for (let n = 0; n < 1_200; n++)
        await tx.run(sql`
          insert into webhook_delivery (org_id, webhook_id, event_id, type, agent_id, event_ms, trace_id, state, attempts, failures, next_ms, lease_token, touch_ms, payload)
          values (${org.orgId}, ${webhookId}, ${`evt_${n}`}, 'task.completed', '', 0, '', 2, 1, 0, 0, '', ${clock.now()}, ${new Uint8Array(4)})`);
    });
    await agent.as.webhooks.deleteWebhook({ webhookId });
    await Promise.all(Array.from({ length: 4 }, () => removeDroppedWebhooks(app)));
    const left = await app.db.query.one<{ n: number }>(
      sql`select count(*) as n from webhook_delivery where org_id = ${org.orgId} and webhook_id = ${webhookId}`,
    );
    expect(left!.n).toBe(0);
  });

  test("deliveries are kept for seven days after their last attempt, or while they wait", async () => {
    await using at = await receiver();
    const agent = await org.agent();
    const { webhookId } = await hook(agent.as, at.url);
    const paused = await hook(agent.as, at.url, { eventTypes: ["task.completed"] });
    await agent.as.webhooks.updateWebhook({
      webhookId: paused.webhookId,
      change: { disabled: true },
      updateMask: { paths: ["disabled"] },
    });
    await happen(agent.as);
    await deliveriesWhen(agent.as, webhookId, ([one]) => stateOf(one) === "DELIVERED");
    clock.advance(6.9 * day);
    const count = async () =>
      (
        await Promise.all(
          [webhookId, paused.webhookId].map((id) => agent.as.webhooks.listDeliveries({ webhookId: id })),
        )
      ).map(({ deliveries }) => deliveries.length);
    expect(await count()).toEqual([1, 1]);
    await eventually(async () => {
      clock.advance(hour);
      return (await count()).join() === "0,0";
    });
    expect(at.received).toHaveLength(1);
    const text = await fetch(`${world.url}/metrics`, {
      headers: { authorization: `Bearer ${world.operatorKey}` },
    }).then((answer) => answer.text());
    expect(
      Number(/^moltwire_webhook_deliveries_total\{state="expired"\} (\d+)/m.exec(text)?.[1]),
    ).toBeGreaterThanOrEqual(1);
  });
});
