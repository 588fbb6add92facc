/** A browser in front of a server that has something of everything, and what tests look for in its pages. */
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";
import { type Browser, type BrowserContext, chromium, type Page } from "playwright-core";
import type { Db } from "../../src/db/db.ts";
import { createServer, type Server } from "../../src/server.ts";
import { type Clients, clientsAt } from "../harness.ts";
import { seed } from "./seed.ts";
import { seedTrade, type Trade } from "./seed-trade.ts";

export const password = "correct horse battery staple";
export const screenshots = join(import.meta.dirname, "screenshots");
export const executablePath = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(
  existsSync,
);
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

export type Stage = {
  /** The server's; the same after a restart. */
  readonly url: string;
  readonly operatorKey: string;
  readonly operator: Clients;
  /** An agent that asks for work. */
  readonly planner: Clients;
  readonly trade: Trade;
  readonly browser: Browser;
  readonly context: BrowserContext;
  readonly page: Page;
  /** What the browser complained of since a test last emptied it. */
  readonly faults: string[];
  /** Writes down what the browser complains of in another page too. */
  listen(to: Page): void;
  /** Beside the protocol, for what would take too long by it. */
  db(): Db;
  stop(): Promise<void>;
  restart(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
};

/** Builds the console if it is stale, starts the server, fills it, and opens an empty page. */
export async function openStage(): Promise<Stage> {
  execFileSync(process.execPath, ["clients/console/build.ts", "--if-stale"], { stdio: "inherit" });
  const data = mkdtempSync(join(tmpdir(), "console-data-"));
  let server: Server;
  let port = 0;
  const restart = async () => {
    const log = pino({ level: "error" });
    server = await createServer({ data, port, rateLimit: 0, egressAllow: ["127.0.0.1"], drainMs: 1_000, log });
    port = Number(new URL(await server.listen()).port);
  };
  await restart();
  const operatorKey = server!.operatorKey!;
  const url = `http://127.0.0.1:${port}`;
  const operator = clientsAt(url, operatorKey);
  const planner = await seed(url, operatorKey);
  const trade = await seedTrade(url, operatorKey, planner);
  await operator.maintenance.setAdminPassword({ password });
  const browser = await chromium.launch({ executablePath: executablePath!, args: ["--no-sandbox"] });
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, colorScheme: "light" });
  const page = await context.newPage();
  const faults: string[] = [];
  const listen = (to: Page) => {
    to.on("console", (message) => {
      if (message.type() === "error" || message.type() === "warning") faults.push(`${to.url()} ${message.text()}`);
    });
    to.on("pageerror", (error) => faults.push(`${to.url()} ${error.message}`));
  };
  listen(page);
  return {
    ...{ url, operatorKey, operator, planner, trade, browser, context, page, faults, listen, restart },
    db: () => server.app.db,
    stop: () => server.close(),
    async [Symbol.asyncDispose]() {
      await browser.close();
      await server.close();
      rmSync(data, { recursive: true, force: true });
    },
  };
}

/** What fades in or changes its colour is measured once it has: two frames for it to begin, and then until nothing moves that ends. */
const still = `new Promise((frame) => requestAnimationFrame(() => requestAnimationFrame(frame))).then(() =>
  Promise.all(document.getAnimations().filter(({ effect }) => effect.getComputedTiming().endTime !== Infinity).map(({ finished }) => finished.catch(() => {}))))`;

/** What axe finds that is serious, by rule and place. */
export async function violations(page: Page): Promise<string[]> {
  for (let times = 0; times < 2; times++) await page.evaluate(`${still}.then(() => {})`);
  await page.evaluate(axe);
  type Found = { violations: { id: string; impact: string; nodes: { target: string[]; html: string }[] }[] };
  const found = await page.evaluate<Found>(
    "axe.run().then(({ violations }) => ({ violations: violations.map(({ id, impact, nodes }) => ({ id, impact, nodes: nodes.map(({ target, html }) => ({ target, html })) })) }))",
  );
  return found.violations
    .filter(({ impact }) => impact === "serious" || impact === "critical")
    .map(
      ({ id, nodes }) =>
        `${id}: ${nodes
          .map(({ html }) => html.slice(0, 200))
          .slice(0, 3)
          .join(", ")}`,
    );
}
