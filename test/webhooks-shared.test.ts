/** Webhooks across restarts, kills and replicas, and what never gets out. */
import { describe, expect, onTestFinished, test } from "vitest";
import { Role } from "../gen/moltwire/api/v1/access_pb.ts";
import { keyDigest } from "../src/federation/key-text.ts";
import { serverProcess } from "./bus-fixtures/process.ts";
import { storage } from "./bus-fixtures/storage.ts";
import { canary, closedPort, httpPeer } from "./egress-fixtures/servers.ts";
import { loopbackSpellings, specialAddresses } from "./egress-fixtures/spellings.ts";
import { migratedDatabase } from "./engines.ts";
import { type Clients, clientsAt, dialects, eventually, fakeClock, refusal, start, unique } from "./harness.ts";
import { deliveriesWhen, eventSource, hook, stateOf } from "./webhook-fixtures/hooks.ts";
import { receiver, verify } from "./webhook-fixtures/receiver.ts";

const operatorKey = "webhook-crash-0123456789-abcdefghijklmnopqrstuvwxyz";
const program = new URL("bus-fixtures/server.ts", import.meta.url).pathname;

/** Completes jobs of a queue of its own: one event each. */
async function completeJobs(by: Clients, count: number): Promise<void> {
  const queue = unique("queue");
  await by.queues.submitJobs({ jobs: Array.from({ length: count }, () => ({ queue })) });
  const { jobs } = await by.queues.claimJobs({ queues: [queue], maxJobs: count });
  await Promise.all(jobs.map(({ job, leaseToken }) => by.queues.completeJob({ jobId: job!.jobId, leaseToken })));
}

