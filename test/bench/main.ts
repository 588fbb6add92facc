/**
 * The bench: `npm run bench` measures, prints a table and the ratios, and writes bench-result.json; `npm run bench -- --quick` takes less than 90 s.
 * Redis (redis-server) and pg-boss are measured beside it where they are; it says when they are not.
 * Rounds are interleaved, so that what else the machine does falls on all cases alike; compare ratios of one run, not figures of two.
 */
import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import pg from "pg";
import type { TestProject } from "vitest/node";
import setupPostgres from "../postgres-server.ts";
import { startBacklog } from "./backlog.ts";
import {
  autocommitCase,
  autocommitSetCase,
  type Case,
  changeCase,
  claimCase,
  clientCases,
  cycleCase,
  getCase,
  governedCase,
  levels,
  plainGetCase,
  setCase,
  startClientLoads,
  submitCase,
  unaryCases,
} from "./cases.ts";
import { type Governed, govern, measureCedarShare } from "./governed.ts";
import { type Loader, startLoader } from "./loader.ts";
import { lookAtMachine, processorUs } from "./machine.ts";
import { bossCase, redisCases, startBoss, startRedis } from "./peers.ts";
import { ratiosOf, type Sample, toRatios, toRow, toTable } from "./report.ts";
import { type Moltwire, startBaseline, startMoltwire, type Target } from "./targets.ts";

const { values: flags } = parseArgs({
  options: {
    quick: { type: "boolean", default: false },
    postgres: { type: "boolean", default: false },
    folder: { type: "string", default: tmpdir() },
    out: { type: "string", default: "bench-result.json" },
    help: { type: "boolean", default: false },
  },
});
const help = `Usage: npm run bench -- [flags]
  --quick          shorter rounds, and 20,000 pending jobs for a million: less than 90 s
  --postgres       the durable commands on PostgreSQL too (MOLTWIRE_TEST_DATABASE_URL, else a private server without fsync)
  --folder FOLDER  where the data lies while it runs (the folder for temporary files)
  --out FILE       where the result goes (bench-result.json)`;
const rounds = 3;
const warmMs = flags.quick ? 150 : 500;
const measureMs = flags.quick ? 300 : 2_000;
const backlogs = [1_000, flags.quick ? 20_000 : 1_000_000];
const claimCallers = 16;
const cedarCallers = 64;

/** What was acknowledged, by case, warm-up included. */
type Tally = { acknowledged: number; distinctIds: number; failures: string[]; samples: Sample[] };

