/** Three server processes over one PostgreSQL database behind a balancer, killed and restarted in turn, and their database taken away, while clients go on. */
import { randomBytes } from "node:crypto";
import { durationFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { type CallOptions, Code, ConnectError } from "@connectrpc/connect";
import { describe, expect, test } from "vitest";
import { ErrorInfoSchema } from "../../gen/google/rpc/error_details_pb.ts";
import { BudgetPeriod, BudgetScope } from "../../gen/moltwire/bus/v1/budget_pb.ts";
import { JobState } from "../../gen/moltwire/queue/v1/job_pb.ts";
import type { Message } from "../../gen/moltwire/relay/v1/message_pb.ts";
import { keyDigest } from "../../src/federation/key-text.ts";
import { type Balancer, balancer } from "../balancer.ts";
import { contract, echoEndpoint, value } from "../bus-fixtures/bus.ts";
import { pullEndpoint } from "../bus-fixtures/instance.ts";
import { type ServerProcess, serverProcess } from "../bus-fixtures/process.ts";
import { storage } from "../bus-fixtures/storage.ts";
import { type Wire, wireTo } from "../db-fixtures/wire.ts";
import { proofOf } from "../exchange-fixtures/ledger.ts";
import { type Clients, clientsAt, dialects, eventually, newOrg, type Org, type OrgAgent, unique } from "../harness.ts";
import { json, leaseOf } from "../queue-fixtures/jobs.ts";
import { create as createSchedule } from "../queue-fixtures/schedules.ts";
import { says, toAgent } from "../relay-fixtures/relay.ts";

/** FULL: ten minutes of kills, and 30 s without the database three times over. */
const full = Boolean(process.env.FULL);
const kills = full ? 300 : 10;
const killEveryMs = 2_000;
const outages = full ? 3 : 1;
const outageMs = full ? 30_000 : 6_000;
const replicas = 3;
const minuteMs = 60_000;
const operatorKey = "replicas-0123456789-abcdefghijklmnopqrstuvwxyz";
const program = new URL("../bus-fixtures/server.ts", import.meta.url).pathname;

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** What a call may fail with while replicas and the database come and go; anything else is a broken promise. */
const passing = new Set([
  "DEADLINE_EXCEEDED",
  "STORAGE_UNAVAILABLE",
  "OVERLOADED",
  "SHUTTING_DOWN",
  "OUTCOME_UNKNOWN",
  "STILL_RUNNING",
]);

const reasonOf = (error: unknown): string => ConnectError.from(error).findDetails(ErrorInfoSchema)[0]?.reason ?? "";

/** The servers, and what happened to calls. */
class Replicas {
  readonly servers: (ServerProcess | undefined)[] = [];
  readonly cut = new Map<string, number>();
  over = false;
  readonly #options: string;
  #balancer: Balancer | undefined;
  readonly #clients = new Map<string | undefined, Clients[]>();
  #turn = 0;

  constructor(options: object) {
    this.#options = JSON.stringify({ ...options, operatorKeyDigest: keyDigest(operatorKey), leaseMs: 3_000 });
  }

  async start(): Promise<void> {
    for (let n = 0; n < replicas; n++) await this.restart(n);
    this.#balancer = await balancer(() => this.servers.flatMap((server) => (server ? [server.url] : [])));
  }

  async kill(n: number): Promise<void> {
    const server = this.servers[n];
    this.servers[n] = undefined;
    await server?.kill();
  }

  async restart(n: number): Promise<void> {
    this.servers[n] = await serverProcess(program, [this.#options]);
  }

  /** Clients of a key: one after another of as many as there are replicas, each over a connection of its own. A connection that was cut is made anew, at whichever replica is next. */
  readonly as = (key: string | undefined): Clients => {
    const known = this.#clients.get(key) ?? Array.from({ length: replicas }, () => clientsAt(this.#balancer!.url, key));
    this.#clients.set(key, known);
    return known[this.#turn++ % replicas]!;
  };

  /** Calls with one idempotency key until there is an answer, or the error that is one; over a new connection after each that was cut. */
  async answer<T>(key: string, call: (by: Clients, options: CallOptions) => Promise<T>): Promise<T> {
    const headers = { "idempotency-key": unique("call") };
    for (;;) {
      try {
        return await call(this.as(key), { headers, timeoutMs: 20_000 });
      } catch (error) {
        this.passes(error);
        await sleep(20);
      }
    }
  }

  /** Throws what is not the end of a connection or a reason to try again. */
  passes(error: unknown): void {
    const { code } = ConnectError.from(error);
    const reason = reasonOf(error);
    const cut =
      reason === "" &&
      [Code.Unavailable, Code.Internal, Code.Unknown, Code.Aborted, Code.Canceled, Code.DeadlineExceeded].includes(
        code,
      );
    if (!passing.has(reason) && !cut) throw error;
    const name = reason || Code[code];
    this.cut.set(name, (this.cut.get(name) ?? 0) + 1);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.over = true;
    await this.#balancer?.[Symbol.asyncDispose]();
    await Promise.all(this.servers.map((server) => server?.[Symbol.asyncDispose]()));
  }
}

/** Work that goes on until the run is over, and what is to be true of it in the end. */
type Load = { readonly run: () => Promise<void>; readonly verify: () => Promise<void> };

type MakeLoad = (given: At) => Promise<Load>;

type At = { readonly at: Replicas; readonly org: Org; readonly agents: readonly OrgAgent[] };

/** Jobs are claimed under leases of a second; no claim begins before the lease of the one before has ended, and none is lost. */
async function queueLoad({ at, agents }: At): Promise<Load> {
  const queue = unique("queue");
  const leaseMs = 1_000;
  const submitted = new Set<string>();
  const claims = new Map<string, { readonly fromMs: number; readonly untilMs: number }[]>();
  const submitting = async (): Promise<void> => {
    const { key } = agents[0]!;
    while (!at.over) {
      // No more than a slow machine works off.
      await sleep(submitted.size > claims.size + 100 ? 1_000 : 100);
      const jobs = Array.from({ length: 10 }, (_, n) => ({
        queue,
        payload: json(n),
        maxAttempts: 100,
        backoff: { initial: durationFromMs(1) },
      }));
      const reply = await at.answer(key, (by, options) => by.queues.submitJobs({ jobs }, options));
      for (const { job } of reply.results) submitted.add(job!.jobId);
    }
  };
  const working = async (n: number): Promise<void> => {
    const { key } = agents[n % agents.length]!;
    let by = at.as(key);
    const pending = async () => {
      const [stats] = (await by.queues.getQueueStats({ queue })).queues;
      return stats !== undefined && stats.scheduled + stats.pending + stats.leased > 0n;
    };
    for (let round = 0; ; round++) {
      try {
        const { jobs } = await by.queues.claimJobs({ queues: [queue], maxJobs: 3, lease: durationFromMs(leaseMs) });
        for (const { job, leaseExpireTime } of jobs) {
          const lease = { fromMs: timestampMs(job!.startTime!), untilMs: timestampMs(leaseExpireTime!) };
          claims.set(job!.jobId, [...(claims.get(job!.jobId) ?? []), lease]);
        }
        if (round % 7 === 0) await sleep(leaseMs + 200); // a worker that stalls
        for (const job of jobs)
          await by.queues.completeJob(leaseOf(job)).catch((error: unknown) => {
            if (reasonOf(error) !== "LEASE_LOST") throw error;
          });
        if (jobs.length === 0) {
          if (at.over && !(await pending())) return;
          await sleep(50);
        }
      } catch (error) {
        at.passes(error);
        await sleep(20);
        by = at.as(key);
      }
    }
  };
  return {
    run: async () => void (await Promise.all([submitting(), ...Array.from({ length: 6 }, (_, n) => working(n))])),
    async verify() {
      expect(submitted.size).toBeGreaterThan(0);
      const by = at.as(agents[0]!.key);
      const lost: string[] = [];
      for (const jobId of submitted) {
        const { job } = await by.queues.getJob({ jobId });
        if (job!.state !== JobState.COMPLETED) lost.push(`${jobId}: ${job!.state}`);
      }
      expect(lost).toEqual([]);
      const twice: string[] = [];
      for (const [jobId, leases] of claims) {
        const inOrder = leases.toSorted((a, b) => a.fromMs - b.fromMs);
        inOrder.forEach(({ fromMs }, n) => {
          if (n > 0 && fromMs < inOrder[n - 1]!.untilMs) twice.push(jobId);
        });
      }
      expect(twice).toEqual([]);
    },
  };
}

/** Each sender's messages arrive as 1 … n, once each, whatever was cut; so they do on a stream that resumes. */
async function relayLoad({ at, org, agents }: At): Promise<Load> {
  const reader = await org.agent();
  const sent = agents.map(() => 0);
  const streamed: Message[] = [];
  const sending = async (n: number): Promise<void> => {
    while (!at.over) {
      const payload = json(sent[n]! + 1);
      await at.answer(agents[n]!.key, (by, options) => by.relay.send({ ...toAgent(reader.agentId), payload }, options));
      sent[n]!++;
      await sleep(10);
    }
  };
  const total = () => sent.reduce((sum, n) => sum + n, 0);
  let done = false;
  const reading = async (): Promise<void> => {
    while (!done || streamed.length < total()) {
      const leave = new AbortController();
      const timer = setInterval(() => done && streamed.length >= total() && leave.abort(), 50);
      try {
        const afterSequence = streamed.at(-1)?.sequence ?? 0n;
        for await (const { event } of at.as(reader.key).relay.subscribe({ afterSequence }, { signal: leave.signal })) {
          if (event.case === "message") streamed.push(event.value);
          if (done && streamed.length >= total()) break;
        }
      } catch (error) {
        if (!leave.signal.aborted) at.passes(error);
        await sleep(20);
      } finally {
        clearInterval(timer);
        leave.abort();
      }
    }
  };
  return {
    async run() {
      const stream = reading();
      await Promise.all(agents.map((_, n) => sending(n)));
      done = true;
      await stream;
    },
    async verify() {
      expect(Math.min(...sent)).toBeGreaterThan(0);
      expect(streamed.map(({ sequence }) => Number(sequence))).toEqual(streamed.map((_, n) => n + 1));
      agents.forEach(({ agentId }, n) => {
        const own = streamed.filter((message) => message.senderAgentId === agentId).map(says);
        expect(own).toEqual(Array.from({ length: sent[n]! }, (_, i) => i + 1));
      });
    },
  };
}

/** Credits go round; however often a transfer is asked for again it moves them once, and the books sum to zero. */
async function ledgerLoad({ at, org, agents }: At): Promise<Load> {
  const amountMicros = 1_000n;
  const moved = agents.map(() => 0);
  const moving = async (n: number): Promise<void> => {
    while (!at.over) {
      const transferId = `txn_${randomBytes(16).toString("hex")}`;
      const toAgentId = agents[n]!.agentId;
      await at.answer(org.adminKey, (by, options) =>
        by.billing.transferCredits({ toAgentId, amountMicros, transferId }, options),
      );
      // Without an idempotency key: the id alone makes it one transfer, through whichever replica.
      await at.answer(org.adminKey, (by) => by.billing.transferCredits({ toAgentId, amountMicros, transferId }));
      moved[n]!++;
      await sleep(20);
    }
  };
  return {
    run: async () => void (await Promise.all(agents.map((_, n) => moving(n)))),
    async verify() {
      expect(Math.min(...moved)).toBeGreaterThan(0);
      const by = at.as(org.adminKey);
      for (const [n, { agentId }] of agents.entries()) {
        const { balance } = await by.billing.getBalance({ agentId });
        expect(balance!.availableMicros).toBe(amountMicros * BigInt(moved[n]!));
      }
      const { sumMicros } = await proofOf(at.as(operatorKey));
      expect(sumMicros).toBe(0n);
    },
  };
}

/** Tasks that reserve ten tokens each are let in until the budget is used up, and not one more. */
async function budgetLoad({ at, org, agents }: At): Promise<Load> {
  const contractId = await contract(org, { estimatedTokens: 10n, timeoutMs: 600_000 });
  // Nobody does them, so that what they reserve stays reserved.
  await org.agent({ name: unique("worker"), capabilities: [contractId], endpoint: pullEndpoint });
  const scope = { scope: BudgetScope.AGENT, period: BudgetPeriod.TOTAL };
  const limits = agents.map((_, n) => 300 + 10 * n);
  for (const [n, { agentId }] of agents.entries())
    await org.admin.budgets.setBudget({ ...scope, subjectId: agentId, limitTokens: BigInt(limits[n]!) });
  const accepted = agents.map(() => 0);
  let highest = 0;
  const asking = async (n: number): Promise<void> => {
    const { key, agentId } = agents[n]!;
    while (!at.over) {
      try {
        await at.answer(key, (by, options) =>
          by.bus.submitTask({ contractId, input: value({}), returnImmediately: true }, options),
        );
        accepted[n]!++;
      } catch (error) {
        if (reasonOf(error) !== "BUDGET_EXCEEDED") throw error;
      }
      const { budget } = await at.answer(org.adminKey, (by) => by.budgets.getBudget({ ...scope, subjectId: agentId }));
      const { spent, reserved } = budget!.tokens!;
      highest = Math.max(highest, Number(spent + reserved) - limits[n]!);
      await sleep(50);
    }
  };
  return {
    run: async () => void (await Promise.all(agents.map((_, n) => asking(n)))),
    async verify() {
      expect(highest).toBeLessThanOrEqual(0);
      expect(Math.min(...accepted)).toBeGreaterThan(0);
      expect(accepted.filter((count, n) => 10 * count > limits[n]!)).toEqual([]);
    },
  };
}

/** Of those who decide on one task at once, one does; the others are told that it is decided. */
async function approvalLoad({ at, org, agents }: At): Promise<Load> {
  const contractId = await contract(org, { approvalRequired: true, repeatable: true });
  await org.agent({ name: unique("worker"), capabilities: [contractId], endpoint: echoEndpoint });
  const winners: number[] = [];
  const deciding = async (): Promise<void> => {
    while (!at.over) {
      const { task } = await at.answer(agents[0]!.key, (by, options) =>
        by.bus.submitTask({ contractId, input: value({}), returnImmediately: true }, options),
      );
      const { approvalId } = task!;
      const approve = () =>
        at.answer<unknown>(org.adminKey, (by, options) => by.approvals.approve({ approvalId }, options));
      const deny = () => at.answer<unknown>(org.adminKey, (by, options) => by.approvals.deny({ approvalId }, options));
      const results = await Promise.allSettled([approve(), deny(), approve(), deny()]);
      for (const result of results) {
        if (result.status === "rejected" && reasonOf(result.reason) !== "FAILED_PRECONDITION") throw result.reason;
      }
      // A second word of the same party that says the same is answered as it stands.
      const says = (...of: number[]) => of.some((n) => results[n]!.status === "fulfilled");
      winners.push(Number(says(0, 2)) + Number(says(1, 3)));
      await sleep(50);
    }
  };
  return {
    run: deciding,
    async verify() {
      expect(winners.length).toBeGreaterThan(0);
      expect(winners.filter((count) => count !== 1)).toEqual([]);
    },
  };
}

/** Schedules of each minute make one job for a minute. */
async function scheduleLoad({ at, agents }: At): Promise<Load> {
  const { key } = agents[0]!;
  const queue = unique("scheduled");
  const schedules = await Promise.all(
    Array.from({ length: 10 }, () => createSchedule(at.as(key), "* * * * *", { job: { queue } })),
  );
  const fromMs = Date.now();
  return {
    // Past the next full minute, so that there is one.
    run: async () => void (await sleep(Math.ceil((fromMs + 1) / minuteMs) * minuteMs - fromMs + 500)),
    async verify() {
      const by = at.as(key);
      await eventually(async () => {
        const all = await Promise.all(schedules.map(({ scheduleId }) => by.schedules.getSchedule({ scheduleId })));
        return all.every(({ schedule }) => schedule!.runCount > 0n);
      });
      const seen = new Map<string, number>();
      let runs = 0;
      for (const { scheduleId } of schedules) {
        await by.schedules.updateSchedule({
          scheduleId,
          change: { disabled: true },
          updateMask: { paths: ["disabled"] },
        });
        runs += Number((await by.schedules.getSchedule({ scheduleId })).schedule!.runCount);
      }
      for (;;) {
        const { jobs } = await by.queues.claimJobs({ queues: [queue], maxJobs: 100, lease: durationFromMs(600_000) });
        for (const { job } of jobs) {
          const name = `${job!.scheduleId} ${job!.nominalTime && timestampMs(job!.nominalTime)}`;
          seen.set(name, (seen.get(name) ?? 0) + 1);
        }
        if (jobs.length === 0) break;
      }
      expect([...seen.values()].filter((count) => count !== 1)).toEqual([]);
      expect(seen.size).toBe(runs);
    },
  };
}

const withoutTime: readonly MakeLoad[] = [queueLoad, relayLoad, ledgerLoad, budgetLoad, approvalLoad];
/** They wait for the next full minute. */
const all: readonly MakeLoad[] = [...withoutTime, scheduleLoad];

/** Runs loads while something happens to the replicas, then verifies each. */
async function underLoad(at: Replicas, kinds: readonly MakeLoad[], disturb: () => Promise<void>): Promise<void> {
  const org = await newOrg(at.as(operatorKey), at.as, unique("org"));
  const agents = await Promise.all([1, 2, 3].map(() => org.agent()));
  const loads = [];
  for (const load of kinds) loads.push(await load({ at, org, agents }));
  const running = Promise.all(loads.map((load) => load.run()));
  running.catch(() => (at.over = true));
  try {
    await disturb();
  } finally {
    at.over = true;
  }
  await running;
  for (const { verify } of loads) await verify();
}

describe.runIf(dialects.includes("postgres"))("three replicas behind a balancer", () => {
  test(
    `keep every promise while one after another is killed, ${kills} times`,
    async () => {
      await using place = await storage("postgres");
      await using at = new Replicas(place.options);
      await at.start();
      await underLoad(at, all, async () => {
        for (let kill = 0; kill < kills && !at.over; kill++) {
          await sleep(killEveryMs);
          await at.kill(kill % replicas);
          await at.restart(kill % replicas);
        }
      });
      console.log("calls cut or refused for a while:", Object.fromEntries(at.cut));
      expect([...at.cut.values()].reduce((sum, n) => sum + n, 0)).toBeGreaterThan(0);
    },
    full ? 3_600_000 : 900_000,
  );

  test.each(["refuses connections", "says nothing"] as const)(
    "keep every promise while the database %s, answer that it is away, and go on by themselves when it is back",
    async (how) => {
      await using place = await storage("postgres");
      await using wire: Wire = await wireTo((place.options as { readonly databaseUrl: string }).databaseUrl);
      await using at = new Replicas({ databaseUrl: wire.url });
      await at.start();
      await underLoad(at, full ? all : withoutTime, async () => {
        for (let outage = 0; outage < outages && !at.over; outage++) {
          await sleep(1_000);
          if (how === "says nothing") wire.silence();
          else await wire.refuse();
          const isAway = () => (at.cut.get("STORAGE_UNAVAILABLE") ?? 0) > outage;
          await eventually(isAway, 120_000);
          await sleep(outageMs);
          await wire.mend();
          const backMs = performance.now();
          await at.answer(operatorKey, (by, options) =>
            by.organizations.createOrganization({ name: unique("back") }, options),
          );
          console.log(`the database ${how}: back after ${Math.round(performance.now() - backMs)} ms`);
        }
        await sleep(2_000);
      });
      console.log("calls cut or refused for a while:", Object.fromEntries(at.cut));
    },
    full ? 3_600_000 : 900_000,
  );
});