describe.each(dialects)("%s", (dialect) => {
  test("kill -9 in the middle of sending: all events arrive after, under the ids they had", {
    timeout: 120_000,
  }, async () => {
    await using place = await storage(dialect);
    const options = JSON.stringify({ ...place.options, operatorKeyDigest: keyDigest(operatorKey), leaseMs: 2_000 });
    await using at = await receiver(() => {}); // takes requests and says nothing
    const server = await serverProcess(program, [options]);
    const operator = clientsAt(server.url, operatorKey);
    const { agent } = await operator.agents.registerAgent({ name: unique("agent") });
    const { secret: key } = await operator.keys.createApiKey({ agentId: agent!.agentId, role: Role.AGENT });
    const { secret, webhookId } = await hook(clientsAt(server.url, key), at.url);
    await completeJobs(clientsAt(server.url, key), 20);
    await at.nth(8); // as many as one webhook gets at once
    await server.kill();
    const before = at.received.map(({ id }) => id);
    expect(new Set(before).size).toBe(8);
    at.answer(200);
    await using again = await serverProcess(program, [options]);
    const by = clientsAt(again.url, key);
    await eventually(() => new Set(at.received.slice(8).map(({ id }) => id)).size === 20);
    for (const received of at.received) verify(secret, received);
    const deliveries = await deliveriesWhen(
      by,
      webhookId,
      (all) => all.length === 20 && all.every((one) => stateOf(one) === "DELIVERED"),
    );
    expect(new Set(deliveries.map(({ eventId }) => eventId))).toEqual(new Set(at.received.map(({ id }) => id)));
    // The attempt that was cut off is listed, and counts as nobody's failure.
    const lost = deliveries.filter(({ eventId }) => before.includes(eventId));
    expect(
      lost.map(({ attempts }) =>
        attempts.map(({ statusCode, error }) => [statusCode, error.includes("server stopped")]),
      ),
    ).toEqual(
      Array(8).fill([
        [0, true],
        [200, false],
      ]),
    );
  });

  test("an endpoint that is down across a restart gets all of it after", async () => {
    await using place = await storage(dialect);
    const clock = fakeClock();
    const settings = { ...place.options, operatorKeyDigest: keyDigest(operatorKey), clock };
    const down = await receiver();
    const { port, url } = down;
    await down[Symbol.asyncDispose]();
    let key: string;
    let webhookId: string;
    {
      await using world = await start("sqlite", settings);
      const operator = world.as(operatorKey);
      const { agent } = await operator.agents.registerAgent({ name: unique("agent") });
      ({ secret: key } = await operator.keys.createApiKey({ agentId: agent!.agentId, role: Role.AGENT }));
      ({ webhookId } = await hook(world.as(key), url));
      await completeJobs(world.as(key), 10);
      await eventually(async () => (await world.as(key).webhooks.getWebhook({ webhookId })).webhook!.failingSinceTime);
    }
    await using at = await receiver(200, port);
    await using world = await start("sqlite", settings);
    clock.advance(3_600_000);
    const deliveries = await deliveriesWhen(
      world.as(key),
      webhookId,
      (all) => all.length === 10 && all.every((one) => stateOf(one) === "DELIVERED"),
    );
    expect(at.received.map(({ id }) => id).toSorted()).toEqual(deliveries.map(({ eventId }) => eventId).toSorted());
  });

  test("a server that stops finishes what is under way, and leaves the rest to the next", {
    timeout: 60_000,
  }, async () => {
    await using place = await storage(dialect);
    const settings = { ...place.options, operatorKeyDigest: keyDigest(operatorKey), drainMs: 500 };
    await using at = await receiver(() => {});
    let key: string;
    let webhookId: string;
    {
      await using world = await start("sqlite", settings);
      const operator = world.as(operatorKey);
      const { agent } = await operator.agents.registerAgent({ name: unique("agent") });
      ({ secret: key } = await operator.keys.createApiKey({ agentId: agent!.agentId, role: Role.AGENT }));
      ({ webhookId } = await hook(world.as(key), at.url));
      await completeJobs(world.as(key), 3);
      await at.nth(3);
    }
    at.answer(200);
    await using world = await start("sqlite", settings);
    const deliveries = await deliveriesWhen(
      world.as(key),
      webhookId,
      (all) => all.length === 3 && all.every((one) => stateOf(one) === "DELIVERED"),
    );
    expect(deliveries.map(({ attemptCount }) => attemptCount)).toEqual([1, 1, 1]);
    expect(at.received).toHaveLength(6);
  });

  test("a name that turns private after the webhook was made is not connected to, and tells nothing of what is behind it", async () => {
    const outside = await httpPeer((_request, response) => response.end());
    const inside = await canary("127.0.0.2", outside.port);
    const shut = await closedPort();
    const answers = new Map([["rebind.test", "127.0.0.1"]]);
    const clock = fakeClock();
    await using world = await start(dialect, { clock, resolve: async (host) => [answers.get(host) ?? "127.0.0.2"] });
    const org = await world.org();
    const happen = await eventSource(org);
    const agent = await org.agent();
    const [open, closed] = [
      await hook(agent.as, `http://rebind.test:${outside.port}/`),
      await hook(agent.as, `http://rebind.test:${shut}/`),
    ];
    answers.set("rebind.test", "127.0.0.2");
    await happen(agent.as);
    const attempts = await Promise.all(
      [open, closed].map(
        async ({ webhookId }) =>
          (await deliveriesWhen(agent.as, webhookId, ([one]) => one!.attempts.length === 1))[0]!.attempts[0]!,
      ),
    );
    expect(attempts[0]).toMatchObject({
      statusCode: 0,
      error: "the URL leads to an address that outgoing calls may not reach",
      responseBody: "",
    });
    const [a, b] = attempts.map(({ statusCode, error, responseBody }) => ({ statusCode, error, responseBody }));
    expect(a).toEqual(b);
    expect(inside.sockets).toHaveLength(0);
    expect(outside.sockets).toHaveLength(0);
  });
});