async function main(): Promise<void> {
  const folder = mkdtempSync(join(flags.folder, "moltwire-bench-"));
  const cleanups: (() => unknown)[] = [() => rmSync(folder, { recursive: true, force: true })];
  try {
    const machine = lookAtMachine(folder);
    const baseline = await startBaseline(folder);
    cleanups.push(() => baseline.process.kill());
    const servers = [await startMoltwire("SQLite", { MOLTWIRE_DATA: join(folder, "data") })];
    cleanups.push(() => servers[0]!.process.kill());
    const postgres = flags.postgres ? await startPostgres() : undefined;
    if (postgres) {
      cleanups.push(postgres.stop);
      const server = await startMoltwire(postgres.name, { MOLTWIRE_DATABASE_URL: postgres.url });
      cleanups.push(() => server.process.kill());
      servers.push(server);
    }
    const loader = await startLoader();
    cleanups.push(() => loader.close());
    const absent: string[] = [];
    const redis = await startRedis(folder);
    if (redis) cleanups.push(() => redis.process.kill());
    else absent.push("Redis: there is no redis-server in PATH.");
    let database: Awaited<ReturnType<typeof startPostgres>> | undefined = postgres;
    const boss = await startBoss(async () => {
      if (!database) cleanups.push((database = await startPostgres()).stop);
      return openDatabase(database.url, "boss");
    });
    if (boss) cleanups.push(() => boss.close());
    else absent.push("pg-boss: there is no such package here; NODE_PATH may name the folder it is in.");
    const claims: Case[] = [];
    for (const pending of backlogs) {
      const places = [
        { name: "SQLite", storage: { MOLTWIRE_DATA: join(folder, `pending-${pending}`) } as Record<string, string> },
      ];
      if (postgres) {
        const MOLTWIRE_DATABASE_URL = await openDatabase(postgres.url, `pending_${pending}`);
        places.push({ name: postgres.name, storage: { MOLTWIRE_DATABASE_URL } });
      }
      for (const { name, storage } of places) {
        process.stderr.write(`${pending} pending jobs, ${name}\n`);
        const backlog = await startBacklog(name, storage, pending);
        cleanups.push(() => backlog.process.kill());
        claims.push(claimCase(backlog, claimCallers));
      }
    }
    const loads = await Promise.all(servers.map((server) => startClientLoads(server)));
    cleanups.push(() => Promise.all(loads.flatMap((each) => Object.values(each)).map((load) => load.close())));
    const governed = await Promise.all(servers.map((server) => govern(server)));
    const cases = [
      ...unaryCases(baseline, servers[0]!),
      ...levels.flatMap((callers) => [
        autocommitCase(baseline, callers),
        autocommitSetCase(baseline, callers),
        plainGetCase(baseline, callers),
        ...servers.flatMap((server) => [
          changeCase(server, callers),
          submitCase(server, callers),
          setCase(server, callers),
          getCase(server, callers),
          cycleCase(server, callers),
          ...clientCases(server, loads[servers.indexOf(server)]!, callers),
        ]),
        ...governed.map((org) => governedCase(org, callers)),
        ...(redis ? redisCases(redis, callers) : []),
        ...(boss ? [bossCase(boss, database!.name, callers)] : []),
      ]),
      ...claims,
    ];
    const tallies = await measureAll(loader, cases);
    const rows = cases.map((each) => toRow(each, tallies.get(each)!.samples));
    const ratios = ratiosOf(rows);
    const wrong = await verify(baseline, servers, governed, tallies);
    const cedarShare = await measureCedarShare(loader, folder, measureMs, cedarCallers);
    const { processor, processors, node, loadBefore, syncUs, dataInMemory } = machine;
    console.log(
      `${processors} × ${processor}, Node ${node}, load before ${loadBefore.toFixed(1)}, fdatasync ${syncUs.toFixed(0)} µs`,
    );
    if (dataInMemory) console.log("The data lies in memory, where fsync costs nothing: choose another --folder.");
    console.log(`\n${toTable(rows)}\n\n${toRatios(ratios)}\n`);
    console.log(
      `Cedar's share of the server's time for a governed SubmitTask @${cedarCallers}: ${(100 * cedarShare).toFixed(1)} %\n`,
    );
    for (const line of absent) console.log(`Not measured: ${line}`);
    console.log(wrong.length === 0 ? "Everything acknowledged was found to be done." : wrong.join("\n"));
    const result = {
      time: new Date().toISOString(),
      quick: flags.quick,
      rounds,
      measureMs,
      machine,
      rows,
      ratios,
      cedarShare,
      absent,
      wrong,
    };
    writeFileSync(flags.out, `${JSON.stringify(result, undefined, 2)}\n`);
    if (wrong.length > 0) process.exitCode = 1;
  } finally {
    for (const cleanup of cleanups.reverse()) await cleanup();
  }
}

/** Every case in every round, one after the other. */
async function measureAll(loader: Loader, cases: readonly Case[]): Promise<Map<Case, Tally>> {
  const tallies = new Map<Case, Tally>();
  for (const each of cases) tallies.set(each, { acknowledged: 0, distinctIds: 0, failures: [], samples: [] });
  for (let round = 1; round <= rounds; round++) {
    if (!process.stderr.isTTY) process.stderr.write(`round ${round} of ${rounds}\n`);
    for (const each of cases) {
      if (process.stderr.isTTY) process.stderr.write(`round ${round} of ${rounds}: ${each.name}\n`);
      const tally = tallies.get(each)!;
      await measure(loader, each, warmMs, tally);
      tally.samples.push(await measure(loader, each, measureMs, tally));
    }
  }
  return tallies;
}

