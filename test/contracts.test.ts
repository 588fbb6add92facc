import type { JsonObject } from "@bufbuild/protobuf";
import { durationFromMs, durationMs } from "@bufbuild/protobuf/wkt";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { BadRequestSchema } from "../gen/google/rpc/error_details_pb.ts";
import { TrustTier } from "../gen/moltwire/bus/v1/agent_pb.ts";
import { contract } from "./bus-fixtures/bus.ts";
import { dialects, refusal, start, unique, type World } from "./harness.ts";

const inputSchema = {
  type: "object",
  properties: { query: { type: "string" }, limit: { type: "integer" } },
  required: ["query"],
};
const outputSchema = { type: "object", properties: { answer: { type: "string" } }, required: ["answer"] };

describe.each(dialects)("%s", (dialect) => {
  let world: World;
  beforeAll(async () => {
    world = await start(dialect);
  });
  afterAll(() => world[Symbol.asyncDispose]());

  describe("RegisterContract", () => {
    test("keeps all that is said, and gives the rest its defaults", async () => {
      const org = await world.org();
      const given = {
        ...{ contractId: "research/web", version: "1.2.3-rc.1+build.5", capability: "research", description: "Finds." },
        ...{ inputSchema, outputSchema, securityClass: TrustTier.EXTERNAL_PARTNER, requiredTools: ["web", "pdf"] },
        ...{ timeout: durationFromMs(1_500), repeatable: true, approvalRequired: true },
        retryPolicy: { maxRetries: 3, backoff: durationFromMs(10), maxBackoff: durationFromMs(20) },
      };
      const { contract: made } = await org.admin.contracts.registerContract(given);
      expect(made).toMatchObject({ orgId: org.orgId, deprecated: false, ...given });
      const { contract: plain } = await org.admin.contracts.registerContract({ contractId: "plain", version: "1.0.0" });
      expect(plain).toMatchObject({
        ...{ capability: "plain", inputSchema: {}, outputSchema: {}, requiredTools: [], fallbacks: [] },
        ...{ securityClass: TrustTier.PUBLIC_VENDOR, repeatable: false, approvalRequired: false },
      });
      const { timeout, retryPolicy } = plain!;
      expect([timeout, retryPolicy?.backoff, retryPolicy?.maxBackoff].map((span) => durationMs(span!))).toEqual([
        30_000, 200, 30_000,
      ]);
      expect(retryPolicy?.maxRetries).toBe(0);
      const { contract: read } = await org.admin.contracts.getContract({
        contractId: "research/web",
        version: given.version,
      });
      expect(read).toEqual(made);
    });

    test("again with the same content answers the same, whatever the order of its schemas' keys; other content is refused", async () => {
      const org = await world.org();
      const given = { contractId: unique("c"), version: "1.0.0", inputSchema };
      const first = await org.admin.contracts.registerContract(given);
      const reordered: JsonObject = Object.fromEntries(Object.entries(inputSchema).toReversed());
      expect(await org.admin.contracts.registerContract({ ...given, inputSchema: reordered })).toEqual(first);
      for (const other of [
        { description: "other" },
        { inputSchema: {} },
        { repeatable: true },
        { capability: "other" },
      ])
        expect(await refusal(org.admin.contracts.registerContract({ ...given, ...other }))).toMatchObject({
          ...{ code: "AlreadyExists", reason: "ALREADY_EXISTS" },
          metadata: { resource: "contract", id: `${given.contractId}@1.0.0` },
        });
      await org.admin.contracts.deprecateContract({ contractId: given.contractId, version: "1.0.0" });
      const again = await org.admin.contracts.registerContract(given);
      expect(again.contract, "to register it again does not bring it back").toMatchObject({ deprecated: true });
    });

    test("by many at once makes one version, and the same answer for all", async () => {
      const org = await world.org();
      const given = { contractId: unique("c"), version: "1.0.0", inputSchema };
      const made = await Promise.all(Array.from({ length: 20 }, () => org.admin.contracts.registerContract(given)));
      expect(new Set(made.map(({ contract: one }) => JSON.stringify(one?.createTime, String))).size).toBe(1);
      expect((await org.admin.contracts.listContracts({})).contracts).toHaveLength(1);
    });

    test.each<[string, object, string, string]>([
      [
        "an unknown type",
        { inputSchema: { properties: { query: { type: "strin" } } } },
        "input_schema",
        "/properties/query/type",
      ],
      ["a remote $ref", { outputSchema: { $ref: "http://127.0.0.1/schema" } }, "output_schema", "/$ref"],
      [
        "an unknown keyword",
        { inputSchema: { properties: { a: { requird: [] } } } },
        "input_schema",
        "/properties/a/requird",
      ],
      ["a pattern that backtracks", { outputSchema: { pattern: "(a)\\1" } }, "output_schema", "/pattern"],
      ["64 KiB", { inputSchema: { description: "x".repeat(65_536) } }, "input_schema", ""],
    ])("a schema with %s is refused, naming field and path", async (_what, schemas, field, path) => {
      const org = await world.org();
      const found = await refusal(
        org.admin.contracts.registerContract({ contractId: "c", version: "1.0.0", ...schemas }),
      );
      expect(found).toMatchObject({ code: "InvalidArgument", reason: "INVALID_SCHEMA", metadata: { field, path } });
      expect(found.error.findDetails(BadRequestSchema)[0]?.fieldViolations[0]?.field).toBe(field + path);
      expect((await org.admin.contracts.listContracts({})).contracts).toEqual([]);
    });

    test.each<[string, object]>([
      ["contract_id", { contractId: "" }],
      ["contract_id", { contractId: "-x" }],
      ["contract_id", { contractId: "a".repeat(129) }],
      ["version", { version: "v1.0.0" }],
      ["version", { version: "1.0" }],
      ["version", { version: "1.0.0 " }],
      ["version", { version: "01.0.0" }],
      ["timeout", { timeout: durationFromMs(9) }],
      ["timeout", { timeout: durationFromMs(3_600_001) }],
      ["retry_policy.max_retries", { retryPolicy: { maxRetries: 11 } }],
      ["retry_policy.backoff", { retryPolicy: { backoff: durationFromMs(60_001) } }],
      ["required_tools", { requiredTools: ["a", "a"] }],
      ["description", { description: "x".repeat(2_049) }],
      ["capability", { capability: "no spaces" }],
      ["fallbacks", { fallbacks: Array.from({ length: 6 }, () => ({ contractId: "x" })) }],
      ["fallbacks[0].contract_id", { fallbacks: [{ contractId: "c" }] }],
    ])("beyond a limit of %s is refused, naming the field", async (field, wrong) => {
      const org = await world.org();
      const found = await refusal(
        org.admin.contracts.registerContract({ contractId: "c", version: "1.0.0", ...wrong }),
      );
      expect(found).toMatchObject({ code: "InvalidArgument", reason: "INVALID_REQUEST", metadata: { field } });
    });

    test("a fallback has to be there, in a version that will do", async () => {
      const org = await world.org();
      const other = await contract(org);
      const register = (fallbacks: { contractId: string; version?: string }[]) =>
        org.admin.contracts.registerContract({ contractId: "c", version: "1.0.0", fallbacks });
      expect(await refusal(register([{ contractId: other }, { contractId: "nobody" }]))).toMatchObject({
        ...{ code: "NotFound", reason: "CONTRACT_NOT_FOUND" },
        metadata: { field: "fallbacks[1].contract_id", contract_id: "nobody" },
      });
      expect(await refusal(register([{ contractId: other, version: "^2" }]))).toMatchObject({
        ...{ code: "NotFound", reason: "CONTRACT_VERSION_NOT_FOUND" },
        metadata: { field: "fallbacks[0].version", requested: "^2", available: "1.0.0" },
      });
      const { contract: made } = await register([{ contractId: other, version: "^1" }]);
      expect(made?.fallbacks).toMatchObject([{ contractId: other, version: "^1" }]);
    });

    test("of one organisation is not there for another", async () => {
      const [org, other] = [await world.org(), await world.org()];
      const contractId = await contract(org);
      const hidden = await refusal(other.admin.contracts.getContract({ contractId }));
      expect(hidden).toMatchObject({ code: "NotFound", reason: "CONTRACT_NOT_FOUND" });
      expect((await other.admin.contracts.listContracts({})).contracts).toEqual([]);
      expect(await refusal(other.admin.contracts.deprecateContract({ contractId, version: "1.0.0" }))).toMatchObject({
        reason: "CONTRACT_NOT_FOUND",
      });
    });
  });

  describe("GetContract, ListContracts and DeprecateContract", () => {
    async function versions(...all: string[]) {
      const org = await world.org();
      const contractId = unique("c");
      for (const version of all) await contract(org, { contractId, version });
      const get = async (version: string) =>
        (await org.admin.contracts.getContract({ contractId, version })).contract?.version;
      return { org, contractId, get };
    }

    test("get the exact version, the newest in a range, or the latest; a pre-release only when it is asked for", async () => {
      const { get } = await versions("1.0.0", "1.10.0", "1.2.0", "2.0.0", "3.0.0-beta.1");
      expect(await get("1.0.0")).toBe("1.0.0");
      expect(await get("^1.0.0")).toBe("1.10.0");
      expect(await get("~1.2")).toBe("1.2.0");
      expect(await get("")).toBe("2.0.0");
      expect(await get("3.0.0-beta.1")).toBe("3.0.0-beta.1");
      expect(await refusal(get("^4"))).toMatchObject({
        reason: "CONTRACT_VERSION_NOT_FOUND",
        metadata: { field: "version" },
      });
      expect(await refusal(get("latest, please"))).toMatchObject({
        reason: "INVALID_REQUEST",
        metadata: { field: "version" },
      });
    });

    test("a deprecated version is found only by its name, and says since when; twice deprecated is once", async () => {
      const { org, contractId, get } = await versions("1.0.0", "1.1.0");
      const deprecate = () => org.admin.contracts.deprecateContract({ contractId, version: "1.1.0" });
      const { contract: ended } = await deprecate();
      expect(ended).toMatchObject({ deprecated: true, version: "1.1.0" });
      expect(ended?.deprecateTime).toBeDefined();
      expect((await deprecate()).contract).toEqual(ended);
      expect([await get(""), await get("^1"), await get("1.1.0")]).toEqual(["1.0.0", "1.0.0", "1.1.0"]);
      expect(await refusal(org.admin.contracts.deprecateContract({ contractId, version: "9.9.9" }))).toMatchObject({
        ...{ code: "NotFound", reason: "CONTRACT_VERSION_NOT_FOUND" },
        metadata: { field: "version" },
      });
    });

    test("what can be no exact version deprecates nothing", async () => {
      const { org, contractId, get } = await versions("1.0.0");
      const found = await refusal(org.admin.contracts.deprecateContract({ contractId, version: "^1.0.0" }));
      expect(found.metadata.field).toBe("version");
      expect(await get("")).toBe("1.0.0");
    });

    test("lists page by id, then by time, without schemas, and filter by contract and capability", async () => {
      const org = await world.org();
      const made: string[] = [];
      for (const contractId of ["b", "a", "B"])
        for (const version of ["1.0.0", "1.1.0", "0.9.0"]) {
          await contract(org, {
            contractId,
            version,
            inputSchema,
            capability: version === "1.1.0" ? "special" : contractId,
          });
          made.push(`${contractId}@${version}`);
        }
      const idOf = ({ contractId, version }: { contractId: string; version: string }) => `${contractId}@${version}`;
      const inOrder = ["B", "a", "b"].flatMap((id) => made.filter((one) => one.startsWith(`${id}@`)));
      for (const pageSize of [1, 2, 4, 9, 100]) {
        const listed: string[] = [];
        for (let pageToken = ""; ; ) {
          const page = await org.admin.contracts.listContracts({ pageSize, pageToken });
          expect(page.contracts.length).toBeLessThanOrEqual(pageSize);
          expect(page.contracts.every((one) => !one.inputSchema && !one.outputSchema)).toBe(true);
          listed.push(...page.contracts.map(idOf));
          pageToken = page.nextPageToken;
          if (!pageToken) break;
        }
        expect(listed).toEqual(inOrder);
      }
      const only = async (filter: object) => (await org.admin.contracts.listContracts(filter)).contracts.map(idOf);
      expect(await only({ contractId: "a" })).toEqual(["a@1.0.0", "a@1.1.0", "a@0.9.0"]);
      expect(await only({ capability: "special" })).toEqual(["B@1.1.0", "a@1.1.0", "b@1.1.0"]);
    });
  });

  describe("CheckContract", () => {
    const check = async (changes: { inputSchema?: JsonObject; outputSchema?: JsonObject; againstVersion?: string }) => {
      const org = await world.org();
      const contractId = await contract(org, { version: "1.2.3", inputSchema, outputSchema });
      return org.admin.contracts.checkContract({ contractId, inputSchema, outputSchema, ...changes });
    };
    const { properties, required } = inputSchema;

    test("finds nothing where nothing changed", async () => {
      expect(await check({})).toMatchObject({
        compatible: true,
        againstVersion: "1.2.3",
        changes: [],
        suggestedVersion: "1.2.4",
      });
    });

    test("an input that asks for more breaks callers: the next version is a major one", async () => {
      const found = await check({ inputSchema: { ...inputSchema, required: [...required, "limit"] } });
      expect(found).toMatchObject({ compatible: false, suggestedVersion: "2.0.0" });
      expect(found.changes[0]).toMatchObject({ breaking: true, direction: "input" });
    });

    test("an output that promises less breaks readers", async () => {
      const found = await check({ outputSchema: { ...outputSchema, required: [] } });
      expect(found).toMatchObject({ compatible: false, suggestedVersion: "2.0.0" });
      expect(found.changes[0]).toMatchObject({ breaking: true, direction: "output" });
    });

    test("an input that takes more breaks nobody: a minor version, with the path of the change", async () => {
      const found = await check({ inputSchema: { ...inputSchema, required: [] } });
      expect(found).toMatchObject({ compatible: true, suggestedVersion: "1.3.0" });
      expect(found.changes.length).toBeGreaterThan(0);
      expect(found.changes.every(({ breaking, path }) => !breaking && (path === "" || path.startsWith("/")))).toBe(
        true,
      );
    });

    test("lists breaking changes first, and changes nothing", async () => {
      const mixed = {
        ...inputSchema,
        properties: { ...properties, query: { type: "integer" }, limit: {} },
        required: [],
      };
      const { changes } = await check({ inputSchema: mixed });
      const breaking = changes.map((change) => change.breaking);
      expect(breaking).toEqual(breaking.toSorted((a, b) => Number(b) - Number(a)));
      expect(new Set(breaking)).toEqual(new Set([true, false]));
    });

    test("refuses a schema that is none, and versions that are not there, naming the field", async () => {
      expect(await refusal(check({ outputSchema: { type: "nothing" } }))).toMatchObject({
        ...{ code: "InvalidArgument", reason: "INVALID_SCHEMA" },
        metadata: { field: "output_schema", path: "/type" },
      });
      expect(await refusal(check({ againstVersion: "^7" }))).toMatchObject({
        ...{ code: "NotFound", reason: "CONTRACT_VERSION_NOT_FOUND" },
        metadata: { field: "against_version" },
      });
    });
  });
});
