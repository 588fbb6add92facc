/** What agents keep, write and sell, in a real browser: what the pages show as it happens, and what one does there. */
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fromJson, type JsonValue } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import type { Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ApprovalState } from "../../gen/moltwire/bus/v1/approval_pb.ts";
import { DeadLetterState } from "../../gen/moltwire/bus/v1/dead_letter_pb.ts";
import { MarketplaceTaskState } from "../../gen/moltwire/exchange/v1/marketplace_pb.ts";
import { GrantState } from "../../gen/moltwire/federation/v1/grant_pb.ts";
import { JobState } from "../../gen/moltwire/queue/v1/job_pb.ts";
import { sql } from "../../src/db/db.ts";
import { eventually } from "../harness.ts";
import { executablePath, openStage, password, type Stage, screenshots, violations } from "./stage.ts";

const jsonValue = (json: JsonValue) => ({ kind: { case: "json", value: fromJson(ValueSchema, json) } }) as const;

describe.skipIf(!executablePath)("in Chromium", () => {
  let stage: Stage;
  let page: Page;
  const open = async (path: string) => {
    await page.goto(`${stage.url}/#${path}`);
    await page.waitForSelector("main h1");
  };
  /** Of a drawer, as it looks at both widths, and what axe finds in it. */
  const look = async (name: string) => {
    for (const width of [380, 1280]) {
      await page.setViewportSize({ width, height: 900 });
      await page.screenshot({ path: join(screenshots, `${name}-open-${width}.png`) });
    }
    expect(await violations(page), name).toEqual([]);
    expect(stage.faults, name).toEqual([]);
  };
  const row = (text: string) => `main tr.row:has-text("${text}")`;
  /** In the dialog on top. */
  const confirm = (label: string) => page.click(`[role=dialog] form button[type=submit]:has-text("${label}")`);

  beforeAll(async () => {
    mkdirSync(screenshots, { recursive: true });
    stage = await openStage();
    page = stage.page;
    await page.goto(stage.url);
    await page.fill("input", password);
    await page.press("input", "Enter");
    await page.waitForSelector("h1:has-text('Overview')");
  });
  afterAll(() => stage?.[Symbol.asyncDispose]());

  test("a memory that is looked at shows each change as it happens, and a value only once it is asked for", async () => {
    const { agents } = await stage.operator.agents.listAgents({});
    const { agentId } = agents.find(({ name }) => name === "planner")!;
    await open(`/memory?agent=${agentId}`);
    await page.waitForSelector("[data-watch=live]");
    await stage.planner.memory.setEntry({ write: { key: "favourite/tree", value: jsonValue("a silver birch") } });
    await page.waitForSelector(row("favourite/tree"));
    await page.waitForSelector("ul[aria-label^=Changes] >> text=favourite/tree");
    await page.click(row("favourite/tree"));
    await page.waitForSelector("[role=dialog] >> text=created by");
    expect(await page.textContent("body")).not.toContain("silver birch");
    await look("memory");
    await page.click("text=Show its value");
    await page.waitForSelector("[role=dialog] >> text=a silver birch");
    await page.click("[role=dialog] button:has-text('Delete')");
    await confirm("Delete");
    await page.waitForSelector(row("favourite/tree"), { state: "detached" });
    await page.waitForSelector("ul[aria-label^=Changes] >> text=deleted");
    const { entries } = await stage.planner.memory.listEntries({ prefix: "favourite/tree" });
    expect(entries).toEqual([]);
  });

  test("a list is read page by page, filtered by what stands in the address, and saved as JSON with all that was read", async () => {
    const { agents } = await stage.operator.agents.listAgents({});
    const { agentId } = agents.find(({ name }) => name === "fetcher")!;
    for (let from = 0; from < 60; from += 20)
      await stage.operator.memory.batchSetEntries({
        agentId,
        changes: Array.from({ length: 20 }, (_, n) => ({
          change: { case: "set", value: { key: `many/${String(from + n).padStart(3, "0")}`, value: jsonValue(n) } },
        })),
      });
    await open(`/memory?agent=${agentId}`);
    await page.fill("main input[placeholder^='Keys that']", "many/");
    await page.waitForURL(/prefix=many/);
    await page.waitForSelector(row("many/049"));
    expect(await page.locator("main tr.row").count()).toBe(50);
    await page.click("main button:has-text('More')");
    await page.waitForSelector(row("many/059"));
    await page.reload();
    await page.waitForSelector(row("many/049"));
    expect(await page.locator(row("favourite")).count()).toBe(0);
    await page.click("main button:has-text('More')");
    await page.waitForSelector(row("many/059"));
    const download = page.waitForEvent("download");
    await page.click("main button:has-text('Save as JSON')");
    const saved = JSON.parse(readFileSync(await (await download).path(), "utf8")) as { key: string }[];
    expect(saved.map(({ key }) => key)).toEqual(
      Array.from({ length: 60 }, (_, n) => `many/${String(n).padStart(3, "0")}`),
    );
  });

  test("shared entries and messages of a channel appear as they are written, and a dead letter is handed out again", async () => {
    await open("/shared-memory?namespace=weather");
    await page.waitForSelector("[data-watch=live]");
    await stage.planner.sharedMemory.publishSharedEntry({
      write: { namespace: "weather", key: "the day after", value: jsonValue("sun") },
    });
    await page.waitForSelector(row("the day after"));
    await page.click(row("the day after"));
    await look("shared-memory");

    await open("/channels?channel=news");
    await page.waitForSelector("[data-watch=live]");
    const to = { case: "toChannel", value: "news" } as const;
    await stage.planner.relay.send({ to, payload: jsonValue("hot off the press") });
    await page.waitForSelector(row("hot off the press"));
    await page.click("text=About the channel");
    await page.waitForSelector("[role=dialog] table[aria-label^='Dead letters'] button");
    await look("channel");
    await page.click("[role=dialog] table[aria-label^='Dead letters'] button");
    await confirm("Redrive");
    await page.waitForSelector("[role=dialog] table[aria-label^='Dead letters']", { state: "detached" });
    expect((await stage.planner.relay.listDeadMessages({ channel: "news" })).deadMessages).toEqual([]);
  });

  test("a message is there as soon as it came, and looking at it does not deliver it", async () => {
    const { agents } = await stage.operator.agents.listAgents({});
    const { agentId } = agents.find(({ name }) => name === "researcher")!;
    await open(`/inboxes?agent=${agentId}`);
    await page.waitForSelector("[data-live=live]");
    await page.waitForSelector("main tr.row");
    const to = { case: "toAgentId", value: agentId } as const;
    const { messageId } = await stage.planner.relay.send({ to, payload: jsonValue("are you there?") });
    await page.click(row("are you there?"));
    await page.waitForSelector(`[role=dialog] >> text=${messageId}`);
    await look("message");
    const { message } = await stage.planner.relay.getMessage({ messageId });
    expect(message!.deliveredTime).toBeUndefined();
  });

  test("an act is shown as a command before it is done; a grant shows what was used, is suspended and resumed", async () => {
    const { grants } = await stage.operator.grants.listGrants({});
    const { ownListingId } = stage.trade;
    const { grantId } = grants.find(({ subject }) => subject.value === ownListingId)!;
    const stateOf = async () => (await stage.operator.grants.getGrant({ grantId })).grant!.state;
    await open(`/grants?grant=${grantId}`);
    await page.waitForSelector("[role=dialog] table[aria-label='Usage by day'] tbody tr");
    await look("grant");
    await page.click("[role=dialog] button:has-text('Suspend…')");
    await page.click("[role=dialog] form button:has-text('As command')");
    await page.waitForSelector(`text=npx moltwire grant suspend ${grantId}`);
    await page.waitForSelector("text=moltwire.federation.v1.GrantService/SuspendGrant");
    expect(await stateOf()).toBe(GrantState.ACTIVE);
    await page.keyboard.press("Escape");
    await confirm("Suspend");
    await page.click("[role=dialog] button:has-text('Resume…')");
    expect(await stateOf()).toBe(GrantState.SUSPENDED);
    await confirm("Resume");
    await page.waitForSelector("[role=dialog] button:has-text('Suspend…')");
    expect(await stateOf()).toBe(GrantState.ACTIVE);
  });

  test("a listing shows what was measured and said of it, and its provider answers", async () => {
    await open(`/catalog?own=1&listing=${stage.trade.ownListingId}`);
    await page.waitForSelector("[role=dialog] >> text=100.00 %");
    await look("listing");
    await page.click("[role=dialog] button:has-text('Answer…')");
    await page.fill("[role=dialog] form textarea", "come again");
    await confirm("Answer");
    await page.waitForSelector("[role=dialog] >> text=Provider: come again");
    expect(await page.title()).toBe("Moltwire");
  });

  test("a result is accepted and its worker paid, and a dispute is settled by the operator", async () => {
    const { operator, trade } = stage;
    await open("/marketplace?side=1");
    await page.click(row("Wait for a review"));
    await page.waitForSelector("[role=dialog] button:has-text('Accept…')");
    await look("task");
    await page.click("[role=dialog] button:has-text('Accept…')");
    await confirm("Accept");
    await page.waitForSelector("[role=dialog] >> text=completed");
    const { task } = await operator.market.getTask({ taskId: trade.deliveredTaskId });
    expect([task!.state, task!.paidMicros]).toEqual([MarketplaceTaskState.COMPLETED, 3_000_000n]);
    await page.keyboard.press("Escape");
    await page.click(row("Quarrel over this"));
    await page.click("[role=dialog] button:has-text('Settle…')");
    await page.fill("[role=dialog] form input", "4");
    await page.waitForSelector("text=an amount up to 3");
    await page.fill("[role=dialog] form input", "1.5");
    await confirm("Settle");
    await page.waitForSelector("[role=dialog] >> text=settled");
  });

  test("the statement that is saved is the server's own, and the operator proves the books", async () => {
    await open("/billing?kind=2");
    await page.waitForSelector("main >> text=invoice 7");
    const download = page.waitForEvent("download");
    await page.click("text=Save the whole statement");
    const lines = readFileSync(await (await download).path(), "utf8")
      .trimEnd()
      .split("\r\n");
    expect(lines[0]).toContain("transfer_id");
    // What the organisation got, and where it came from.
    expect(lines.length).toBe(3);
    await open("/ledger");
    await page.click("text=Prove the books");
    await page.waitForSelector("main >> text=nothing is wrong");
    await look("ledger");
  });

  test("a play is run and watched to its end, with what held and what was reached", async () => {
    await open(`/lab?scenario=${stage.trade.scenarioId}`);
    await page.click("[role=dialog] button:has-text('Run…')");
    await confirm("Run");
    await page.waitForSelector("[role=dialog] ul[aria-label^='What happens'] >> text=agent ended");
    await page.waitForSelector("[role=dialog] table[aria-label=Participants] tbody tr >> nth=2");
    await page.waitForSelector("[role=dialog] ul[aria-label='What must hold'] li");
    await look("scenario");
    const { results } = await stage.operator.scenarios.getScenarioResults({ scenarioId: stage.trade.scenarioId });
    for (const { name } of results!.safety)
      expect(await page.textContent("[role=dialog]")).toContain(name.replaceAll("_", " "));
  });

  test("of an agent the directory shows what others say of it", async () => {
    await open("/directory?text=researcher");
    await page.click(row("researcher"));
    await page.waitForSelector("[role=dialog] table[aria-label=Collaborations] >> text=4 of 5");
    await look("profile");
    expect(await page.title()).toBe("Moltwire");
  });

  test("what fits the filter is counted, and dealt with as a whole once the number is typed", async () => {
    await open(`/queues?queue=mail&state=${JobState.FAILED}`);
    await page.click("main button:has-text('Redrive all…')");
    await page.waitForSelector("[role=dialog] >> text=2 fit the filter.");
    await page.fill("[role=dialog] form input", "3");
    expect(await page.isDisabled("[role=dialog] form button[type=submit]")).toBe(true);
    await page.fill("[role=dialog] form input", "2");
    await look("bulk");
    await confirm("Redrive all");
    await page.waitForSelector("[role=dialog] >> text=2 done.");
    expect((await stage.operator.queues.listDeadJobs({ queue: "mail" })).jobs).toEqual([]);

    await open("/dead-letters?contract=web/other");
    await page.click("main button:has-text('Resolve all…')");
    await page.waitForSelector("[role=dialog] >> text=0 fit the filter.");
    await page.keyboard.press("Escape");
    await open("/dead-letters?contract=web/fetch");
    await page.waitForSelector(row("web/fetch"));
    await page.click("main button:has-text('Resolve all…')");
    await page.getByLabel("Note").fill("nobody listens there");
    await page.getByLabel("Type 1 to confirm").fill("1");
    await confirm("Resolve all");
    await page.waitForSelector("[role=dialog] >> text=1 done.");
    const { deadLetters } = await stage.operator.deadLetters.listDeadLetters({});
    expect(deadLetters.map(({ state, resolveNote }) => [state, resolveNote])).toEqual([
      [DeadLetterState.RESOLVED, "nobody listens there"],
    ]);
  });

  test("what another organisation's jobs hold is kept from the operator, who reveals it for a reason that stands in their audit log", async () => {
    const { seller, sellerOrgId } = stage.trade;
    const job = { queue: "kitchen", payload: jsonValue("a secret recipe") };
    const { jobId } = (await seller.queues.submitJob({ job })).job!;
    await open(`/queues?org=${sellerOrgId}&queue=kitchen&job=${jobId}`);
    await page.waitForSelector("[role=dialog] >> text=kept from the operator");
    expect(await page.textContent("body")).not.toContain("secret recipe");
    await page.click("[role=dialog] button:has-text('Reveal…')");
    expect(await page.isDisabled("[role=dialog] form button[type=submit]")).toBe(true);
    await page.getByLabel("Why").fill("they asked: ticket 7");
    await look("reveal");
    await confirm("Reveal");
    await page.waitForSelector("[role=dialog] >> text=a secret recipe");
    await look("revealed");
    const [row] = (await seller.admin.listAuditEvents({ pageSize: 1 })).auditEvents;
    expect(row!.method).toBe("moltwire.ops.v1.AdminService/RevealPayload");
    expect(row!.resource).toEqual({ job_id: jobId, org_id: sellerOrgId, reason: "they asked: ticket 7" });
    // Of a task, from its trace.
    const { traceId } = (await seller.bus.listTasks({ contractId: "translate/any", pageSize: 1 })).tasks[0]!;
    await open(`/traces/${traceId}?org=${sellerOrgId}`);
    await page.click("main ul.feed li button:has-text('COMPLETED')");
    await page.click("[role=dialog] button:has-text('Reveal…')");
    await page.getByLabel("Why").fill("they asked: ticket 8");
    await confirm("Reveal");
    await page.waitForSelector("[role=dialog] h3:has-text('Output')");
    await look("revealed-task");
  });

  test("work is published from the catalog, and another organisation's is invoked for its price", async () => {
    await open("/catalog");
    await page.click("main button:has-text('Publish…')");
    await page.getByLabel("Title").fill("Composed on demand");
    await page.getByLabel("What it does").fill("It composes.");
    await page.getByRole("combobox", { name: "Contract" }).fill("research/comp");
    await page.click("[role=option]:has-text('research/compose')");
    await page.locator("[role=dialog]").getByLabel("Category").fill("Not one");
    await page.waitForSelector("text=such as language-tools");
    await page.locator("[role=dialog]").getByLabel("Category").fill("writing");
    await page.getByLabel("Credits for a request").fill("2.5");
    await page.getByLabel("An example").fill('{"topic":"the moon"}');
    await look("publish");
    await confirm("Publish");
    await page.waitForSelector("[role=dialog] h3:has-text('Composed on demand')");
    const { listings } = await stage.operator.catalog.searchListings({ text: "Composed", mine: true });
    expect(listings.map(({ offer }) => [offer!.contractId, offer!.pricing!.requestMicros])).toEqual([
      ["research/compose", 2_500_000n],
    ]);

    await open(`/catalog?listing=${stage.trade.listingId}`);
    await page.click("[role=dialog] button:has-text('Invoke…')");
    await page.getByLabel("Input").fill("{");
    await page.waitForSelector("text=this is no JSON");
    await page.getByLabel("Input").fill('{"text":"a blue moon"}');
    await confirm("Invoke");
    await page.waitForSelector("[role=dialog] [role=status] >> text=completed");
    await page.waitForSelector("[role=dialog] [role=status] >> text=a blue moon");
    await look("invoked");
  });

  test("on the overview an approval is given beside what counts, and its task runs", async () => {
    await stage.operator.approvals
      .listApprovals({ state: ApprovalState.PENDING })
      .then(({ approvals }) =>
        Promise.all(approvals.map(({ approvalId, digest }) => stage.operator.approvals.deny({ approvalId, digest }))),
      );
    await open("/");
    const { task } = await stage.planner.bus.submitTask({ contractId: "payments/transfer" });
    const waiting = "section[aria-label='Approvals that wait']";
    await page.waitForSelector(`${waiting} >> text=payments/transfer`);
    for (const label of ["Tasks under way", "Errors in 24 h", "Decisions in 24 h", "Tokens today", "Credits today"])
      await page.waitForSelector(`main .mantine-Card-root:has-text("${label}") svg.spark`);
    for (const label of ["Deliveries in 24 h", "Jobs that wait", "Approvals that wait", "Agents"])
      await page.waitForSelector(`main .mantine-Card-root:has-text("${label}")`);
    await look("overview");
    await page.click(`${waiting} button:has-text('Approve')`);
    await page.waitForSelector(waiting, { state: "detached" });
    const ended = async () => (await stage.planner.bus.getTask({ taskId: task!.taskId })).task!.endTime !== undefined;
    await eventually(ended, 60_000);
  });

  test("an hour in which the server did not write is a bar of its own, and the rest of the day is whole", async () => {
    const current = Math.floor(Date.now() / 60_000);
    // From 20 hours ago to 4; an hour and a half of it is missing.
    await stage.db().tx((tx) =>
      tx.run(sql`
        with recursive n (i) as (select ${current - 20 * 60} union all select i + 1 from n where i < ${current - 4 * 60})
        insert into self_check (minute, took_us) select i, 900 from n where i < ${current - 12 * 60} or i >= ${current - 10 * 60 - 30}`),
    );
    await stage
      .db()
      .tx((tx) =>
        tx.run(
          sql`update setting set value = ${Buffer.from(String(current - 20 * 60))} where name = ${"self_check_since"}`,
        ),
      );
    await open("/sla");
    const bars = "ol[aria-label='The last 24 hours'] li";
    await page.waitForSelector(`${bars}.bad`);
    expect(await page.locator(bars).count()).toBeGreaterThan(19);
    expect(await page.locator(`${bars}.good`).count()).toBeGreaterThan(12);
    await page.waitForSelector("table[aria-label=Uptime] >> text=60 min");
    await look("sla");
  });

  test("a dead letter tells what each attempt was, and is tried again with another input", async () => {
    await open("/dead-letters?state=0&contract=web/fetch");
    await page.click(row("web/fetch"));
    await page.waitForSelector("[role=dialog] table[aria-label=Attempts] >> text=Reason:");
    await page.locator("[role=dialog]").getByLabel("Input").fill('{"to":"elsewhere"}');
    await look("dead-letter");
    await page.click("[role=dialog] button:has-text('Retry')");
    await page.waitForSelector("[role=dialog] >> text=Tried again as tsk_");
    const said = await page.textContent("[role=dialog] [role=status]");
    const taskId = /tsk_[0-9a-f]+/.exec(said!)![0];
    expect((await stage.operator.bus.getTask({ taskId })).task!.input).toEqual(
      fromJson(ValueSchema, { to: "elsewhere" }),
    );
  });

  test("of a delivery the console shows what was sent, and sends it again", async () => {
    await open("/webhooks");
    await page.click(row("127.0.0.1:9"));
    await page.click("[role=dialog] button:has-text('Send a test')");
    const delivery = "[role=dialog] table[aria-label=Deliveries] tr:has-text('webhook.test')";
    await page.waitForSelector(delivery);
    await page.click(`${delivery} button:has-text('Sent')`);
    await page.waitForSelector("[role=dialog] pre >> text=webhook.test");
    await look("delivery");
    const answered = page.waitForResponse((answer) => answer.url().endsWith("/ReplayDelivery"));
    await page.click(`${delivery} button:has-text('Replay')`);
    expect((await answered).status()).toBe(200);
  });

  test("an agent is deleted once it was told what goes with it", async () => {
    const { agentId } = (await stage.operator.agents.registerAgent({ name: "leaving" })).agent!;
    for (let n = 0; n < 2; n++) await stage.operator.keys.createApiKey({ agentId });
    await stage.operator.memory.setEntry({ agentId, write: { key: "k", value: jsonValue(1) } });
    await stage.operator.relay.send({ to: { case: "toAgentId", value: agentId }, payload: jsonValue("hello") });
    await open("/agents");
    await page.click(row("leaving"));
    await page.click("[role=dialog] button:has-text('Delete…')");
    const facts = page.locator("[role=dialog]:has-text('With it go') dl");
    await facts.waitFor();
    expect(await facts.locator("dd").allTextContents()).toEqual(["2", "1 (entries: 1)", "0", "1", "0", "0"]);
    // It was only asked.
    expect((await stage.operator.agents.getAgent({ agentId })).agent!.name).toBe("leaving");
    await look("agent-delete");
    await page.getByRole("button", { name: "Delete", exact: true }).click();
    await page.waitForSelector(row("leaving"), { state: "detached" });
    expect((await stage.operator.agents.listAgents({})).agents.map(({ name }) => name)).not.toContain("leaving");
  });

  test("of 100,000 traces those that were scrolled past are no part of the page, but of the file; a filter finds the one", async () => {
    const { organization } = await stage.operator.organizations.createOrganization({ name: "busy" });
    const { orgId } = organization!;
    await stage.db().tx((tx) =>
      tx.run(sql`
        with recursive n (i) as (select 1 union all select i + 1 from n where i < 100000)
        insert into trace (org_id, trace_id, contract_id, opener_agent_id, start_ms)
        select ${orgId}, printf('%032x', i), case i when 777 then 'rare/one' else 'often/asked' end, '', 1700000000000 + i from n`),
    );
    await open(`/traces?org=${orgId}`);
    await page.waitForSelector(row("often/asked"));
    for (let read = 250; read < 3_000; read += 250) {
      await page.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)");
      // Of three pages on the page says how many there are; those before are in sight, or near it.
      const shown =
        read < 500
          ? "document.querySelectorAll('main tr.row').length > 250"
          : `Number(/([\\d,]+) are shown/.exec(document.querySelector('main').textContent)?.[1].replaceAll(',', '') ?? 0) > ${read}`;
      await eventually(() => page.evaluate<boolean>(shown), 30_000);
    }
    await eventually(async () => (await page.locator("main tr.row").count()) < 500, 20_000);
    const download = page.waitForEvent("download");
    await page.click("main button:has-text('Save as CSV')");
    const lines = readFileSync(await (await download).path(), "utf8")
      .trimEnd()
      .split("\r\n");
    expect(lines.length).toBeGreaterThan(3_000);
    expect(new Set(lines).size).toBe(lines.length);
    await page.evaluate("window.scrollTo(0, 0)");
    await page.fill("main input[aria-label=Contract]", "rare/one");
    await page.waitForSelector(row("rare/one"));
    expect(await page.locator("main tr.row").count()).toBe(1);
    expect(stage.faults).toEqual([]);
  });
});
