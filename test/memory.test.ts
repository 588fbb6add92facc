import { create } from "@bufbuild/protobuf";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { PolicyVerdict } from "../gen/moltwire/bus/v1/policy_pb.ts";
import { ChangeKind, type EntryChange, EntryOrder, EntrySchema } from "../gen/moltwire/memory/v1/memory_pb.ts";
import { sql } from "../src/db/db.ts";
import { removeDropped } from "../src/memory/drop.ts";
import { expireEntries } from "../src/memory/sweep.ts";
import { storage } from "./bus-fixtures/storage.ts";
import { type Clients, dialects, eventually, fakeClock, refusal, start, unique, type World } from "./harness.ts";
import { changesOf, data, get, json, jsonOf, listAll, set, write } from "./memory-fixtures/memory.ts";

const { ALLOW, DENY } = PolicyVerdict;
const dayMs = 86_400_000;
const notFound = { code: "NotFound", reason: "NOT_FOUND" };
const watch = (as: Clients, request: object, count: number) =>
  changesOf<EntryChange>((signal) => as.memory.watchEntries(request, { signal }), count);
const kindName = (kind: ChangeKind) => Object.entries(ChangeKind).find(([, value]) => value === kind)![0];
const told = ({ revision, kind, entry }: EntryChange) => [Number(revision), kindName(kind), entry?.key];

