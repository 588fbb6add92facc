import { Code, ConnectError } from "@connectrpc/connect";
import { describe, expect, test } from "vitest";
import { Role } from "../gen/moltwire/api/v1/access_pb.ts";
import { keyDigest } from "../src/federation/key-text.ts";
import { type ServerProcess, serverProcess } from "./bus-fixtures/process.ts";
import { storage } from "./bus-fixtures/storage.ts";
import { random } from "./crash/random.ts";
import { credits, proofOf } from "./exchange-fixtures/ledger.ts";
import { type Clients, clientsAt, dialects, unique } from "./harness.ts";

/** LEDGER_FULL: 20 kills, and 50 between a reserve and its end. */
const full = Boolean(process.env.LEDGER_FULL);
const kills = full ? 20 : 2;
const callers = 32;
const transfers = full ? 10_000 : 1_000;
const operatorKey = "ledger-crash-0123456789-abcdefghijklmnopqrstuvwxyz";
const program = new URL("bus-fixtures/server.ts", import.meta.url).pathname;

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
/** What a call ends with whose server is gone. */
const cut = [Code.Unavailable, Code.Unknown, Code.Aborted, Code.Canceled, Code.Internal];

describe.each(dialects)("%s", (dialect) => {
  test(
    `${transfers} transfers of ${callers} callers, each repeated until it is answered, and ${kills} kill -9: each has happened once`,
    async () => {
      await using place = await storage(dialect);
      const options = JSON.stringify({ ...place.options, operatorKeyDigest: keyDigest(operatorKey) });
      let server: ServerProcess = await serverProcess(program, [options]);
      try {
        const operator = clientsAt(server.url, operatorKey);
        const { organization } = await operator.organizations.createOrganization({ name: unique("crash") });
        const { orgId } = organization!;
        const { secret } = await operator.keys.createApiKey({ orgId, role: Role.ORG });
        let as: Clients = clientsAt(server.url, secret);
        const agents = await Promise.all(
          Array.from({ length: 4 }, async () => (await as.agents.registerAgent({ name: unique("a") })).agent!.agentId),
        );
        const wallets = ["", ...agents];
        const expected = new Map(wallets.map((wallet) => [wallet, wallet === "" ? credits(1_000) : 0n]));
        const run = { begun: 0, answered: 0, refused: 0, cut: 0, over: false };
        const call = async (n: number) => {
          const by = random(n);
          while (run.begun < transfers && !run.over) {
            const id = run.begun++;
            const [fromAgentId, toAgentId] = [by.pick(wallets), by.pick(wallets)];
            if (fromAgentId === toAgentId) continue;
            const amountMicros = BigInt(by.int(1, 40_000_000));
            const transferId = `txn_${id.toString(16).padStart(32, "0")}`;
            for (let isDone = false; !isDone && !run.over; ) {
              try {
                await as.billing.transferCredits({ fromAgentId, toAgentId, amountMicros, transferId });
                expected.set(fromAgentId, expected.get(fromAgentId)! - amountMicros);
                expected.set(toAgentId, expected.get(toAgentId)! + amountMicros);
                run.answered++;
                isDone = true;
              } catch (error) {
                const { code, rawMessage } = ConnectError.from(error);
                isDone = rawMessage.includes("are needed");
                if (isDone) run.refused++;
                else if (!cut.includes(code) || rawMessage.includes("internal fault")) throw error;
                else {
                  run.cut++;
                  await sleep(100);
                }
              }
            }
          }
        };
        const calling = Promise.all(Array.from({ length: callers }, (_, n) => call(n)));
        calling.catch(() => (run.over = true));
        for (let kill = 1; kill <= kills; kill++) {
          while (run.begun < (transfers * kill) / (kills + 1) && !run.over) await sleep(2);
          await server.kill();
          server = await serverProcess(program, [options]);
          as = clientsAt(server.url, secret);
        }
        await calling;
        for (const [agentId, balance] of expected)
          expect([agentId, (await as.billing.getBalance({ agentId })).balance!.balanceMicros]).toEqual([
            agentId,
            balance,
          ]);
        const proof = await proofOf(clientsAt(server.url, operatorKey));
        expect(proof.faults).toEqual([]);
        // And what the organisation began with.
        expect(proof.transfers).toBe(BigInt(run.answered + 1));
        expect(run.cut).toBeGreaterThan(0);
        console.log(`${dialect}: ${JSON.stringify(run)}`);
      } finally {
        await server.kill();
      }
    },
    full ? 900_000 : 120_000,
  );

  const prices = full ? 20_000 : 300;
  const between = full ? 50 : 1;
  test(
    `${prices} prices set aside and then settled, and ${between} kill -9 between the two: nothing is lost or paid twice`,
    async () => {
      await using place = await storage(dialect);
      const options = JSON.stringify({ ...place.options, operatorKeyDigest: keyDigest(operatorKey) });
      const settler = new URL("exchange-fixtures/settler.ts", import.meta.url).pathname;
      const paidAtLeast = async (server: ServerProcess, micros: bigint) => {
        const { billing } = clientsAt(server.url, operatorKey);
        for (let paid = 0n; paid < micros; ) {
          await sleep(10);
          // Nothing was paid before, and there is no such agent either.
          const found = await billing.getBalance({ accountId: "agt_1" }).catch(() => undefined);
          paid = found?.balance?.balanceMicros ?? 0n;
        }
      };
      let halfway = 0n;
      for (let kill = 1; kill <= between; kill++) {
        const aim = Math.floor((prices * kill) / (between + 1));
        // It may go on a little until the kill comes, but not to the end: the kill finds some halfway however late it is.
        await using server = await serverProcess(settler, [options, String(prices), String(aim + 50)]);
        await paidAtLeast(server, 2n * BigInt(aim));
        await server.kill();
        await using after = await serverProcess(program, [options]);
        const proof = await proofOf(clientsAt(after.url, operatorKey));
        expect(proof.faults).toEqual([]);
        halfway += proof.liveReserves;
      }
      await using server = await serverProcess(settler, [options, String(prices)]);
      await paidAtLeast(server, 2n * BigInt(prices));
      const proof = await proofOf(clientsAt(server.url, operatorKey));
      const all = { ok: true, liveReserves: 0n, issuedMicros: BigInt(prices) * 3n, transfers: BigInt(2 * prices + 1) };
      expect(proof).toMatchObject(all);
      // Or a kill came between no two.
      expect(halfway).toBeGreaterThanOrEqual(BigInt(between));
    },
    full ? 900_000 : 120_000,
  );
});
