import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { dayMs, dayStart, dayText } from "../src/bus/cost/day.ts";
import { type DayLimits, denyUnderGrant, reserveGrant, settleGrant } from "../src/federation/grant/usage-store.ts";
import { dialects, fakeClock, type Org, refusal, start, type World } from "./harness.ts";

describe.each(dialects)("%s", (dialect) => {
  const clock = fakeClock(Date.now());
  const today = dayStart(clock.now());
  let world: World;
  let [from, to]: Org[] = [];
  beforeAll(async () => {
    world = await start(dialect, { clock });
    [from, to] = [await world.org(), await world.org()];
  });
  afterAll(() => world[Symbol.asyncDispose]());

  const newGrant = async () => {
    const subject = { case: "capability", value: "x" } as const;
    const { grant } = await from!.admin.grants.createGrant({ granteeOrgId: to!.orgId, subject });
    return grant!.grantId;
  };
  const keyOf = (grantId: string, day = today) => ({ orgId: from!.orgId, grantId, dayMs: day });
  const none: DayLimits = { tokensPerDay: undefined, requestsPerDay: undefined };
  const reserve = (grantId: string, tokens: number, limits: Partial<DayLimits>, day = today) =>
    world.server.app.db.tx((tx) => reserveGrant(tx, keyOf(grantId, day), tokens, { ...none, ...limits }));
  const settle = (grantId: string, reserved: number, used: { tokens: number; micros: number }, day = today) =>
    world.server.app.db.tx((tx) => settleGrant(tx, keyOf(grantId, day), reserved, used));
  const usage = async (grantId: string, filter = {}, { admin } = to!) =>
    (await admin.grants.getGrantUsage({ grantId, ...filter })).days;

  test("of fifty at once as many are let in as the day has tokens for, and exactly these", async () => {
    const grantId = await newGrant();
    const got = await Promise.all(Array.from({ length: 50 }, () => reserve(grantId, 30, { tokensPerDay: 1_000 })));
    expect(got.filter(Boolean)).toHaveLength(33);
    expect(await usage(grantId)).toMatchObject([{ requests: 33n, reservedTokens: 990n, tokens: 0n }]);
    expect(await reserve(grantId, 11, { tokensPerDay: 1_000 })).toBeUndefined();
    expect(await reserve(grantId, 10, { tokensPerDay: 1_000 })).toBeDefined();
  });

  test("of fifty at once as many are let in as the day has requests", async () => {
    const grantId = await newGrant();
    const got = await Promise.all(Array.from({ length: 50 }, () => reserve(grantId, 5, { requestsPerDay: 20 })));
    expect(got.filter(Boolean)).toHaveLength(20);
    expect(await usage(grantId)).toMatchObject([{ requests: 20n, reservedTokens: 100n }]);
  });

  test("what would be too much alone is not let in, not as the first of the day either", async () => {
    const grantId = await newGrant();
    expect(await reserve(grantId, 11, { tokensPerDay: 10 })).toBeUndefined();
    expect(await reserve(grantId, 0, { requestsPerDay: 0 })).toBeUndefined();
    expect(await reserve(grantId, 1, { tokensPerDay: 0 })).toBeUndefined();
    expect(await usage(grantId)).toEqual([]);
    expect(await reserve(grantId, 0, { tokensPerDay: 0 })).toBeDefined();
  });

  test("a request that ends gives back what it did not use, and one that used more leaves no room", async () => {
    const grantId = await newGrant();
    const limits = { tokensPerDay: 100 };
    await reserve(grantId, 60, limits);
    expect(await reserve(grantId, 50, limits)).toBeUndefined();
    await settle(grantId, 60, { tokens: 20, micros: 7 });
    expect(await usage(grantId)).toMatchObject([{ tokens: 20n, reservedTokens: 0n, costMicros: 7n, requests: 1n }]);
    await reserve(grantId, 80, limits);
    await settle(grantId, 80, { tokens: 200, micros: 1 });
    expect(await usage(grantId)).toMatchObject([{ tokens: 220n, reservedTokens: 0n, costMicros: 8n, requests: 2n }]);
    expect(await reserve(grantId, 0, limits)).toBeUndefined();
  });

  test("each day begins anew, a request settles on its own, and both read the days latest first", async () => {
    const grantId = await newGrant();
    const day = (n: number) => today - n * dayMs;
    for (const n of [3, 2, 0]) expect(await reserve(grantId, 10, { tokensPerDay: 10 }, day(n))).toBeDefined();
    await settle(grantId, 10, { tokens: 4, micros: 1 }, day(3));
    const deny = () => world.server.app.db.tx((tx) => denyUnderGrant(tx, keyOf(grantId, day(1))));
    await Promise.all(Array.from({ length: 10 }, deny));
    const all = await usage(grantId);
    expect(all.map(({ date }) => date)).toEqual([0, 1, 2, 3].map((n) => dayText(day(n))));
    expect(all.map(({ denials, tokens }) => [denials, tokens])).toEqual([
      [0n, 0n],
      [10n, 0n],
      [0n, 0n],
      [0n, 4n],
    ]);
    expect(await usage(grantId, {}, from!)).toEqual(all);
    const { as } = await to!.agent();
    expect((await as.grants.getGrantUsage({ grantId })).days).toEqual(all);
    const window = { startDate: dayText(day(2)), endDate: dayText(day(1)) };
    expect(await usage(grantId, window)).toEqual(all.slice(1, 3));
    const first = await to!.admin.grants.getGrantUsage({ grantId, pageSize: 3 });
    expect(first.days).toEqual(all.slice(0, 3));
    const { nextPageToken: pageToken } = first;
    expect(await usage(grantId, { pageToken })).toEqual(all.slice(3));
    const foreign = from!.admin.grants.getGrantUsage({ grantId, pageToken });
    expect((await refusal(foreign)).reason).toBe("INVALID_PAGE_TOKEN");
  });
});
