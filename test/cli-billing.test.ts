import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { sql } from "../src/db/db.ts";
import { commandsAt } from "./cli-process.ts";
import { market } from "./exchange-fixtures/listing.ts";
import { type Org, start, unique, type World } from "./harness.ts";

let world: World;
let org: Org;
let commands: ReturnType<typeof commandsAt>;
let operator: ReturnType<typeof commandsAt>["moltwire"];
let admin: ReturnType<typeof commandsAt>["moltwire"];

beforeAll(async () => {
  world = await start();
  org = await world.org();
  commands = commandsAt(world.url, world.operatorKey);
  operator = commands.moltwire;
  admin = commandsAt(world.url, org.adminKey).moltwire;
});

afterAll(async () => {
  await commands.stopAll();
  await world[Symbol.asyncDispose]();
});

describe("moltwire billing", () => {
  test("top-up, transfer and balance tell credits, not millionths of them", async () => {
    const name = unique("planner");
    const { agent } = await org.admin.agents.registerAgent({ name });
    const topped = await operator(["billing", "top-up", "500.25", "--org", org.orgId, "--reference", "invoice 17"]);
    expect(topped.stdout).toMatch(
      /^✔ 500\.25 credits from issuance to wallet {2}txn_[0-9a-f]{32}\nwallet\n {2}available {2}1500\.25 credits\n$/,
    );
    const moved = await admin(["billing", "transfer", "0.000001", "--to", name]);
    expect(moved.stdout).toContain(`✔ 0.000001 credits from wallet to ${agent!.agentId}`);
    const balance = await admin(["billing", "balance", "--agent", name]);
    expect(balance.stdout).toBe(`${agent!.agentId}\n  available  0.000001 credits\n`);
    const lines = await admin(["billing", "transactions", "--account", "wallet"]);
    expect(lines.stdout).toMatch(
      /^TIME +CREDITS +ACCOUNT +STEP +KIND +TRANSFER +REFERENCE\n.* -0\.000001 +wallet +MOVED +TRANSFER +txn_\S+\n.* 500\.25 +wallet +MOVED +TOP_UP +txn_\S+ +invoice 17\n.* 1000 +wallet +MOVED +STARTING_CREDITS +/,
    );
    const csv = await admin(["billing", "export", "--kind", "top-up"]);
    expect(csv.stdout.split("\r\n").slice(1)).toEqual([
      expect.stringMatching(/^txn_[0-9a-f]{32},wallet,ORG_WALLET,MOVED,TOP_UP,500250000,0,ISSUANCE,,,,,,invoice 17,/),
      "",
    ]);
  });

  test("earnings tell what each listing has brought on which day, and what that is in all", async () => {
    const { seller, listingId, buy } = await market(world, {});
    const { moltwire } = commandsAt(world.url, seller.adminKey);
    expect((await moltwire(["billing", "earnings"])).stderr).toContain("no earnings yet");
    for (let n = 0; n < 2; n++) await buy();
    const dates = "\\d{4}-\\d{2}-\\d{2}";
    const told = await moltwire(["billing", "earnings", "--listing", listingId]);
    // Two lines if it has become midnight in between.
    const line = (count: string, paid: string, fee: string, net: string) =>
      `${dates} +${listingId} +${count} +${paid} +${fee} +${net}\n`;
    expect(told.stdout).toMatch(
      new RegExp(
        `^DATE +LISTING +COMPLETED +REQUESTS +FEES +EARNED\n(${line("2", "10", "1", "9")}|(${line("1", "5", "0\\.5", "4\\.5")}){2})9 credits in all\n$`,
      ),
    );
    const json = (await moltwire(["billing", "earnings", "--json"])).stdout.trim().split("\n");
    expect((JSON.parse(json[0]!) as { listingId: string }).listingId).toBe(listingId);
    expect((await moltwire(["billing", "earnings", "--since", "tomorrow"])).stderr).toContain("start_date");
  });

  test("an amount that is none is refused before anything is sent, too little in the wallet with what helps", async () => {
    for (const text of ["1.0000001", "-1", "1e3", "x"])
      expect((await admin(["billing", "transfer", "--to", "a", "--", text])).code).toBe(2);
    const poor = await admin(["billing", "transfer", "1000000", "--to", (await org.agent()).agentId]);
    expect(poor).toMatchObject({
      code: 4,
      stderr: expect.stringMatching(/INSUFFICIENT_CREDITS[\s\S]*1000000 are needed[\s\S]*top-up/),
    });
  });
});

test("moltwire ledger verify says whether the books balance, by its exit code too", async () => {
  const right = await operator(["ledger", "verify"]);
  expect(right).toMatchObject({
    code: 0,
    stdout: expect.stringMatching(/^✔ the books balance\n {2}sum {7}0 of \d+ accounts and \d+ transfers\n/),
  });
  await world.server.app.db.tx((tx) =>
    tx.run(sql`update ledger_account set balance = balance + 1 where org_id = ${org.orgId} and account_id = 'wallet'`),
  );
  const wrong = await operator(["ledger", "verify"]);
  expect(wrong).toMatchObject({
    code: 1,
    stdout: expect.stringMatching(/^✘ the books are wrong in 2 places\n[\s\S]*org_\S+ {2}wallet {2}holds/),
  });
  const json = JSON.parse((await operator(["ledger", "verify", "--json"])).stdout) as { faultCount: string };
  expect(json.faultCount).toBe("2");
  expect((await admin(["ledger", "verify"])).code).toBe(4);
});
