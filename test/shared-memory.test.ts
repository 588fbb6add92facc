import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TrustTier } from "../gen/moltwire/bus/v1/agent_pb.ts";
import { ChangeKind, EntryOrder } from "../gen/moltwire/memory/v1/memory_pb.ts";
import type { SharedEntryChange } from "../gen/moltwire/memory/v1/shared_memory_service_pb.ts";
import {
  asTimePasses,
  type Clients,
  dialects,
  fakeClock,
  type Org,
  refusal,
  start,
  unique,
  type World,
} from "./harness.ts";
import { changesOf, jsonOf, write } from "./memory-fixtures/memory.ts";

const notFound = { code: "NotFound", reason: "NOT_FOUND" };
const publish = async (
  as: Clients,
  namespace: string,
  key: string,
  value: number,
  isPublic = false,
  ttlMs?: number,
) => {
  const written = write(key, value, { namespace, ...(ttlMs && { ttlMs }) });
  return (await as.sharedMemory.publishSharedEntry({ write: written, public: isPublic })).sharedEntry!;
};
const watch = (as: Clients, request: object, count: number) =>
  changesOf<SharedEntryChange>((signal) => as.sharedMemory.watchSharedEntries(request, { signal }), count);
const told = ({ change, public: isPublic }: SharedEntryChange) => [
  Number(change!.revision),
  change!.kind,
  change!.entry!.key,
  jsonOf(change!.entry!.value),
  isPublic,
];
const { SET, DELETED, EXPIRED } = ChangeKind;