async function measure(
  loader: Loader,
  { target, templates, idPrefix, speaks = "http", loader: own }: Case,
  ms: number,
  tally: Tally,
): Promise<Sample> {
  const before = processorUs(target.process.pid);
  const outcome = await (own ?? loader).measure({ port: target.port, speaks, templates, idPrefix, measureMs: ms });
  const after = processorUs(target.process.pid);
  tally.acknowledged += outcome.acknowledged;
  tally.distinctIds += outcome.distinctIds ?? 0;
  if (outcome.failure !== undefined) tally.failures.push(`${outcome.failed} failed: ${outcome.failure}`);
  const serverUs =
    before === undefined || after === undefined ? undefined : (after - before) / Math.max(1, outcome.acknowledged);
  return { ...outcome, serverUs };
}

/** What differs between what was acknowledged and what was done. */
async function verify(
  baseline: { acknowledged(): Promise<number>; written(): Promise<number> },
  servers: readonly Moltwire[],
  governed: readonly Governed[],
  tallies: ReadonlyMap<Case, Tally>,
): Promise<string[]> {
  const wrong = [...tallies].flatMap(([{ name }, { failures }]) => failures.map((failure) => `${name}: ${failure}`));
  const sum = (what: Case["what"], target: Target | undefined, of: (tally: Tally) => number) =>
    [...tallies]
      .filter(([each]) => each.what === what && (!target || each.target === target))
      .reduce((total, [, tally]) => total + of(tally), 0);
  const compare = (name: string, told: number, done: number) => {
    if (told !== done) wrong.push(`${name}: ${told} acknowledged, ${done} done`);
  };
  compare(
    "autocommit",
    sum("autocommit", undefined, (tally) => tally.acknowledged),
    await baseline.acknowledged(),
  );
  compare(
    "autocommit of SetEntry",
    sum("autocommit-set", undefined, (tally) => tally.acknowledged),
    await baseline.written(),
  );
  for (const server of servers) {
    const told = sum("submit", server, (tally) => tally.acknowledged);
    const tasks = await server.tasks();
    compare(
      `UpdateAgent, ${server.engine}`,
      sum("change", server, (tally) => tally.acknowledged),
      await server.changes(),
    );
    compare(
      `SetEntry, ${server.engine}`,
      sum("set", server, (tally) => tally.acknowledged) + sum("client-set", server, (tally) => tally.acknowledged),
      await server.writes(),
    );
    compare(
      `SubmitTask, ${server.engine}, ids`,
      told,
      sum("submit", server, (tally) => tally.distinctIds),
    );
    compare(`SubmitTask, ${server.engine}, tasks`, told, tasks.all);
    compare(`SubmitTask, ${server.engine}, completed`, told, tasks.completed);
    compare(
      `queue cycle, ${server.engine}`,
      sum("cycle", server, (tally) => tally.acknowledged) + sum("client-cycle", server, (tally) => tally.acknowledged),
      await server.completedJobs(),
    );
  }
  for (const org of governed) {
    const told = sum("governed", org, (tally) => tally.acknowledged);
    const tasks = await org.tasks();
    compare(`governed SubmitTask, ${org.engine}, tasks`, told, tasks.all);
    compare(`governed SubmitTask, ${org.engine}, completed`, told, tasks.completed);
  }
  return wrong;
}

/** A new database of the server; gives its address. */
async function openDatabase(url: string, prefix: string): Promise<string> {
  const name = `${prefix}_${randomBytes(6).toString("hex")}`;
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  await client.query(`create database ${name}`);
  await client.end();
  return Object.assign(new URL(url), { pathname: `/${name}` }).href;
}

/** The PostgreSQL server of the tests. */
async function startPostgres(): Promise<{ name: string; url: string; stop: () => Promise<void> }> {
  let given: { url: string } | { missing: string } = { missing: "nothing was provided" };
  const provide = (_name: string, value: typeof given) => void (given = value);
  const stop = await setupPostgres({ provide } as unknown as TestProject);
  if ("missing" in given) throw new Error(`there is no PostgreSQL: ${(given as { missing: string }).missing}`);
  const { url } = given as { url: string };
  return { name: process.env.MOLTWIRE_TEST_DATABASE_URL ? "PostgreSQL" : "PostgreSQL without fsync", url, stop };
}

if (flags.help) console.log(help);
else await main();