describe.each(dialects)("memory on %s", (dialect) => {
  let world: World;
  beforeAll(async () => {
    world = await start(dialect);
  });
  afterAll(() => world[Symbol.asyncDispose]());
  const agent = async () => (await world.org()).agent();

  test("what was set is got: JSON, bytes, with all that was said of it", async () => {
    const { as } = await agent();
    const { entry } = await as.memory.setEntry({
      write: { key: "a", value: json({ b: [1, null, "é"] }), description: "for people", tags: ["x", "y"] },
    });
    expect(entry).toMatchObject({ namespace: "default", key: "a", revision: 1n, createRevision: 1n });
    expect(entry!.sizeBytes).toBe(BigInt(1 + Buffer.byteLength('{"b":[1,null,"é"]}')));
    expect(entry!.value).toBeUndefined();
    const found = await get(as, "a");
    expect(found).toEqual({ ...entry, value: found.value });
    expect(jsonOf(found.value)).toEqual({ b: [1, null, "é"] });
    const value = { ...data(new Uint8Array([0, 255, 7])), contentType: "image/png" };
    await as.memory.setEntry({ write: { key: "bytes", value } });
    expect((await get(as, "bytes")).value).toMatchObject(value);
    for (const each of [null, false, 0, "", [], {}]) {
      await set(as, "falsy", each);
      expect(jsonOf((await get(as, "falsy")).value)).toEqual(each);
    }
    const again = await set(as, "a", 2);
    expect(again).toMatchObject({ createRevision: 1n, description: "", tags: [], createTime: entry!.createTime });
    expect(await refusal(get(as, "none"))).toMatchObject({ ...notFound, metadata: { resource: "entry", id: "none" } });
    expect(await refusal(get(as, "a", "other"))).toMatchObject(notFound);
  });

  test("a value may be 50 KB and 32 levels, a key 256 characters of any kind, and no more", async () => {
    const { as } = await agent();
    await set(as, "text", "x".repeat(51_198));
    await as.memory.setEntry({ write: { key: "data", value: data(new Uint8Array(51_200)) } });
    const nested = (levels: number) => JSON.parse("[".repeat(levels) + "]".repeat(levels));
    await set(as, "deep", nested(32));
    expect(jsonOf((await get(as, "deep")).value)).toEqual(nested(32));
    const large = { code: "InvalidArgument", reason: "PAYLOAD_TOO_LARGE" };
    for (const [value, limit, field = "write.value"] of [
      [json("x".repeat(51_199)), "51200"],
      [data(new Uint8Array(51_201)), "51200"],
      [json(nested(33)), "32", "write.value.json"],
    ] as const)
      expect(await refusal(as.memory.setEntry({ write: { key: "k", value } }))).toMatchObject({
        ...large,
        metadata: { field, limit },
      });
    const keys = ["\u0001".repeat(256), "🦊".repeat(256), "/a//b/../%_*?", " ", "\u{10ffff}", "__proto__", "'\"\\;--"];
    for (const key of keys) {
      await set(as, key, key);
      expect(jsonOf((await get(as, key)).value)).toBe(key);
    }
    const pages = await listAll(as, { pageSize: 1 });
    expect(pages.map(({ key }) => key)).toEqual(expect.arrayContaining(keys));
    for (const bad of [
      { key: "" },
      { key: "x".repeat(257) },
      { key: "a\0b" },
      { key: "k", namespace: "n".repeat(129) },
    ])
      expect(await refusal(as.memory.setEntry({ write: { ...write("k", 1), ...bad } }))).toMatchObject({
        reason: "INVALID_REQUEST",
      });
    expect(await refusal(as.memory.setEntry({ write: { key: "k", value: {} } }))).toMatchObject({
      reason: "INVALID_REQUEST",
    });
    const lone = { write: { key: "\ud800", value: { json: 1 } } };
    const raw = await fetch(`${world.url}/moltwire.memory.v1.MemoryService/SetEntry`, {
      ...{ method: "POST", body: JSON.stringify(lone) },
      headers: { authorization: `Bearer ${(await agent()).key}`, "content-type": "application/json" },
    });
    expect(raw.status).toBe(400);
  });

  test("if_revision lets one writer through: 0 only creates, another number only replaces that revision", async () => {
    const { as } = await agent();
    const stale = (revision: string, field = "write.if_revision") => ({
      ...{ code: "FailedPrecondition", reason: "FAILED_PRECONDITION" },
      metadata: { field, revision },
    });
    expect(await refusal(set(as, "k", 1, { ifRevision: 4n }))).toMatchObject(stale("0"));
    const racers = await Promise.allSettled(Array.from({ length: 20 }, (_, n) => set(as, "k", n, { ifRevision: 0n })));
    expect(racers.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
    expect(await refusal(set(as, "k", 1, { ifRevision: 0n }))).toMatchObject(stale("1"));
    expect((await set(as, "k", 2, { ifRevision: 1n })).revision).toBe(2n);
    expect(await refusal(as.memory.deleteEntry({ key: "k", ifRevision: 1n }))).toMatchObject(stale("2", "if_revision"));
    expect(await as.memory.deleteEntry({ key: "k", ifRevision: 2n })).toMatchObject({ deleted: true, revision: 3n });
    expect(await as.memory.deleteEntry({ key: "k" })).toMatchObject({ deleted: false, revision: 0n });
    expect(await refusal(as.memory.deleteEntry({ key: "k", ifRevision: 2n }))).toMatchObject(stale("0", "if_revision"));
    expect(await set(as, "k", 3, { ifRevision: 0n })).toMatchObject({ revision: 4n, createRevision: 4n });
  });

  test("each write takes the next revision of the agent's one log, whatever runs beside it, and a watcher sees them in order", async () => {
    const { as } = await agent();
    const writes = Array.from({ length: 120 }, (_, n) =>
      n % 4 === 3 ? as.memory.deleteEntry({ key: `k${n % 5}` }) : set(as, `k${n % 5}`, n, { namespace: `n${n % 3}` }),
    );
    const revisions = (await Promise.all(writes)).map(({ revision }) => Number(revision)).filter((n) => n > 0);
    expect(revisions.toSorted((a, b) => a - b)).toEqual(revisions.map((_, n) => n + 1));
    const changes = await watch(as, { afterRevision: 0n }, revisions.length);
    expect(changes.map(({ revision }) => Number(revision))).toEqual(revisions.map((_, n) => n + 1));
    const some = await watch(as, { afterRevision: 10n, namespace: "n1", prefix: "k2" }, 1);
    const fits = ({ entry, revision }: EntryChange) =>
      revision > 10n && entry?.namespace === "n1" && entry.key.startsWith("k2");
    expect(some).toEqual(changes.filter(fits).slice(0, 1));
  });

  test("a watcher is told from now on, from the start, or after a revision, with each value; and at once where it is", async () => {
    const { as } = await agent();
    await set(as, "a", 1);
    await set(as, "a", 2);
    const leave = new AbortController();
    const stream = as.memory.watchEntries({}, { signal: leave.signal })[Symbol.asyncIterator]();
    expect((await stream.next()).value).toMatchObject({ revision: 2n, event: { case: "checkpoint" } });
    await as.memory.deleteEntry({ key: "a" });
    const { value } = await stream.next();
    expect(value).toMatchObject({ revision: 3n, event: { value: { kind: ChangeKind.DELETED, revision: 3n } } });
    expect(value.event.value.entry).toEqual(create(EntrySchema, { namespace: "default", key: "a", revision: 3n }));
    leave.abort();
    const all = await watch(as, { afterRevision: 0n }, 3);
    expect(all.map(told)).toEqual([
      [1, "SET", "a"],
      [2, "SET", "a"],
      [3, "DELETED", "a"],
    ]);
    expect(all.slice(0, 2).map(({ entry }) => jsonOf(entry!.value))).toEqual([1, 2]);
    expect((await watch(as, { afterRevision: 1n }, 2)).map(told)).toEqual(all.slice(1).map(told));
    const beyond = as.memory.watchEntries({ afterRevision: 4n })[Symbol.asyncIterator]();
    expect(await refusal(beyond.next())).toMatchObject({ code: "OutOfRange", reason: "CURSOR_EXPIRED" });
    const far = as.memory.watchEntries({ afterRevision: 2n ** 62n })[Symbol.asyncIterator]();
    expect(await refusal(far.next())).toMatchObject({ code: "OutOfRange", reason: "CURSOR_EXPIRED" });
  });

  test("lists go by key or by time, filter by prefix, page, and give values where they are asked for, at most 3 MiB", async () => {
    const { as } = await agent();
    for (const key of ["b", "a%", "a_", "a", "ab", "ä", "aa"]) await set(as, key, key);
    await set(as, "elsewhere", 1, { namespace: "other" });
    const keys = async (request: object) => (await listAll(as, request)).map(({ key }) => key);
    expect(await keys({ pageSize: 2 })).toEqual(["a", "a%", "a_", "aa", "ab", "b", "ä"]);
    expect(await keys({ prefix: "a", pageSize: 1 })).toEqual(["a", "a%", "a_", "aa", "ab"]);
    expect(await keys({ prefix: "a_" })).toEqual(["a_"]);
    expect(await keys({ prefix: "a%" })).toEqual(["a%"]);
    expect(await keys({ order: EntryOrder.UPDATE_TIME, pageSize: 2, prefix: "a" })).toEqual([
      "aa",
      "ab",
      "a",
      "a_",
      "a%",
    ]);
    const page = await as.memory.listEntries({ withValues: true, prefix: "a" });
    expect(page.entries.map(({ value }) => jsonOf(value))).toEqual(["a", "a%", "a_", "aa", "ab"]);
    expect(page).toMatchObject({ revision: 8n, nextPageToken: "" });
    const { nextPageToken } = await as.memory.listEntries({ pageSize: 2 });
    for (const other of [{ prefix: "a" }, { namespace: "other" }, { order: EntryOrder.UPDATE_TIME }])
      expect(await refusal(as.memory.listEntries({ ...other, pageToken: nextPageToken }))).toMatchObject({
        reason: "INVALID_PAGE_TOKEN",
      });
    const value = data(new Uint8Array(51_200));
    for (let n = 0; n < 2; n++)
      await as.memory.batchSetEntries({
        atomic: true,
        changes: Array.from({ length: 60 }, (_, i) => ({
          change: { case: "set" as const, value: { namespace: "large", key: `${n}/${i}`, value } },
        })),
      });
    const large = { namespace: "large", withValues: true, pageSize: 250 };
    expect((await as.memory.listEntries(large)).entries).toHaveLength(61);
    expect(await listAll(as, large)).toHaveLength(120);
  });

  test("a batch is atomic, or each change stands for itself, with its reason", async () => {
    const { as } = await agent();
    await set(as, "there", 0);
    const setting = (key: string, value: string | number, more = {}) => ({
      change: { case: "set" as const, value: { ...write(key, value), ...more } },
    });
    const deleting = (key: string, ifRevision = 0n) => ({
      change: { case: "delete" as const, value: { key, ifRevision } },
    });
    const changes = [
      setting("one", 1),
      setting("one", 2, { ifRevision: 2n }),
      setting("there", 1, { ifRevision: 9n }),
      setting("big", "x".repeat(60_000)),
      deleting("nothing"),
      deleting("there", 1n),
      setting("there", 5, { ifRevision: 0n }),
    ];
    const atomically = await refusal(as.memory.batchSetEntries({ atomic: true, changes: changes.toSpliced(3, 1) }));
    expect(atomically).toMatchObject({
      ...{ reason: "FAILED_PRECONDITION", metadata: { field: "changes[2].set.if_revision", revision: "1" } },
    });
    expect(await refusal(as.memory.batchSetEntries({ atomic: true, changes: [changes[3]!] }))).toMatchObject({
      ...{ reason: "PAYLOAD_TOO_LARGE", metadata: { field: "changes[0].set.value" } },
    });
    expect(await refusal(get(as, "one"))).toMatchObject(notFound);
    const { results } = await as.memory.batchSetEntries({ changes });
    expect(results.map(({ revision, reason }) => [Number(revision), reason])).toEqual([
      [2, ""],
      [3, ""],
      [0, "FAILED_PRECONDITION"],
      [0, "PAYLOAD_TOO_LARGE"],
      [0, ""],
      [4, ""],
      [5, ""],
    ]);
    expect(results[2]).toMatchObject({ presentRevision: 1n });
    expect((await watch(as, { afterRevision: 1n }, 4)).map(told)).toEqual([
      [2, "SET", "one"],
      [3, "SET", "one"],
      [4, "DELETED", "there"],
      [5, "SET", "there"],
    ]);
    const keys = [{ key: "there" }, { key: "none" }, { key: "one" }, { key: "one", namespace: "x" }, { key: "one" }];
    const got = await as.memory.batchGetEntries({ keys });
    expect(got.results.map(({ entry }) => jsonOf(entry?.value))).toEqual([5, undefined, 2, undefined, 2]);
    expect(got.revision).toBe(5n);
    const many = Array.from({ length: 101 }, () => deleting("x"));
    expect(await refusal(as.memory.batchSetEntries({ changes: many }))).toMatchObject({ reason: "INVALID_REQUEST" });
    const manyKeys = (count: number) => Array.from({ length: count }, (_, n) => ({ key: `k${n}` }));
    expect(await refusal(as.memory.batchGetEntries({ keys: manyKeys(101) }))).toMatchObject({
      reason: "INVALID_REQUEST",
    });
    expect((await as.memory.batchGetEntries({ keys: manyKeys(100) })).results).toHaveLength(100);
    const full = Array.from({ length: 100 }, (_, n) => setting(`k${n}`, n));
    const { results: all } = await as.memory.batchSetEntries({ changes: full });
    expect(all.map(({ revision }) => Number(revision))).toEqual(full.map((_, n) => n + 6));
    expect((await listAll(as, { prefix: "k" })).length).toBe(100);
  });

  test("a repeated write with its idempotency key has one effect", async () => {
    const { as } = await agent();
    const headers = { "idempotency-key": unique("set") };
    const request = { write: write("k", 1) };
    const first = await as.memory.setEntry(request, { headers });
    expect(await as.memory.setEntry(request, { headers })).toEqual(first);
    expect((await get(as, "k")).revision).toBe(1n);
  });

  test("another agent's memory is answered like that of an agent that does not exist, unless a policy permits; administrators name the agent", async () => {
    const org = await world.org();
    const [owner, sibling] = [await org.agent(), await org.agent()];
    const stranger = await (await world.org()).agent();
    await set(owner.as, "secret", 42);
    const nobody = `agt_${"0".repeat(32)}`;
    const asked = (as: Clients, agentId: string): Promise<unknown>[] => [
      as.memory.getEntry({ agentId, key: "secret" }),
      as.memory.setEntry({ agentId, write: write("secret", 1) }),
      as.memory.listEntries({ agentId }),
      as.memory.deleteEntry({ agentId, key: "secret" }),
      as.memory.batchGetEntries({ agentId, keys: [{ key: "secret" }] }),
      as.memory.batchSetEntries({ agentId, changes: [{ change: { case: "set", value: write("secret", 1) } }] }),
      as.memory.watchEntries({ agentId, afterRevision: 0n })[Symbol.asyncIterator]().next(),
    ];
    for (const as of [sibling.as, stranger.as]) {
      const answers = async (agentId: string) =>
        (await Promise.all(asked(as, agentId).map(refusal))).map(({ code, metadata, error }) => [
          ...[code, error.rawMessage],
          { ...metadata, trace_id: "", id: metadata.id === agentId ? "<id>" : metadata.id },
        ]);
      expect(await answers(owner.agentId)).toEqual(await answers(nobody));
    }
    expect(await refusal(org.admin.memory.getEntry({ key: "secret" }))).toMatchObject({ reason: "INVALID_REQUEST" });
    const { agentId } = owner;
    const got = await org.admin.memory.getEntry({ agentId, key: "secret" });
    expect(jsonOf(got.entry!.value)).toBe(42);
    await org.admin.memory.setEntry({ agentId, write: write("by admin", 1, { namespace: "team" }) });
    await org.admin.policies.putPolicy({
      policyId: "readers",
      cedarText: `permit (principal == Agent::"${sibling.agentId}", action == Action::"read_memory", resource == Namespace::"team")
        when { resource has owner && resource.owner == Agent::"${agentId}" };`,
    });
    const team = { agentId, namespace: "team" };
    expect((await sibling.as.memory.getEntry({ ...team, key: "by admin" })).entry!.revision).toBe(2n);
    expect((await sibling.as.memory.listEntries(team)).entries).toHaveLength(1);
    expect((await watch(sibling.as, { ...team, afterRevision: 0n }, 1)).map(told)).toEqual([[2, "SET", "by admin"]]);
    expect(await refusal(sibling.as.memory.getEntry({ agentId, key: "secret" }))).toMatchObject(notFound);
    expect(await refusal(sibling.as.memory.setEntry({ agentId, write: write("k", 1, team) }))).toMatchObject(notFound);
    await org.admin.policies.putPolicy({
      policyId: "hands-off",
      cedarText: `forbid (principal, action in [Action::"read_memory", Action::"write_memory"], resource == Namespace::"frozen");`,
    });
    const ask = async (who: string, id: string) =>
      (
        await org.admin.policies.testPolicy({
          subject: {
            case: "question",
            value: {
              action: "read_memory",
              principal: { type: "Agent", id: who },
              resource: { type: "Namespace", id: `${agentId}/${id}` },
            },
          },
        })
      ).answer!.verdict;
    expect([await ask(agentId, "own"), await ask(sibling.agentId, "team")]).toEqual([ALLOW, ALLOW]);
    expect([await ask(agentId, "frozen"), await ask(sibling.agentId, "own")]).toEqual([DENY, DENY]);
    const denied = { code: "PermissionDenied", reason: "POLICY_DENIED" };
    expect(await refusal(set(owner.as, "k", 1, { namespace: "frozen" }))).toMatchObject(denied);
    expect(await refusal(get(owner.as, "k", "frozen"))).toMatchObject(denied);
    await set(owner.as, "k", 1);
  });

  test("deleting an agent takes its memory and namespaces with it, bounded, and leaves nothing behind", async () => {
    const org = await world.org();
    const owner = await org.agent();
    const namespace = unique("team");
    for (let n = 0; n < 11; n++)
      await owner.as.memory.batchSetEntries({
        changes: Array.from({ length: 100 }, (_, i) => ({
          change: { case: "set" as const, value: write(`${n}/${i}`, i, { ttlMs: dayMs }) },
        })),
      });
    await owner.as.sharedMemory.publishSharedEntry({ write: write("k", 1, { namespace }) });
    const { agentId } = owner;
    const writing = Promise.allSettled(Array.from({ length: 20 }, (_, n) => set(owner.as, `late${n}`, n)));
    expect((await org.admin.agents.deleteAgent({ agentId })).deletedMemories).toBe(2);
    await writing;
    expect(await refusal(org.admin.memory.getEntry({ agentId, key: "0/0" }))).toMatchObject(notFound);
    const other = await org.agent();
    expect(await refusal(other.as.sharedMemory.getSharedEntry({ namespace, key: "k" }))).toMatchObject(notFound);
    const made = await other.as.sharedMemory.publishSharedEntry({ write: write("k", 2, { namespace }) });
    expect(made.sharedEntry).toMatchObject({ ownerAgentId: other.agentId, entry: { revision: 1n } });
    // As several servers would.
    await Promise.all(Array.from({ length: 4 }, () => removeDropped(world.server.app)));
    const count = async () => {
      const { all } = world.server.app.db.query;
      const rows = [
        ...(await all(sql`select 1 as one from memory_entry where memory_id = ${agentId}`)),
        ...(await all(sql`select 1 as one from memory_change where memory_id = ${agentId}`)),
        ...(await all(sql`select 1 as one from memory where memory_id = ${agentId}`)),
        ...(await all(sql`select 1 as one from memory_drop`)),
      ];
      return rows.length;
    };
    expect(await count()).toBe(0);
  });
});

describe.each(dialects)("time and quotas on %s", (dialect) => {
  test("an entry is gone at the instant it expires, is announced once, and a write without a time keeps it for ever", async () => {
    const clock = fakeClock();
    await using world = await start(dialect, { clock });
    const { as } = await (await world.org()).agent();
    const first = await set(as, "k", 1, { ttlMs: 10_000 });
    expect(timestampMs(first.expireTime!)).toBe(clock.now() + 10_000);
    await set(as, "kept", 1, { ttlMs: 10_000 });
    await set(as, "kept", 2, { keepTtl: true });
    await set(as, "freed", 1, { ttlMs: 10_000 });
    expect((await set(as, "freed", 2)).expireTime).toBeUndefined();
    expect((await get(as, "kept")).expireTime).toEqual(first.expireTime);
    clock.advance(9_999);
    await get(as, "k");
    clock.advance(1);
    for (const key of ["k", "kept"]) expect(await refusal(get(as, key))).toMatchObject(notFound);
    expect((await listAll(as, {})).map(({ key }) => key)).toEqual(["freed"]);
    const batch = await as.memory.batchGetEntries({ keys: [{ key: "k" }, { key: "freed" }] });
    expect(batch.results.map(({ entry }) => entry?.key)).toEqual([undefined, "freed"]);
    expect(await as.memory.deleteEntry({ key: "k" })).toMatchObject({ deleted: false, revision: 0n });
    // The sweep may be at work as time goes on, and comes again with the next step of it.
    await eventually(async () => {
      clock.advance(1_000);
      return (await as.memory.listEntries({ pageSize: 1 })).revision === 7n;
    });
    const changes = await watch(as, { afterRevision: 5n }, 2);
    expect(changes.map(told).toSorted()).toEqual([
      [6, "EXPIRED", "k"],
      [7, "EXPIRED", "kept"],
    ]);
    const again = await set(as, "k", 2, { ifRevision: 0n });
    expect(again).toMatchObject({ revision: 8n, createRevision: 8n });
    for (const bad of [{ ttlMs: 999 }, { ttlMs: 365 * dayMs + 1 }, { ttlMs: 5_000, keepTtl: true }])
      expect(await refusal(set(as, "k", 1, bad))).toMatchObject({ reason: "INVALID_REQUEST" });
    await set(as, "k", 1, { ttlMs: 365 * dayMs });
  });

  test("a write over an expired entry that nobody announced yet announces it first, and creates anew", async () => {
    const clock = fakeClock();
    await using world = await start(dialect, { clock });
    const { as } = await (await world.org()).agent();
    await set(as, "k", 1, { ttlMs: 1_100 });
    clock.advance(1_000); // the sweeps so far
    clock.advance(100);
    expect(await set(as, "k", 2, { keepTtl: true })).toMatchObject({ revision: 3n, createRevision: 3n });
    expect((await get(as, "k")).expireTime).toBeUndefined();
    expect((await watch(as, { afterRevision: 0n }, 3)).map(told)).toEqual([
      [1, "SET", "k"],
      [2, "EXPIRED", "k"],
      [3, "SET", "k"],
    ]);
  });

  test("three replicas that look for what expired at the same time announce it once", async () => {
    await using place = await storage(dialect);
    const clock = fakeClock();
    const count = dialect === "postgres" ? 3 : 1;
    const worlds = [];
    for (let n = 0; n < count; n++) worlds.push(await start(dialect, { ...place.options, clock }));
    const [world] = worlds as [World];
    const { as } = await (await world.org()).agent();
    await as.memory.batchSetEntries({
      changes: Array.from({ length: 100 }, (_, n) => ({
        change: { case: "set", value: write(`k${n}`, n, { ttlMs: 5_000 }) },
      })),
    });
    clock.advance(5_000);
    const announced = await Promise.all(
      [...worlds, ...worlds, ...worlds].map(({ server }) => expireEntries(server.app)),
    );
    expect(announced.reduce((sum, n) => sum + n, 0)).toBeLessThanOrEqual(100);
    const changes = await watch(as, { afterRevision: 100n }, 100);
    expect(new Set(changes.map(({ entry }) => entry!.key)).size).toBe(100);
    await set(as, "after", 1);
    expect((await get(as, "after")).revision).toBe(201n);
    for (const one of worlds) await one[Symbol.asyncDispose]();
  });

  test("the quotas of keys and bytes hold exactly under any race, are told with figures, and expired entries make room at once", async () => {
    const clock = fakeClock();
    await using world = await start(dialect, { clock, memoryMaxKeys: 10, memoryMaxBytes: 1_000 });
    const { as } = await (await world.org()).agent();
    const racing = await Promise.allSettled(
      Array.from({ length: 30 }, (_, n) => set(as, `k${String(n).padStart(2, "0")}`, "x", { ttlMs: 3_200 })),
    );
    expect(racing.filter(({ status }) => status === "fulfilled")).toHaveLength(10);
    expect(await refusal(set(as, "more", 1))).toMatchObject({
      ...{ code: "ResourceExhausted", reason: "QUOTA_EXCEEDED" },
      metadata: { resource: "memory_keys", limit: "10", used: "10" },
    });
    const { key } = (await listAll(as, {}))[0]!;
    await set(as, key, "xy", { keepTtl: true });
    clock.advance(3_000);
    clock.advance(200); // between two sweeps
    await set(as, "key", "x".repeat(995));
    expect(await refusal(set(as, "b", "x"))).toMatchObject({
      metadata: { resource: "memory_bytes", limit: "1000", used: "1000" },
    });
    await set(as, "key", "x".repeat(990));
    await set(as, "b", "xx");
    const { results } = await as.memory.batchSetEntries({
      changes: [
        { change: { case: "set", value: write("c", 1) } },
        { change: { case: "delete", value: { key: "b" } } },
        { change: { case: "set", value: write("c", 1) } },
      ],
    });
    expect(results.map(({ reason }) => reason)).toEqual(["QUOTA_EXCEEDED", "", ""]);
  });

  test("a log keeps so many changes, and none that is too old; who asks for others is told the oldest there is", async () => {
    const clock = fakeClock();
    await using world = await start(dialect, { clock, memoryLogChanges: 16, memoryLogHours: 1 });
    const { as } = await (await world.org()).agent();
    for (let n = 1; n <= 60; n++) await set(as, "k", n);
    const gone = await refusal(as.memory.watchEntries({ afterRevision: 5n })[Symbol.asyncIterator]().next());
    expect(gone).toMatchObject({ code: "OutOfRange", reason: "CURSOR_EXPIRED" });
    const oldest = Number(gone.metadata.oldest_revision);
    expect(oldest).toBeGreaterThanOrEqual(60 - 18);
    expect(oldest).toBeLessThanOrEqual(60 - 16);
    const rest = (count: number) => Array.from({ length: count }, (_, n) => 60 - count + 1 + n);
    for (const afterRevision of [BigInt(oldest), 0n]) {
      const changes = await watch(as, { afterRevision }, 60 - oldest);
      expect(changes.map(({ revision }) => Number(revision))).toEqual(rest(60 - oldest));
    }
    const one = await refusal(
      as.memory
        .watchEntries({ afterRevision: BigInt(oldest - 1) })
        [Symbol.asyncIterator]()
        .next(),
    );
    expect(one).toMatchObject({ reason: "CURSOR_EXPIRED", metadata: { oldest_revision: String(oldest) } });
    const leave = new AbortController();
    const silent = as.memory.watchEntries({ afterRevision: 60n }, { signal: leave.signal })[Symbol.asyncIterator]();
    await silent.next();
    clock.advance(3_600_001);
    await eventually(async () => {
      clock.advance(10_000);
      const { reason } = await refusal(watch(as, { afterRevision: BigInt(oldest) }, 1)).catch(() => ({ reason: "" }));
      return reason === "CURSOR_EXPIRED";
    });
    await set(as, "k", 61);
    let next = await silent.next();
    while (next.value.event.case === "checkpoint") next = await silent.next();
    expect(next.value.revision).toBe(61n);
    leave.abort();
    expect(jsonOf((await get(as, "k")).value)).toBe(61);
  });
});
