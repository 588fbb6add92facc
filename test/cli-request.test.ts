import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { JsonValue } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { Command } from "commander";
import { afterAll, describe, expect, test } from "vitest";
import { connectClients } from "../clients/cli/connect.ts";
import { duration, json, number, oneOf, timeToCome } from "../clients/cli/field.ts";
import { nextCommand } from "../clients/cli/list.ts";
import { declareRequest, type RequestFields, readRequest } from "../clients/cli/request.ts";
import { age, jsonText, renderFacts, renderTable } from "../clients/cli/table.ts";
import { TrustTierSchema } from "../gen/moltwire/bus/v1/agent_pb.ts";
import { UpdateAgentRequestSchema } from "../gen/moltwire/bus/v1/agent_service_pb.ts";
import { RegisterContractRequestSchema } from "../gen/moltwire/bus/v1/contract_service_pb.ts";

const folder = mkdtempSync(join(tmpdir(), "moltwire-cli-request-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const fileWith = (text: string): string => {
  const path = join(folder, "request.json");
  writeFileSync(path, text);
  return path;
};

const clients = connectClients({ url: "http://127.0.0.1:1" });

const contractFields: RequestFields = {
  fields: [
    { name: "contractId", as: "[contract]", help: "", required: true },
    { name: "version", as: "[version]", help: "" },
    { name: "timeout", as: "--timeout <span>", help: "", read: duration },
    { name: "retryPolicy.maxRetries", as: "--retries <number>", help: "", read: number },
    { name: "retryPolicy.backoff", as: "--backoff <span>", help: "", read: duration },
    { name: "requiredTools", as: "--tool <name>", help: "", many: true },
    { name: "securityClass", as: "--trust <tier>", help: "", read: oneOf(TrustTierSchema) },
    { name: "inputSchema", as: "--input <schema>", help: "", read: json },
    { name: "repeatable", as: "--repeatable", help: "" },
  ],
  from: true,
};

const agentFields: RequestFields = {
  fields: [{ name: "agentId", as: "[agent]", help: "" }],
  change: [
    { name: "description", as: "--description <text>", help: "" },
    { name: "capabilities", as: "--capability <name>", help: "", many: true },
    { name: "disabled", as: "--disable", help: "" },
    { name: "disabled", as: "--enable", help: "", value: false },
  ],
  from: true,
};

async function contract(args: readonly string[], orgId = "") {
  const command = new Command();
  declareRequest(command, RegisterContractRequestSchema, contractFields);
  await command.parseAsync(args, { from: "user" });
  return await readRequest(RegisterContractRequestSchema, contractFields, command, { clients, orgId });
}

async function agent(args: readonly string[]) {
  const command = new Command();
  declareRequest(command, UpdateAgentRequestSchema, agentFields);
  await command.parseAsync(args, { from: "user" });
  return await readRequest(UpdateAgentRequestSchema, agentFields, command, { clients, orgId: "" });
}

describe("a request from the command line", () => {
  test("has each field that was given, fields of fields too, and the organisation", async () => {
    const flags = [
      "--timeout",
      "1.5s",
      "--retries",
      "3",
      "--backoff",
      "50ms",
      "--tool",
      "a",
      "--tool",
      "b",
      "--repeatable",
    ];
    const request = await contract(
      ["shout", "1.0.0", ...flags, "--trust", "external-partner", "--input", "{}"],
      "org_1",
    );
    expect(request).toMatchObject({
      orgId: "org_1",
      contractId: "shout",
      version: "1.0.0",
      timeout: { seconds: 1n, nanos: 500_000_000 },
      retryPolicy: { maxRetries: 3, backoff: { seconds: 0n, nanos: 50_000_000 } },
      requiredTools: ["a", "b"],
      securityClass: 3,
      repeatable: true,
      inputSchema: {},
    });
  });

  test("goes over what --from says, and keeps the rest of it", async () => {
    const file = fileWith(
      '{"contractId":"filed","retryPolicy":{"maxRetries":1,"maxBackoff":"9s"},"description":"kept"}',
    );
    const request = await contract(["--from", file, "--retries", "2"]);
    expect(request).toMatchObject({
      contractId: "filed",
      description: "kept",
      retryPolicy: { maxRetries: 2, maxBackoff: { seconds: 9n } },
    });
  });

  test("of an update names in its mask what is given, cleared, or in a file without a mask", async () => {
    const masked = async (...args: string[]) => {
      const { change, updateMask } = await agent(["x", ...args]);
      return { paths: updateMask?.paths, change };
    };
    expect(await masked("--capability", "a", "--clear", "description")).toMatchObject({
      paths: ["capabilities", "description"],
      change: { capabilities: ["a"], description: "" },
    });
    expect(await masked("--disable")).toMatchObject({ paths: ["disabled"], change: { disabled: true } });
    expect(await masked("--enable")).toMatchObject({ paths: ["disabled"], change: { disabled: false } });
    expect(await masked("--from", fileWith('{"change":{"description":"d"}}'), "--enable")).toMatchObject({
      paths: ["description", "disabled"],
      change: { description: "d" },
    });
    const given = fileWith('{"change":{"description":"d"},"updateMask":"capabilities"}');
    expect(await masked("--from", given)).toMatchObject({ paths: ["capabilities"] });
  });

  test.each([
    ["without a required argument", () => contract(["--retries", "1"]), "contract is missing"],
    [
      "with a field that does not exist",
      () => contract(["--from", fileWith('{"contractId":"x","timeot":"1s"}')]),
      'key "timeot" is unknown',
    ],
    [
      "with a deep field of another type",
      () => contract(["--from", fileWith('{"contractId":"x","retryPolicy":{"maxRetries":"many"}}')]),
      "RetryPolicy.max_retries: ",
    ],
    ["that is a list", () => contract(["--from", fileWith("[]")]), "--from holds no JSON object"],
    ["that is no JSON", () => contract(["--from", fileWith("{")]), "is not JSON"],
    ["from a file that is not there", () => contract(["--from", join(folder, "nothing")]), "cannot be read"],
    ["with a span that is none", () => contract(["x", "--timeout", "soon"]), "--timeout soon is no span of time"],
    ["with a tier that is none", () => contract(["x", "--trust", "blind"]), "--trust blind"],
    ["with a number that is none", () => contract(["x", "--retries", "-1"]), "--retries -1 is no whole number"],
    ["with a schema that is no JSON", () => contract(["x", "--input", "{a: 1}"]), "--input is not JSON"],
    ["that changes nothing", () => agent(["x"]), "there is nothing to change"],
    ["that clears what is no field", () => agent(["x", "--clear", "soul"]), "--clear soul"],
  ])("%s is refused with what is wrong and a fix", async (_, read, message) => {
    await expect(read()).rejects.toMatchObject({
      name: "UsageError",
      message: expect.stringContaining(message),
      fix: expect.stringMatching(/\S/),
    });
  });

  test("spans and times are read to the millisecond", () => {
    const reading = { label: "--expires", clients, orgId: "" };
    const spans: [string, JsonValue][] = [
      ["500ms", "0.5s"],
      ["30s", "30s"],
      ["1.5m", "90s"],
      ["2h", "7200s"],
      ["30d", "2592000s"],
    ];
    for (const [text, expected] of spans) expect(duration(text, reading)).toBe(expected);
    expect(timeToCome("2030-01-31T12:00:00+02:00", reading)).toBe("2030-01-31T10:00:00.000Z");
    expect(() => timeToCome("2030-13-31", reading)).toThrow("is no time");
  });
});

describe("a table", () => {
  const columns = [
    { title: "ID", cell: (row: string[]) => row[0]! },
    { title: "AGE", cell: (row: string[]) => row[1]!, right: true },
    { title: "NOTHING", cell: () => "" },
    { title: "NAMES", cell: (row: string[]) => row[2]!, cut: true },
  ];

  test("is aligned, cuts only what may be cut, leaves out what says nothing, and lets no text move the cursor", () => {
    const rows = [
      ["id_0123456789", "1 s", "short"],
      ["id_1", "12 min", "a name that is\u001b[2J much too long for it"],
    ];
    expect(renderTable(columns, rows, 36)).toEqual([
      "ID                AGE  NAMES",
      "id_0123456789     1 s  short",
      "id_1           12 min  a name that …",
    ]);
    expect(renderTable(columns, rows, 10)[2]).toBe("id_1           12 min  a name th…");
  });

  test("a block of facts leaves out what is not known and aligns the rest", () => {
    expect(
      renderFacts("thing", [
        ["one", "1"],
        ["nothing", ""],
        ["none", undefined],
        ["three", ["a", "b"]],
      ]),
    ).toEqual(["thing", "  one    1", "  three  a", "         b"]);
    expect(jsonText({})).toBeUndefined();
    const long = jsonText(Array.from({ length: 100 }, (_, at) => at))!;
    expect(long).toHaveLength(25);
    expect(long.at(-1)).toBe("… 78 more lines: --json shows all");
  });

  test("ages are told in the largest unit that fits", () => {
    const aged = (seconds: number) => age(timestampFromMs(0), seconds * 1_000);
    expect([-5, 0, 59, 60, 3_599, 3_600, 86_399, 86_400].map(aged)).toEqual([
      "0 s",
      "0 s",
      "59 s",
      "1 min",
      "59 min",
      "1 h",
      "23 h",
      "1 d",
    ]);
  });

  test("the command for the next page keeps every word, quotes what a shell would change, and has one page token", () => {
    const args = ["agent", "list", "--page-token", "old", "--name", "it's", "--page-token=older", "--capability", ""];
    expect(nextCommand(args, "T-1_x")).toBe("moltwire agent list --name 'it'\\''s' --capability '' --page-token T-1_x");
  });
});