describe.each(dialects)("shared memory on %s", (dialect) => {
  let world: World;
  let org: Org;
  beforeAll(async () => {
    world = await start(dialect);
    org = await world.org();
  });
  afterAll(() => world[Symbol.asyncDispose]());

  test("a namespace belongs to who first writes into it: the others of the organisation read, and do not write or delete", async () => {
    const [owner, other] = [await org.agent(), await org.agent()];
    const namespace = unique("team");
    const made = await publish(owner.as, namespace, "plan", 1);
    expect(made).toMatchObject({
      ...{ orgId: org.orgId, ownerAgentId: owner.agentId, public: false },
      entry: { namespace, key: "plan", revision: 1n },
    });
    const got = await other.as.sharedMemory.getSharedEntry({ namespace, key: "plan" });
    expect(jsonOf(got.sharedEntry!.entry!.value)).toBe(1);
    expect(got.sharedEntry!.ownerAgentId).toBe(owner.agentId);
    const denied = { reason: "POLICY_DENIED", metadata: { owner_agent_id: owner.agentId } };
    expect(await refusal(publish(other.as, namespace, "plan", 2))).toMatchObject(denied);
    expect(await refusal(publish(other.as, namespace, "another", 2))).toMatchObject(denied);
    expect(await refusal(other.as.sharedMemory.deleteSharedEntry({ namespace, key: "plan" }))).toMatchObject(denied);
    const byAdmin = { agentId: other.agentId, write: write("plan", 3, { namespace }) };
    expect(await refusal(org.admin.sharedMemory.publishSharedEntry(byAdmin))).toMatchObject(denied);
    await org.admin.sharedMemory.publishSharedEntry({ ...byAdmin, agentId: owner.agentId });
    expect(await refusal(org.admin.sharedMemory.publishSharedEntry({ ...byAdmin, agentId: "" }))).toMatchObject({
      reason: "INVALID_REQUEST",
    });
    expect(
      await refusal(other.as.sharedMemory.publishSharedEntry({ ...byAdmin, agentId: owner.agentId })),
    ).toMatchObject(notFound);
    const unnamed = other.as.sharedMemory.publishSharedEntry({ write: write("plan", 1) });
    expect(await refusal(unnamed)).toMatchObject({ reason: "INVALID_REQUEST", metadata: { field: "write.namespace" } });
    const conditional = { namespace, key: "plan", ifRevision: 1n };
    expect(await refusal(owner.as.sharedMemory.deleteSharedEntry(conditional))).toMatchObject({
      ...{ reason: "FAILED_PRECONDITION", metadata: { revision: "2" } },
    });
    expect(await owner.as.sharedMemory.deleteSharedEntry({ namespace, key: "plan" })).toMatchObject({ revision: 3n });
    expect(await refusal(other.as.sharedMemory.getSharedEntry({ namespace, key: "plan" }))).toMatchObject(notFound);
    expect((await other.as.sharedMemory.listSharedEntries({ namespace })).sharedEntries).toEqual([]);
    const none = { namespace: unique("none") };
    expect(await refusal(other.as.sharedMemory.listSharedEntries(none))).toMatchObject(notFound);
    expect(await refusal(other.as.sharedMemory.deleteSharedEntry({ ...none, key: "k" }))).toMatchObject(notFound);
    expect(await refusal(watch(other.as, none, 1))).toMatchObject(notFound);
    await expect(owner.as.memory.getEntry({ namespace, key: "plan" })).rejects.toThrow();
  });

  test("of many that write first at once, one owns the namespace, and its log has no hole", async () => {
    const agents = await Promise.all(Array.from({ length: 8 }, () => org.agent()));
    for (let round = 0; round < 5; round++) {
      const namespace = unique("race");
      const tries = await Promise.allSettled(
        agents.flatMap(({ as }, n) => [publish(as, namespace, "a", n), publish(as, namespace, "b", n)]),
      );
      const won = tries.flatMap((one) => (one.status === "fulfilled" ? [one.value] : []));
      expect(new Set(won.map(({ ownerAgentId }) => ownerAgentId)).size).toBe(1);
      expect(won.map(({ entry }) => Number(entry!.revision)).toSorted()).toEqual([1, 2]);
      expect(won).toHaveLength(2);
    }
  });

  test("namespaces are listed by name with their counts; of one owner, or all; to another organisation those with something public", async () => {
    const shared = await world.org();
    const [owner, other] = [await shared.agent(), await shared.agent()];
    const stranger = await org.agent();
    for (const [name, count, isPublic] of [
      ["b", 3, 1],
      ["a", 2, 0],
      ["ä", 1, 1],
    ] as const)
      for (let n = 0; n < count; n++) await publish(owner.as, name, `k${n}`, n, n < isPublic);
    await publish(other.as, "other", "k", 1);
    const list = async (as: Clients, request: object) => {
      const found = [];
      for (let pageToken = ""; ; ) {
        const page = await as.sharedMemory.listSharedNamespaces({ pageSize: 1, pageToken, ...request });
        found.push(...page.namespaces);
        pageToken = page.nextPageToken;
        if (!pageToken) break;
      }
      return found.map((one) => [one.namespace, Number(one.entries), Number(one.contributors), Number(one.revision)]);
    };
    const [a, b, c] = [
      ["a", 2, 1, 2],
      ["b", 3, 1, 3],
      ["ä", 1, 1, 1],
    ];
    expect(await list(other.as, {})).toEqual([a, b, ["other", 1, 1, 1], c]);
    expect(await list(other.as, { ownerAgentId: owner.agentId })).toEqual([a, b, c]);
    const foreign = { orgId: shared.orgId };
    // Without revision and time of the last change, which may have been of what is not public.
    expect(await list(stranger.as, foreign)).toEqual([
      ["b", 1, 1, 0],
      ["ä", 1, 1, 0],
    ]);
    const [shown] = (await stranger.as.sharedMemory.listSharedNamespaces(foreign)).namespaces;
    expect([shown!.updateTime, shown!.createTime]).toEqual([undefined, expect.anything()]);
    expect(await list(world.operator, foreign)).toHaveLength(4);
    expect(await list(stranger.as, { orgId: `org_${"0".repeat(32)}` })).toEqual([]);
    const page = await other.as.sharedMemory.listSharedNamespaces({ pageSize: 1 });
    const stolen = { ...foreign, pageToken: page.nextPageToken };
    expect(await refusal(stranger.as.sharedMemory.listSharedNamespaces(stolen))).toMatchObject({
      reason: "INVALID_PAGE_TOKEN",
    });
  });

  test("another organisation reads what is public, and of all else has the answer of what does not exist", async () => {
    const owner = await org.agent();
    const elsewhere = await world.org();
    const namespace = unique("mixed");
    const hidden = unique("hidden");
    await publish(owner.as, namespace, "open", 1, true);
    await publish(owner.as, namespace, "closed", 2);
    await publish(owner.as, hidden, "closed", 3);
    const { orgId } = org;
    for (const { as } of [await elsewhere.agent(), { as: elsewhere.admin }]) {
      const { getSharedEntry, listSharedEntries } = as.sharedMemory;
      const got = await getSharedEntry({ orgId, namespace, key: "open" });
      expect(jsonOf(got.sharedEntry!.entry!.value)).toBe(1);
      const listed = await listSharedEntries({ orgId, namespace });
      expect(listed.sharedEntries.map(({ entry }) => entry!.key)).toEqual(["open"]);
      const answer = async (call: Promise<unknown>) => {
        const { code, metadata, error } = await refusal(call);
        return [code, error.rawMessage, { ...metadata, trace_id: "" }];
      };
      const nowhere = `org_${"0".repeat(32)}`;
      const closed = await answer(getSharedEntry({ orgId, namespace, key: "closed" }));
      for (const other of [
        { orgId, namespace: hidden },
        { orgId, namespace: unique("none") },
        { orgId: nowhere, namespace },
      ])
        expect(await answer(getSharedEntry({ ...other, key: "closed" }))).toEqual(closed);
      const list = (request: object) => answer(listSharedEntries({ namespace: hidden, ...request }));
      expect(await list({ orgId })).toEqual(await list({ orgId: nowhere }));
      const follow = (request: object) => answer(watch(as, { namespace: hidden, ...request }, 1));
      expect(await follow({ orgId })).toEqual(await follow({ orgId: nowhere }));
      expect(await refusal(as.sharedMemory.deleteSharedEntry({ orgId, namespace, key: "open" }))).toMatchObject(
        notFound,
      );
      const write1 = { orgId, write: write("k", 1, { namespace }), agentId: owner.agentId };
      expect(await refusal(as.sharedMemory.publishSharedEntry(write1))).toMatchObject(notFound);
    }
    await publish(owner.as, namespace, "open", 4, false);
    const { as } = await elsewhere.agent();
    expect(await refusal(as.sharedMemory.listSharedEntries({ orgId, namespace }))).toMatchObject(notFound);
  });

  test("a watcher of another organisation is told what is public, what ceases to be as deleted, and of nothing else", async () => {
    const owner = await org.agent();
    const { as } = await (await world.org()).agent();
    const namespace = unique("log");
    await publish(owner.as, namespace, "shown", 1, true);
    await publish(owner.as, namespace, "secret", 2);
    await publish(owner.as, namespace, "secret", 3, true);
    await publish(owner.as, namespace, "secret", 4);
    await publish(owner.as, namespace, "secret", 5);
    await owner.as.sharedMemory.deleteSharedEntry({ namespace, key: "secret" });
    await owner.as.sharedMemory.deleteSharedEntry({ namespace, key: "shown" });
    await publish(owner.as, namespace, "last", 8, true);
    const foreign = await watch(as, { orgId: org.orgId, namespace, afterRevision: 0n }, 5);
    expect(foreign.map(told)).toEqual([
      [0, SET, "shown", 1, true],
      [0, SET, "secret", 3, true],
      [0, DELETED, "secret", undefined, false],
      [0, DELETED, "shown", undefined, false],
      [0, SET, "last", 8, true],
    ]);
    const own = await watch((await org.agent()).as, { namespace, afterRevision: 0n }, 8);
    expect(own.map(({ change }) => Number(change!.revision))).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
    expect(own.map(told)[3]).toEqual([4, SET, "secret", 4, false]);
    const filtered = await watch(as, { orgId: org.orgId, namespace, afterRevision: 0n, prefix: "la" }, 1);
    expect(filtered.map(told)).toEqual([[0, SET, "last", 8, true]]);
  });

  test("another organisation cannot count what is not public: it sees no revision anywhere, and resumes by cursors without loss", async () => {
    const owner = await org.agent();
    const { as } = await (await world.org()).agent();
    const namespace = unique("uncounted");
    const named = { orgId: org.orgId, namespace };
    await publish(owner.as, namespace, "a", 1, true);
    for (let n = 0; n < 5; n++) await publish(owner.as, namespace, "secret", n);
    await publish(owner.as, namespace, "b", 2, true);
    const listed = await as.sharedMemory.listSharedEntries(named);
    const { sharedEntry } = await as.sharedMemory.getSharedEntry({ ...named, key: "b" });
    for (const { entry } of [...listed.sharedEntries, sharedEntry!])
      expect([entry!.revision, entry!.createRevision]).toEqual([0n, 0n]);
    expect(listed.revision).toBe(0n);
    await publish(owner.as, namespace, "secret", 9);
    await publish(owner.as, namespace, "c", 3, true);
    const after = async (request: object, count: number) => {
      const leave = new AbortController();
      const seen = [];
      for await (const message of as.sharedMemory.watchSharedEntries({ ...named, ...request }, leave)) {
        expect(message.revision).toBe(0n);
        seen.push(message);
        if (seen.filter(({ event }) => event.case === "change").length === count) break;
      }
      leave.abort();
      return seen.flatMap(({ event, cursor }) =>
        event.case === "change" ? [{ change: event.value, cursor, told: told(event.value) }] : [],
      );
    };
    expect((await after({ afterCursor: listed.cursor }, 1)).map((one) => one.told)).toEqual([[0, SET, "c", 3, true]]);
    const all = await after({ afterRevision: 0n }, 3);
    for (const [n, { change, cursor }] of all.entries()) {
      expect([change.change!.entry!.revision, change.change!.entry!.createRevision]).toEqual([0n, 0n]);
      if (n < 2)
        expect((await after({ afterCursor: cursor }, 2 - n)).map((one) => one.told)).toEqual(
          all.slice(n + 1).map((one) => one.told),
        );
    }
    const own = await (await org.agent()).as.sharedMemory.listSharedEntries({ namespace });
    expect(own.revision).toBe(9n);
    // Cursors of one place differ, or they would tell when something happened; what another may not name is refused.
    const lists = await Promise.all([1, 2].map(() => as.sharedMemory.listSharedEntries(named)));
    expect(lists[0]!.cursor).not.toBe(lists[1]!.cursor);
    const refused = async (request: object) => (await refusal(after(request, 1))).metadata.field;
    expect(await refused({ afterRevision: 3n })).toBe("after_revision");
    expect(await refused({ afterRevision: 0n, afterCursor: own.cursor })).toBe("after_cursor");
    const other = unique("other");
    await publish(owner.as, other, "a", 1, true);
    const { cursor } = await as.sharedMemory.listSharedEntries({ ...named, namespace: other });
    expect(await refusal(after({ afterCursor: cursor }, 1))).toMatchObject({ reason: "INVALID_PAGE_TOKEN" });
    // The owner's side goes on by either.
    expect((await watch(owner.as, { namespace, afterCursor: all[1]!.cursor }, 1)).map(told)).toEqual([
      [8, SET, "secret", 9, false],
    ]);
  });

  test("a cursor before what is kept of the log is refused with the oldest one, which goes on", async () => {
    await using small = await start(dialect, { memoryLogChanges: 100 });
    const home = await small.org();
    const owner = await home.agent();
    const { as } = await (await small.org()).agent();
    const named = { orgId: home.orgId, namespace: "long" };
    await publish(owner.as, "long", "a", 0, true);
    const { cursor } = await as.sharedMemory.listSharedEntries(named);
    for (let n = 0; n < 120; n++) await publish(owner.as, "long", "secret", n);
    await publish(owner.as, "long", "a", 1, true);
    const expired = await refusal(watch(as, { ...named, afterCursor: cursor }, 1));
    expect(expired).toMatchObject({ code: "OutOfRange", reason: "CURSOR_EXPIRED" });
    expect([expired.metadata.oldest_revision, expired.error.rawMessage.match(/\d/)]).toEqual([undefined, null]);
    const oldest = expired.metadata.oldest_cursor!;
    expect((await watch(as, { ...named, afterCursor: oldest }, 1)).map(told)).toEqual([[0, SET, "a", 1, true]]);
  });

  test("a public entry that expires is gone for all, and told to all; who watches a namespace that ends is told so", async () => {
    const clock = fakeClock();
    await using still = await start(dialect, { clock });
    const home = await still.org();
    const owner = await home.agent();
    const { as } = await (await still.org()).agent();
    const namespace = "brief";
    await publish(owner.as, namespace, "k", 1, true, 5_000);
    await publish(owner.as, namespace, "stays", 2, true);
    const named = { orgId: home.orgId, namespace };
    const afterCursor = (await as.sharedMemory.listSharedEntries(named)).cursor;
    clock.advance(5_000);
    expect(await refusal(as.sharedMemory.getSharedEntry({ ...named, key: "k" }))).toMatchObject(notFound);
    const [expired] = await asTimePasses(clock, watch(as, { ...named, afterCursor }, 1));
    expect(told(expired!)).toEqual([0, EXPIRED, "k", undefined, false]);
    const stream = as.sharedMemory.watchSharedEntries(named)[Symbol.asyncIterator]();
    await stream.next();
    const ended = refusal(stream.next());
    await home.admin.agents.deleteAgent({ agentId: owner.agentId });
    expect(await asTimePasses(clock, ended)).toMatchObject(notFound);
  });

  test("an entry has a description, tags and a time, which a write replaces or keeps", async () => {
    const clock = fakeClock();
    await using still = await start(dialect, { clock });
    const { as } = await (await still.org()).agent();
    const namespace = "described";
    const put = async (more: object) => {
      const { sharedEntry } = await as.sharedMemory.publishSharedEntry({
        write: { ...write("k", 1, { namespace }), ...more },
      });
      return sharedEntry!.entry!;
    };
    const said = { description: "What it is for.", tags: ["a", "b"] };
    const made = await put({ ...said, ttl: { seconds: 60n } });
    expect(made).toMatchObject({ ...said, expireTime: expect.anything() });
    clock.advance(1_000);
    expect((await put({ ...said, keepTtl: true })).expireTime).toEqual(made.expireTime);
    const got = (await as.sharedMemory.getSharedEntry({ namespace, key: "k" })).sharedEntry!.entry!;
    expect(got).toMatchObject({ ...said, expireTime: made.expireTime });
    expect((await as.sharedMemory.listSharedEntries({ namespace })).sharedEntries[0]!.entry).toMatchObject(said);
    const bare = await put({});
    expect([bare.description, bare.tags, bare.expireTime]).toEqual(["", [], undefined]);
  });

  test("entries are listed by key or by time, by prefix and page, with values where they are asked for; to others only the public ones", async () => {
    const owner = await org.agent();
    const stranger = await (await world.org()).agent();
    const namespace = unique("listed");
    for (const key of ["b", "a%", "a_", "a", "ab"]) await publish(owner.as, namespace, key, key.length, key !== "a_");
    await publish(owner.as, namespace, "b", 7, true);
    const list = async (as: Clients, request: object) => {
      const found = [];
      for (let pageToken = ""; ; ) {
        const named = { orgId: org.orgId, namespace, pageSize: 2, pageToken };
        const page = await as.sharedMemory.listSharedEntries({ ...named, ...request });
        expect(page.sharedEntries.length).toBeLessThanOrEqual(2);
        found.push(...page.sharedEntries.map(({ entry }) => entry!));
        if (!(pageToken = page.nextPageToken)) return found;
      }
    };
    const keys = async (as: Clients, request: object) => (await list(as, request)).map(({ key }) => key);
    expect(await keys(owner.as, {})).toEqual(["a", "a%", "a_", "ab", "b"]);
    expect(await keys(owner.as, { prefix: "a_" })).toEqual(["a_"]);
    expect(await keys(owner.as, { order: EntryOrder.UPDATE_TIME })).toEqual(["b", "ab", "a", "a_", "a%"]);
    expect(await keys(stranger.as, { prefix: "a" })).toEqual(["a", "a%", "ab"]);
    expect(await keys(stranger.as, { order: EntryOrder.UPDATE_TIME })).toEqual(["b", "ab", "a", "a%"]);
    const withValues = await list(stranger.as, { withValues: true, prefix: "b" });
    expect(withValues.map(({ value }) => jsonOf(value))).toEqual([7]);
    expect((await list(owner.as, { prefix: "b" }))[0]!.value).toBeUndefined();
    const { nextPageToken } = await owner.as.sharedMemory.listSharedEntries({ namespace, pageSize: 1 });
    const stolen = stranger.as.sharedMemory.listSharedEntries({
      orgId: org.orgId,
      namespace,
      pageToken: nextPageToken,
    });
    expect(await refusal(stolen)).toMatchObject({ reason: "INVALID_PAGE_TOKEN" });
  });

  test("each namespace has the quota of a memory by itself", async () => {
    await using small = await start(dialect, { memoryMaxKeys: 3, memoryMaxBytes: 1_000 });
    const { as } = await (await small.org()).agent();
    for (const namespace of ["one", "two"]) {
      for (const key of ["a", "b", "c"]) await publish(as, namespace, key, 1);
      expect(await refusal(publish(as, namespace, "d", 1))).toMatchObject({
        ...{ code: "ResourceExhausted", reason: "QUOTA_EXCEEDED" },
        metadata: { resource: "memory_keys", limit: "3", used: "3" },
      });
      const large = { write: write("a", "x".repeat(1_000), { namespace }) };
      expect(await refusal(as.sharedMemory.publishSharedEntry(large))).toMatchObject({
        ...{ reason: "QUOTA_EXCEEDED", metadata: { resource: "memory_bytes", limit: "1000", used: "6" } },
      });
    }
    const [one] = (await as.sharedMemory.listSharedNamespaces({})).namespaces;
    expect(one).toMatchObject({ namespace: "one", entries: 3n });
  });

  test("what an organisation's policies forbid is forbidden in shared memory too, also to a watcher who is there already", async () => {
    const home = await world.org();
    const [owner, other] = [await home.agent(), await home.agent()];
    await publish(owner.as, "plans", "k", 1);
    const stream = other.as.sharedMemory.watchSharedEntries({ namespace: "plans" })[Symbol.asyncIterator]();
    await stream.next();
    const watching = refusal(stream.next());
    await home.admin.policies.putPolicy({
      policyId: "hands-off",
      cedarText: `forbid (principal == Agent::"${other.agentId}", action, resource is Namespace)
        when { resource has owner && resource.owner.tier != Tier::"PUBLIC_VENDOR" };`,
    });
    await publish(owner.as, "plans", "k", 2);
    const denied = { code: "PermissionDenied", reason: "POLICY_DENIED", metadata: { policy_ids: "hands-off" } };
    expect(await watching).toMatchObject(denied);
    const plans = { namespace: "plans", key: "k" };
    expect(await refusal(other.as.sharedMemory.getSharedEntry(plans))).toMatchObject(denied);
    expect(await refusal(other.as.sharedMemory.listSharedEntries(plans))).toMatchObject(denied);
    expect(await refusal(watch(other.as, { namespace: "plans" }, 1))).toMatchObject(denied);
    expect(await refusal(publish(other.as, "mine", "k", 1))).toMatchObject(denied);
    expect((await owner.as.sharedMemory.getSharedEntry(plans)).sharedEntry!.entry!.revision).toBe(2n);
  });

  test("agents of the outer tiers need a permit for what is not their own, and are not told what there is without one", async () => {
    const home = await world.org();
    const owner = await home.agent();
    await publish(owner.as, "plans", "k", 1);
    for (const trustTier of [TrustTier.EXTERNAL_PARTNER, TrustTier.PUBLIC_VENDOR]) {
      const outer = await home.agent({ trustTier });
      const { sharedMemory } = outer.as;
      const own = unique("own");
      const calls = (namespace: string) => [
        sharedMemory.getSharedEntry({ namespace, key: "k" }),
        sharedMemory.listSharedEntries({ namespace }),
        watch(outer.as, { namespace }, 1),
        publish(outer.as, namespace, "k", 2),
        sharedMemory.deleteSharedEntry({ namespace, key: "k" }),
      ];
      // Whether there is such a namespace or not.
      const told = async (namespace: string) => {
        const found = await Promise.all(calls(namespace).map((call) => refusal(call)));
        return found.map(({ code, reason, metadata: { trace_id, ...rest }, error }) =>
          JSON.stringify([code, reason, rest, error.rawMessage]).replaceAll(namespace, "NAME"),
        );
      };
      const said = await told("plans");
      expect(said).toEqual(await told(own));
      for (const one of said) expect(one).toContain("POLICY_DENIED");
      expect((await sharedMemory.listSharedNamespaces({})).namespaces).toEqual([]);
      const { decisions } = await outer.as.policies.listDecisions({ resource: { type: "Namespace", id: own } });
      // The reads are one question.
      expect(decisions.map(({ question }) => question!.action).toSorted()).toEqual([
        "read_memory",
        "write_memory",
        "write_memory",
      ]);
      const mayRead = `permit (principal == Agent::"${outer.agentId}", action == Action::"read_memory", resource == Namespace::"plans");`;
      await home.admin.policies.putPolicy({ policyId: `read-${trustTier}`, cedarText: mayRead });
      expect((await sharedMemory.getSharedEntry({ namespace: "plans", key: "k" })).sharedEntry!.entry!.key).toBe("k");
      expect((await sharedMemory.listSharedNamespaces({})).namespaces.map(({ namespace }) => namespace)).toEqual([
        "plans",
      ]);
      const mayWrite = `permit (principal == Agent::"${outer.agentId}", action == Action::"write_memory", resource == Namespace::"${own}");`;
      await home.admin.policies.putPolicy({ policyId: `write-${trustTier}`, cedarText: mayWrite });
      await publish(outer.as, own, "k", 1);
      await home.admin.policies.deletePolicy({ policyId: `write-${trustTier}` });
      // It is its own now.
      await publish(outer.as, own, "k", 2);
      expect((await sharedMemory.getSharedEntry({ namespace: own, key: "k" })).sharedEntry!.entry!.revision).toBe(2n);
    }
  });

  test("an agent owns at most a hundred namespaces, also when it makes them at once", async () => {
    const owner = await org.agent();
    const tries = await Promise.allSettled(
      Array.from({ length: 110 }, (_, n) => publish(owner.as, unique(`many${n}`), "k", n)),
    );
    expect(tries.filter(({ status }) => status === "fulfilled")).toHaveLength(100);
    expect(await refusal(publish(owner.as, unique("more"), "k", 1))).toMatchObject({
      ...{ code: "ResourceExhausted", reason: "QUOTA_EXCEEDED" },
      metadata: { resource: "shared_namespaces", limit: "100", used: "100" },
    });
  });
});
