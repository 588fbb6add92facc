import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { insertNamespace } from "../src/federation/namespace-store.ts";
import { dialects, type Org, refusal, start, unique, type World } from "./harness.ts";

const reasonOf = async (call: Promise<unknown>) => (await refusal(call)).reason;

describe.each(dialects)("%s", (dialect) => {
  let world: World;
  let org: Org;
  beforeAll(async () => {
    world = await start(dialect);
    org = await world.org();
  });
  afterAll(() => world[Symbol.asyncDispose]());

  test("namespaces are listed by name, page by page, to the agents of their organisation and to nobody else", async () => {
    const { admin, ...own } = await world.org();
    const names = ["acme/research", "acme/write", "acme", "Zeta", "b.c_d-e"];
    for (const name of names) await admin.namespaces.createNamespace({ name, description: `${name} is for` });
    const { as } = await own.agent();
    const seen: string[] = [];
    for (let pageToken = "", pages = 0; pages < 10; pages++) {
      const page = await as.namespaces.listNamespaces({ pageSize: 2, pageToken });
      seen.push(...page.namespaces.map(({ name }) => name));
      pageToken = page.nextPageToken;
      if (!pageToken) break;
    }
    expect(seen).toEqual(names.toSorted());
    const [first] = (await as.namespaces.listNamespaces({ pageSize: 1 })).namespaces;
    expect(first).toMatchObject({ orgId: own.orgId, name: "Zeta", description: "Zeta is for" });
    expect((await org.admin.namespaces.listNamespaces({})).namespaces).toEqual([]);
    const foreign = org.admin.namespaces.listNamespaces({ orgId: own.orgId });
    expect(await reasonOf(foreign)).toBe("NOT_FOUND");
    const { namespaces } = await world.operator.namespaces.listNamespaces({ orgId: own.orgId });
    expect(namespaces).toHaveLength(5);
    const { nextPageToken: pageToken } = await as.namespaces.listNamespaces({ pageSize: 1 });
    expect(await reasonOf(org.admin.namespaces.listNamespaces({ pageToken }))).toBe("INVALID_PAGE_TOKEN");
  });

  test("of twenty that create one name one does, and the name is free elsewhere", async () => {
    const name = unique("same");
    const results = await Promise.allSettled(
      Array.from({ length: 20 }, () => org.admin.namespaces.createNamespace({ name })),
    );
    expect(results.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
    const { reason, metadata } = await refusal(org.admin.namespaces.createNamespace({ name }));
    expect([reason, metadata]).toMatchObject(["ALREADY_EXISTS", { resource: "namespace", id: name, field: "name" }]);
    await (await world.org()).admin.namespaces.createNamespace({ name });
  });

  test.each(["", "/a", "-a", "a b", "ä", "a\u0000", "a".repeat(129)])("%j is no name", async (name) => {
    const { reason, metadata } = await refusal(org.admin.namespaces.createNamespace({ name }));
    expect([reason, metadata.field]).toEqual(["INVALID_REQUEST", "name"]);
  });

  test("an organisation has at most 1,000, however many are made at once", async () => {
    const { admin, orgId } = await world.org();
    const { db } = world.server.app;
    await db.tx(async (tx) => {
      for (let n = 0; n < 997; n++)
        await insertNamespace(tx, { org_id: orgId, name: `n${n}`, description: "", create_ms: 0 });
    });
    const more = Array.from({ length: 10 }, (_, n) => admin.namespaces.createNamespace({ name: `more${n}` }));
    const results = await Promise.allSettled(more);
    expect(results.filter(({ status }) => status === "fulfilled")).toHaveLength(3);
    const { reason, metadata } = await refusal(admin.namespaces.createNamespace({ name: "late" }));
    expect([reason, metadata]).toMatchObject(["QUOTA_EXCEEDED", { resource: "namespaces", limit: "1000" }]);
  });

  test("agents belong to one that is there, are found by it, and can move and leave", async () => {
    const { admin } = await world.org();
    for (const name of ["a", "b"]) await admin.namespaces.createNamespace({ name });
    const register = async (name: string, namespace: string, capabilities: string[] = []) =>
      (await admin.agents.registerAgent({ name, namespace, capabilities })).agent!.agentId;
    const [one, two, three] = [
      await register("1", "a", ["x"]),
      await register("2", "a"),
      await register("3", "b", ["x"]),
    ];
    await register("4", "");
    const list = async (filter: object) => (await admin.agents.listAgents(filter)).agents.map(({ agentId }) => agentId);
    expect(await list({ namespace: "a" })).toEqual([one, two]);
    expect(await list({ namespace: "a", capability: "x" })).toEqual([one]);
    expect(await list({ capability: "x" })).toEqual([one, three]);
    expect(await list({ namespace: "b", name: "1" })).toEqual([]);
    expect(await list({ namespace: "none" })).toEqual([]);
    expect((await admin.agents.getAgent({ agentId: one })).agent?.namespace).toBe("a");
    const { agents, nextPageToken: pageToken } = await admin.agents.listAgents({ namespace: "a", pageSize: 1 });
    expect(agents).toHaveLength(1);
    expect(await list({ namespace: "a", pageToken })).toEqual([two]);
    expect(await reasonOf(admin.agents.listAgents({ namespace: "b", pageToken }))).toBe("INVALID_PAGE_TOKEN");
    const move = (namespace: string) =>
      admin.agents.updateAgent({ agentId: two, change: { namespace }, updateMask: { paths: ["namespace"] } });
    expect((await move("b")).agent).toMatchObject({ namespace: "b", name: "2" });
    expect(await list({ namespace: "b" })).toEqual([two, three]);
    expect((await move("")).agent?.namespace).toBe("");
    const unrelated = { agentId: one, change: { namespace: "zz" }, updateMask: { paths: ["description"] } };
    expect((await admin.agents.updateAgent(unrelated)).agent?.namespace).toBe("a");
    expect(await refusal(move("none"))).toMatchObject({
      reason: "NOT_FOUND",
      metadata: { resource: "namespace", id: "none" },
    });
    expect(await reasonOf(register("5", "none"))).toBe("NOT_FOUND");
    expect(await reasonOf(org.admin.agents.registerAgent({ name: unique("a"), namespace: "a" }))).toBe("NOT_FOUND");
  });

  test("a contract version belongs to one for good, and is found by it", async () => {
    const { admin } = await world.org();
    for (const name of ["a", "b"]) await admin.namespaces.createNamespace({ name });
    const register = (contractId: string, version: string, namespace: string, capability = "") =>
      admin.contracts.registerContract({ contractId, version, namespace, capability });
    await register("c", "1.0.0", "a");
    await register("d", "1.0.0", "a", "x");
    await register("d", "1.1.0", "b", "x");
    await register("e", "1.0.0", "");
    const list = async (filter: object) =>
      (await admin.contracts.listContracts(filter)).contracts.map(
        ({ contractId, version }) => `${contractId}@${version}`,
      );
    expect(await list({ namespace: "a" })).toEqual(["c@1.0.0", "d@1.0.0"]);
    expect(await list({ namespace: "b" })).toEqual(["d@1.1.0"]);
    expect(await list({ namespace: "a", capability: "x" })).toEqual(["d@1.0.0"]);
    expect(await list({ namespace: "a", contractId: "d" })).toEqual(["d@1.0.0"]);
    expect((await admin.contracts.getContract({ contractId: "c" })).contract?.namespace).toBe("a");
    expect((await register("c", "1.0.0", "a")).contract?.namespace).toBe("a");
    expect(await reasonOf(register("c", "1.0.0", "b"))).toBe("ALREADY_EXISTS");
    expect(await reasonOf(register("f", "1.0.0", "none"))).toBe("NOT_FOUND");
    const { nextPageToken: pageToken } = await admin.contracts.listContracts({ namespace: "a", pageSize: 1 });
    expect(await list({ namespace: "a", pageToken })).toEqual(["d@1.0.0"]);
    expect(await reasonOf(admin.contracts.listContracts({ pageToken }))).toBe("INVALID_PAGE_TOKEN");
  });
});
