import { describe, expect, test } from "vitest";
import { Role } from "../gen/moltwire/api/v1/access_pb.ts";
import { ReceiptState } from "../gen/moltwire/bus/v1/receipt_pb.ts";
import type { Task } from "../gen/moltwire/bus/v1/task_pb.ts";
import { keyDigest } from "../src/federation/key-text.ts";
import { contract, stateOf, value, worker } from "./bus-fixtures/bus.ts";
import { httpAgent } from "./bus-fixtures/http-agent.ts";
import { type ServerProcess, serverProcess } from "./bus-fixtures/process.ts";
import { storage } from "./bus-fixtures/storage.ts";
import { random } from "./crash/random.ts";
import { credits, proofOf } from "./exchange-fixtures/ledger.ts";
import { type Clients, clientsAt, dialects, eventually, type Org, unique } from "./harness.ts";

/** LEDGER_FULL: 50 kills. */
const full = Boolean(process.env.LEDGER_FULL);
const kills = full ? 50 : 2;
const callers = 16;
const operatorKey = "invoke-crash-0123456789-abcdefghijklmnopqrstuvwxyz";
const program = new URL("bus-fixtures/server.ts", import.meta.url).pathname;

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

describe.each(dialects)("%s", (dialect) => {
  test(
    `${kills} kill -9 while requests are between their reserve and their end: each that completed is paid once, and no other`,
    async () => {
      await using place = await storage(dialect);
      await using agent = await httpAgent();
      const by = random(7);
      agent.handle = ({ task, answer }) => {
        setTimeout(() => answer({ output: task.input }), by.int(1, 40));
        return undefined;
      };
      const options = JSON.stringify({
        ...place.options,
        operatorKeyDigest: keyDigest(operatorKey),
        leaseMs: 1_000,
        drainMs: 100,
      });
      let server: ServerProcess = await serverProcess(program, [options]);
      try {
        const party = async () => {
          const operator = clientsAt(server.url, operatorKey);
          const { organization } = await operator.organizations.createOrganization({ name: unique("crash") });
          const { orgId } = organization!;
          const { secret } = await operator.keys.createApiKey({ orgId, role: Role.ORG });
          return { orgId, as: (): Clients => clientsAt(server.url, secret) };
        };
        const [seller, buyer] = [await party(), await party()];
        const admin = seller.as();
        const org = {
          admin,
          agent: async (init: Parameters<Org["agent"]>[0]) => {
            const { agent: made } = await admin.agents.registerAgent({ name: unique("agent"), ...init });
            return { agentId: made!.agentId, key: "", as: admin };
          },
        } as unknown as Org;
        const listingOf = async (repeatable: boolean) => {
          const contractId = await contract(org, { repeatable });
          await worker(org, contractId, agent);
          const pricing = { requestMicros: 10_001n };
          const { listing } = await admin.catalog.publishListing({
            offer: { title: "t", category: "c", contractId, pricing },
          });
          return listing!.listingId;
        };
        const listings = [await listingOf(true), await listingOf(false)];
        let isOver = false;
        let [done, cut] = [0, 0];
        const lane = async (n: number) => {
          while (!isOver) {
            const call = buyer.as().catalog.invokeListing({ listingId: listings[n % 2]!, input: value({ n }) });
            const counted = call.then(() => void done++);
            await counted.catch(async () => {
              cut++;
              await sleep(50);
            });
          }
        };
        const lanes = Array.from({ length: callers }, (_, n) => lane(n));
        await eventually(() => done > 0);
        for (let kill = 1; kill <= kills; kill++) {
          await sleep(by.int(500, 1_500));
          await server.kill();
          server = await serverProcess(program, [options]);
        }
        await sleep(300);
        isOver = true;
        await Promise.all(lanes);
        const balanceOf = async (as: Clients) => (await as.billing.getBalance({})).balance!;
        await eventually(async () => (await balanceOf(buyer.as())).reservedMicros === 0n);
        const tasks: Task[] = [];
        for (let pageToken = ""; ; ) {
          const page = await buyer.as().bus.listTasks({ pageSize: 250, pageToken });
          tasks.push(...page.tasks);
          pageToken = page.nextPageToken;
          if (!pageToken) break;
        }
        let paid = 0n;
        for (const task of tasks) {
          const isDone = stateOf(task) === "COMPLETED";
          expect([task.taskId, task.receipt!.state]).toEqual([
            task.taskId,
            isDone ? ReceiptState.SETTLED : ReceiptState.VOIDED,
          ]);
          paid += task.receipt!.amountMicros;
          expect(task.receipt!.amountMicros).toBe(isDone ? 10_001n : 0n);
        }
        const completed = BigInt(tasks.filter((task) => stateOf(task) === "COMPLETED").length);
        expect((await balanceOf(buyer.as())).balanceMicros).toBe(credits(1_000) - paid);
        expect((await balanceOf(seller.as())).balanceMicros).toBe(credits(1_000) + completed * 9_001n);
        const proof = await proofOf(clientsAt(server.url, operatorKey));
        expect(proof).toMatchObject({ ok: true, liveReserves: 0n, faults: [] });
        const outcomes = Map.groupBy(tasks, stateOf);
        console.log(dialect, { cut, ...Object.fromEntries([...outcomes].map(([state, of]) => [state, of.length])) });
        expect(completed).toBeGreaterThan(0n);
        expect(cut).toBeGreaterThan(0);
      } finally {
        await server.kill();
      }
    },
    full ? 900_000 : 120_000,
  );
});