test.runIf(dialects.includes("postgres"))(
  "two servers on one database share the work, and none of it is sent twice",
  { timeout: 60_000 },
  async () => {
    const database = await migratedDatabase();
    onTestFinished(() => database.drop());
    await using one = await start("postgres", { databaseUrl: database.url });
    await using two = await start("postgres", { databaseUrl: database.url });
    await using at = await receiver((response) => void setTimeout(() => response.end(), 5));
    const org = await one.org();
    const agents = await Promise.all(Array.from({ length: 8 }, () => org.agent()));
    for (const agent of agents) await hook(agent.as, at.url);
    const second = agents.map(({ key }) => two.as(key));
    await Promise.all(agents.flatMap((agent, n) => [completeJobs(agent.as, 12), completeJobs(second[n]!, 13)]));
    await eventually(() => new Set(at.received.map(({ id }) => id)).size === 200);
    expect(at.received).toHaveLength(200);
    const sent = await Promise.all(
      [one, two].map(async ({ url }) => {
        const text = await fetch(`${url}/metrics`, { headers: { authorization: `Bearer ${one.operatorKey}` } }).then(
          (answer) => answer.text(),
        );
        return Number(/^moltwire_webhook_attempts_total\{result="2xx"\} (\d+)/m.exec(text)?.[1] ?? 0);
      }),
    );
    expect(Math.min(...sent)).toBeGreaterThan(5);
  },
);

test.runIf(dialects.includes("postgres"))(
  "two servers together do not send one webhook more at once than one would",
  { timeout: 60_000 },
  async () => {
    const database = await migratedDatabase();
    onTestFinished(() => database.drop());
    await using one = await start("postgres", { databaseUrl: database.url, drainMs: 100 });
    await using two = await start("postgres", { databaseUrl: database.url, drainMs: 100 });
    await using silent = await receiver(() => {});
    await using alive = await receiver();
    const org = await one.org();
    const agent = await org.agent();
    await hook(agent.as, silent.url, { eventTypes: ["job.completed"] });
    const { webhookId } = await hook(agent.as, alive.url, { eventTypes: ["message.received"] });
    await completeJobs(agent.as, 40);
    await silent.nth(8);
    // Both have looked for something to send many times by then.
    for (let n = 0; n < 10; n++)
      for (const world of [one, two]) await world.as(agent.key).webhooks.testWebhook({ webhookId });
    expect(silent.received).toHaveLength(8);
  },
);

test("no spelling of an internal address can be registered, at create or at update, and nothing is connected to", async () => {
  const inside = await canary("127.0.0.1");
  const shut = await closedPort();
  await using world = await start("sqlite", {
    egressAllow: ["hooks.internal"],
    resolve: async (host) =>
      host.startsWith("evil") ? [specialAddresses[Number(/\d+/.exec(host)?.[0] ?? 0)]!] : ["8.8.8.8"],
  });
  const org = await world.org();
  const agent = await org.agent();
  const { webhookId } = await hook(agent.as, "https://public.test/");
  const hosts = [
    ...loopbackSpellings,
    ...specialAddresses.map((address) => (address.includes(":") ? `[${address}]` : address)),
    ...specialAddresses.map((_, n) => `evil${n}.test`),
  ];
  const urls = [
    ...hosts.flatMap((host) => [`https://${host}:${inside.port}/`, `http://${host}:${inside.port}/`]),
    ...[
      "http://public.test/",
      "ftp://public.test/",
      "https://user:pw@public.test/",
      "https://public.test@127.0.0.1/",
      "//public.test/",
      "file:///etc/passwd",
    ],
  ];
  const told = new Map<string, Set<string>>();
  for (const url of urls) {
    const made = await refusal(agent.as.webhooks.createWebhook({ url, eventTypes: ["*"] }));
    const changed = await refusal(
      agent.as.webhooks.updateWebhook({ webhookId, change: { url }, updateMask: { paths: ["url"] } }),
    );
    expect([url, made.reason, changed.reason]).toEqual([url, "ENDPOINT_REFUSED", "ENDPOINT_REFUSED"]);
    told.set(made.error.rawMessage, (told.get(made.error.rawMessage) ?? new Set()).add(url));
  }
  const [a, b] = await Promise.all(
    [inside.port, shut].map((port) =>
      refusal(agent.as.webhooks.createWebhook({ url: `https://127.0.0.1:${port}/`, eventTypes: ["*"] })),
    ),
  );
  expect(a!.error.rawMessage).toBe(b!.error.rawMessage);
  await hook(agent.as, "http://hooks.internal/");
  expect((await agent.as.webhooks.getWebhook({ webhookId })).webhook!.url).toBe("https://public.test/");
  expect(inside.sockets).toHaveLength(0);
});
