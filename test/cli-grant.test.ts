import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { contract, echoEndpoint } from "./bus-fixtures/bus.ts";
import { commandsAt } from "./cli-process.ts";
import { type Org, start, unique, type World } from "./harness.ts";

let world: World;
let doing: Org;
let asking: Org;
let all: ReturnType<typeof commandsAt>[];
let [atDoing, atAsking]: ReturnType<typeof commandsAt>["moltwire"][] = [];

beforeAll(async () => {
  world = await start();
  [doing, asking] = [await world.org(), await world.org()];
  all = [commandsAt(world.url, doing.adminKey), commandsAt(world.url, asking.adminKey)];
  [atDoing, atAsking] = all.map(({ moltwire }) => moltwire);
});

afterAll(async () => {
  for (const commands of all) await commands.stopAll();
  await world[Symbol.asyncDispose]();
});

describe("moltwire grant and moltwire gateway", () => {
  test("a grant is proposed, accepted, used, measured and revoked from the command line", async () => {
    const contractId = await contract(doing);
    await doing.agent({ name: unique("worker"), capabilities: [contractId], endpoint: echoEndpoint });
    const proposed = await atDoing!([
      ...["grant", "create", asking.orgId, "--contract", contractId, "--requests", "2", "--expires", "30d", "--json"],
    ]);
    const { grantId } = JSON.parse(proposed.stdout).grant as { grantId: string };
    const accepted = await atAsking!(["grant", "accept", grantId, "--if-revision", "1"]);
    expect(accepted.stdout).toMatch(new RegExp(`^${grantId}  ACTIVE\n  from  `));
    expect(accepted.stdout).toMatch(/requests a day +2\n/);
    const open = await atAsking!(["gateway", "list"]);
    expect(open.stdout).toContain(contractId);
    const submitted = await atAsking!(["gateway", "submit", doing.orgId, contractId, '{"a":1}']);
    expect([submitted.code, JSON.parse(submitted.stdout)]).toEqual([0, { a: 1 }]);
    const [, traceId] = /trace {2}([0-9a-f]{32})/.exec(submitted.stderr)!;
    const status = await atDoing!(["gateway", "status", traceId!]);
    expect(status.stdout).toMatch(/COMPLETED\n/);
    expect(status.stdout).toMatch(/asking side +ALLOW\n +doing side +ALLOW\n/);
    const dry = await atAsking!(["gateway", "submit", doing.orgId, contractId, "--dry-run"]);
    expect(dry.stdout).toMatch(/^SUBMITTED .*\nPOLICY_DECIDED .*\nPOLICY_DECIDED /);
    const usage = await atDoing!(["grant", "usage", grantId]);
    expect(usage.stdout).toMatch(/REQUESTS +REFUSED/);
    const revoked = await atDoing!(["grant", "revoke", grantId]);
    expect(revoked.stdout).toMatch(new RegExp(`^${grantId}  REVOKED\n`));
    const gone = await atAsking!(["gateway", "submit", doing.orgId, contractId, "--json"]);
    expect([gone.code, JSON.parse(gone.stderr).error.reason]).toEqual([4, "NOT_FOUND"]);
    expect((await atAsking!(["grant", "list", "--state", "revoked"])).stdout).toContain(grantId);
  });
});
