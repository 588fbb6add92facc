/** The console in a real browser: Debian's Chromium, against a real server. Screenshots of every page go to `screenshots`. */
import { existsSync, mkdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import type { BrowserContext, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import { type Clients, clientsAt, eventually } from "../harness.ts";
import { about } from "./seed.ts";
import { executablePath, openStage, password, type Stage, screenshots, violations } from "./stage.ts";

/** Every page, and a word that stands in what it shows. */
const pages: readonly (readonly [path: string, title: string, shows: string])[] = [
  ["/", "Overview", "Approvals that wait"],
  ["/activity", "Activity", "approval.requested"],
  ["/traces", "Traces", "research/compose"],
  ["/approvals", "Approvals", "payments/transfer"],
  ["/dead-letters", "Dead letters", "web/fetch"],
  ["/agents", "Agents", "researcher"],
  ["/contracts", "Contracts", "research/outline"],
  ["/queues", "Queues", "mail"],
  ["/policies", "Policies", "no-echo-for-planner"],
  ["/decisions", "Decisions", "payments/transfer"],
  ["/budgets", "Budgets", "org"],
  ["/costs", "Costs", "Tokens"],
  ["/schedules", "Schedules", "moonrise"],
  ["/webhooks", "Webhooks", "127.0.0.1:9"],
  ["/grants", "Grants", "research"],
  ["/organizations", "Organisations", "acme"],
  ["/keys", "Keys", "planner"],
  ["/audit", "Audit", "SetBudget"],
  ["/contacts", "Contacts", "somebody"],
  ["/system", "System", "sqlite"],
  ["/directory", "Directory", "research/outline"],
  ["/invites", "Invites", "0 of 3"],
  ["/memory", "Memory", "favourite/town"],
  ["/shared-memory?namespace=weather", "Shared memory", "tomorrow"],
  ["/channels?channel=news", "Channels", "dead soon"],
  ["/inboxes", "Inboxes", "planner"],
  ["/lab", "Lab", "fanout for three"],
  ["/catalog", "Catalog", "languages"],
  ["/subscriptions", "Subscriptions", "monthly"],
  ["/marketplace", "Marketplace", "Sum it up"],
  ["/billing", "Billing", "invoice 7"],
  ["/earnings", "Earnings", "Outlines"],
  ["/ledger", "Ledger", "ledger verify"],
  ["/peers", "Peers", "127.0.0.1:9"],
  ["/sla", "SLA", "100.000 %"],
];
/** Those that only the operator has. */
const operatorPages = ["/organizations", "/contacts", "/ledger", "/peers"];
/** Those that show everybody what others offer: what users wrote is there for all to read. */
const publicPages = ["/catalog", "/marketplace"];

describe.skipIf(!executablePath)("in Chromium", () => {
  let stage: Stage;
  let url: string;
  let operatorKey: string;
  let planner: Clients;
  let context: BrowserContext;
  let page: Page;
  let faults: string[];

  const open = async (path: string) => {
    await page.goto(`${url}/#${path}`);
    await page.waitForSelector("main h1");
  };
  const isLive = () => page.waitForSelector("[data-live=live]");

  beforeAll(async () => {
    mkdirSync(screenshots, { recursive: true });
    stage = await openStage();
    ({ url, operatorKey, planner, context, page, faults } = stage);
  });
  afterAll(() => stage?.[Symbol.asyncDispose]());

  test("a wrong password is refused, the right one shows the overview, and nothing of it stays in the browser", async () => {
    await page.goto(url);
    await page.fill("input", "a wrong password");
    await page.screenshot({ path: join(screenshots, "sign-in.png") });
    await page.click("button[type=submit]");
    await page.waitForSelector("text=the password is wrong");
    // The browser itself notes the refusal.
    faults.length = 0;
    // A page is loaded as soon as its link is pointed at.
    await page.mouse.move(0, 0);
    await page.fill("input", password);
    await page.press("input", "Enter");
    await page.waitForSelector("h1:has-text('Overview')");
    const loaded = await page.evaluate<string[]>(
      "performance.getEntriesByType('resource').map(({ name }) => name).filter((name) => name.includes('/assets/'))",
    );
    expect(loaded.length).toBeGreaterThan(2);
    expect(loaded.reduce((sum, name) => sum + gzipped(name), 0)).toBeLessThan(250 * 1_024);
    const kept = await page.evaluate<string>(
      "JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie])",
    );
    expect(kept).not.toContain(password);
    expect(kept).not.toMatch(/mw_|moltwire_session/);
    const [cookie] = await context.cookies();
    expect(cookie).toMatchObject({ name: "moltwire_session", httpOnly: true, sameSite: "Strict" });
    await isLive();
  });

  test.each(pages)(
    "%s shows its rows, in both schemes and at both widths, without a complaint of the browser",
    async (path, title, shows) => {
      await open(path);
      await page.waitForSelector(`h1:has-text("${title}")`);
      await page.waitForSelector(`main >> text=${shows} >> visible=true`);
      for (const width of [1280, 380]) {
        await page.setViewportSize({ width, height: 900 });
        for (const colorScheme of ["light", "dark"] as const) {
          await page.emulateMedia({ colorScheme });
          await page.waitForTimeout(150);
          const name = `${title.toLowerCase().replaceAll(" ", "-")}-${width}-${colorScheme}.png`;
          await page.screenshot({ path: join(screenshots, name), fullPage: true });
          const overflow = await page.evaluate<number>("document.documentElement.scrollWidth - window.innerWidth");
          expect(overflow, `${name} is wider than the screen`).toBeLessThanOrEqual(0);
        }
      }
      await page.setViewportSize({ width: 1280, height: 900 });
      for (const colorScheme of ["dark", "light"] as const) {
        await page.emulateMedia({ colorScheme });
        expect(await violations(page), `${title} ${colorScheme}`).toEqual([]);
      }
      expect(faults).toEqual([]);
    },
  );

  test("what users wrote is text, and no script of theirs has run", async () => {
    await open("/contracts");
    await page.click("tr.row:has-text('research/outline')");
    await page.waitForSelector("[role=dialog] >> text=<img src=x");
    expect(await page.title()).toBe("Moltwire");
    await page.keyboard.press("Escape");
  });

  test("a list is saved as CSV, in which nothing that a user wrote is a formula", async () => {
    await clientsAt(url, operatorKey).organizations.createOrganization({ name: "sums", displayName: '=1+1, "x"' });
    await open("/organizations");
    await page.waitForSelector("tr.row:has-text('sums')");
    const download = page.waitForEvent("download");
    await page.click("button:has-text('Save as CSV')");
    const text = readFileSync(await (await download).path(), "utf8");
    expect(text.split("\r\n")[0]).toBe('"State","Name","For people","Id","Age"');
    expect(text).toContain(`"enabled","sums","'=1+1, ""x"""`);
    expect(faults).toEqual([]);
  });

  test("a task that is submitted elsewhere is seen within a second, and opens as a waterfall", async () => {
    await open("/traces");
    await isLive();
    await page.waitForSelector("tr.row");
    const before = await page.locator("tr.row").count();
    const beganMs = performance.now();
    const { task } = await planner.bus.submitTask({ contractId: "research/outline", input: about("live") });
    await page.waitForSelector(`tr.row >> nth=${before}`);
    expect(performance.now() - beganMs).toBeLessThan(1_500);
    await page.keyboard.press("j");
    await page.keyboard.press("Enter");
    await page.waitForSelector(".waterfall .bar");
    expect(page.url()).toContain(task!.traceId);
    for (const width of [1280, 380]) {
      await page.setViewportSize({ width, height: 900 });
      await page.screenshot({ path: join(screenshots, `trace-${width}.png`), fullPage: true });
    }
    await page.setViewportSize({ width: 1280, height: 900 });
    expect(await violations(page)).toEqual([]);
    expect(faults).toEqual([]);
  });

  test("an approval is given, and its task runs", async () => {
    await open("/approvals");
    await page.click("tr.row:has-text('payments/transfer')");
    await page.waitForSelector("button:has-text('Approve')");
    await page.screenshot({ path: join(screenshots, "approval-1280.png") });
    expect(await violations(page)).toEqual([]);
    await page.click("button:has-text('Approve')");
    await page.waitForSelector("[role=dialog] >> text=approved");
    const { tasks } = await eventually(async () => {
      const found = await planner.bus.listTasks({ contractId: "payments/transfer" });
      return found.tasks[0]?.endTime && found;
    });
    expect(tasks[0]?.state).toBe(4);
    expect(faults).toEqual([]);
  });

  test("a policy that is wrong says where, and is saved once it is right", async () => {
    await open("/policies");
    await page.click("button:has-text('New policy')");
    await page.fill("[role=dialog] input[maxlength='128']", "of-the-console");
    await page.fill("[role=dialog] textarea >> nth=0", "permit (principal, action, resource) when { nonsense };");
    await page.click("[role=dialog] button:has-text('Save')");
    await page.waitForSelector("text=INVALID_POLICY");
    faults.length = 0;
    await page.fill("[role=dialog] textarea >> nth=0", "permit (principal, action, resource);");
    await page.click("[role=dialog] button:has-text('Save')");
    await page.waitForSelector("text=Saved as revision 1");
    expect(faults).toEqual([]);
  });

  test("another tab hears of what happens without a stream of its own", async () => {
    const other = await context.newPage();
    stage.listen(other);
    const streams: string[] = [];
    other.on("request", (request) => {
      if (/WatchEvents|TailTraces/.test(request.url())) streams.push(request.url());
    });
    await other.goto(`${url}/#/activity`);
    await other.waitForSelector("[data-live=live]");
    await planner.bus.submitTask({ contractId: "payments/transfer" });
    await other.waitForSelector("text=AWAITING_APPROVAL");
    expect(streams).toEqual([]);
    await page.close();
    page = other;
    // The one that led is gone: this one leads now, and misses nothing.
    await planner.bus.submitTask({ contractId: "research/compose", input: about("after") });
    await eventually(() => streams.length >= 2);
    await isLive();
    expect(faults).toEqual([]);
  });

  test("after a restart of the server the page is live again without a reload", async () => {
    await open("/traces");
    await page.waitForSelector("tr.row");
    await page.evaluate("window.same = true");
    await stage.stop();
    await page.waitForSelector("[data-live=reconnecting]");
    await stage.restart();
    await isLive();
    faults.length = 0;
    const { task } = await clientsAt(url, operatorKey).bus.submitTask({ contractId: "echo" });
    await page.waitForSelector(`tr.row:has-text("${task!.traceId.slice(-8)}")`);
    expect(await page.evaluate("window.same")).toBe(true);
  });

  test("a thousand steps at once reach the page in few changes, and it goes on painting", async () => {
    await open("/activity");
    await isLive();
    // How often the page painted, how often the list was changed, and how much of it there was at once.
    await page.evaluate(`window.seen = { frames: 0, changes: 0, most: 0, beganMs: performance.now() };
      (function frame() { seen.frames++; requestAnimationFrame(frame); })();
      new MutationObserver(() => {
        seen.changes++;
        seen.most = Math.max(seen.most, document.querySelectorAll("main ul.feed li").length);
      }).observe(document.querySelector("main"), { childList: true, subtree: true });`);
    // Each is some ten steps.
    const tasks = Array.from({ length: 120 }, () =>
      planner.bus.submitTask({ contractId: "research/outline", input: about("many") }),
    );
    await Promise.all(tasks);
    await page.waitForSelector("text=COMPLETED");
    type Seen = { frames: number; changes: number; most: number; tookMs: number };
    const seen = await page.evaluate<Seen>("({ ...seen, tookMs: performance.now() - seen.beganMs })");
    // However fast steps come, the page is told of them seven times a second, and what is shown is bounded.
    expect(seen.changes).toBeGreaterThan(0);
    expect(seen.changes).toBeLessThan(10 + (2 * seen.tookMs) / 150);
    expect(seen.most).toBeLessThanOrEqual(500);
    expect(seen.frames).toBeGreaterThan(3);
    expect(faults).toEqual([]);
  });

  test("an organisation's administrator signs in with a key, sees that organisation alone, and is out once the key is revoked", async () => {
    const operator = clientsAt(url, operatorKey);
    const { organization } = await operator.organizations.createOrganization({ name: "alone" });
    const { orgId } = organization!;
    const { secret, apiKey } = await operator.keys.createApiKey({ orgId, role: Role.ORG });
    const theirs = await stage.browser.newContext();
    const tab = await theirs.newPage();
    stage.listen(tab);
    await tab.goto(url);
    await tab.click("text=Sign in with a key instead");
    await tab.fill("input", secret);
    await tab.click("button[type=submit]");
    await tab.waitForSelector("[data-live=live]");
    expect(await tab.locator("select[aria-label=Organisation]").count()).toBe(0);
    for (const [address, title] of pages) {
      const [path] = address.split("?") as [string];
      if (operatorPages.includes(path) || publicPages.includes(path)) continue;
      await tab.goto(`${url}/#${path}`);
      await tab.waitForSelector(`h1:has-text("${title}")`);
      await tab.waitForLoadState("networkidle", { timeout: 500 }).catch(() => {});
      const text = await tab.locator("main").textContent();
      expect(text, path).not.toMatch(/planner|researcher|payments|onerror|moonrise|acme/);
    }
    expect(faults).toEqual([]);
    await operator.keys.revokeApiKey({ orgId, keyId: apiKey!.keyId });
    await tab.waitForSelector("button:has-text('Sign in')");
    faults.length = 0;
    await theirs.close();
  });

  test("signing out leads to the way in, and the cookie is worth nothing any more", async () => {
    const [before] = await context.cookies();
    await page.click("button:has-text('operator')");
    await page.click("button:has-text('Sign out')");
    await page.waitForSelector("text=Sign in");
    const answer = await fetch(`${url}/moltwire.bus.v1.AgentService/ListAgents`, {
      method: "POST",
      headers: {
        "content-type": "application/json",
        "sec-fetch-site": "same-origin",
        cookie: `moltwire_session=${before!.value}`,
      },
      body: "{}",
    });
    expect(answer.status).toBe(401);
  });
});

/** What a file of the build is over the wire to a browser that takes gzip and no more, in bytes. */
function gzipped(url: string): number {
  const file = join("clients/console/dist/assets", new URL(url).pathname.replace("/assets/", ""));
  return statSync(existsSync(`${file}.gz`) ? `${file}.gz` : file).size;
}
