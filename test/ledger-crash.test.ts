import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { Code, ConnectError } from "@connectrpc/connect";
import { describe, expect, test } from "vitest";
import { Role } from "../gen/moltwire/api/v1/access_pb.ts";
import { TransactionStep } from "../gen/moltwire/exchange/v1/ledger_pb.ts";
import { type Db, sql } from "../src/db/db.ts";
import { openPostgres } from "../src/db/postgres.ts";
import { openSqlite } from "../src/db/sqlite.ts";
import type { Wish } from "../src/exchange/ledger/transfer.ts";
import { keyDigest } from "../src/federation/key-text.ts";
import { type ServerProcess, serverProcess } from "./bus-fixtures/process.ts";
import { storage } from "./bus-fixtures/storage.ts";
import { random } from "./crash/random.ts";
import { type Answer, type CallerRun, isWritten, readAnswers } from "./exchange-fixtures/answers.ts";
import { credits, proofOf } from "./exchange-fixtures/ledger.ts";
import { payers, randomChains } from "./exchange-fixtures/random-chains.ts";
import { type Clients, clientsAt, dialects, unique } from "./harness.ts";

/** LEDGER_FULL: a million operations, 20 kills, and 50 between a reserve and its end. LEDGER_OPERATIONS: as many; LEDGER_SEED: others. */
const { LEDGER_FULL, LEDGER_OPERATIONS, LEDGER_SEED } = process.env;
const full = Boolean(LEDGER_FULL);
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
    full ? 900_000 : 600_000,
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
    full ? 900_000 : 600_000,
  );

  const operations = Number(LEDGER_OPERATIONS ?? (full ? 1_000_000 : dialect === "sqlite" ? 6_000 : 2_500));
  test(
    `${operations} random operations of 64 callers and ${kills} kill -9: nothing is made or lost, no floor is broken, and each id has one effect`,
    async () => {
      await using place = await storage(dialect);
      const { folder } = place;
      const seed = Number(LEDGER_SEED ?? 20_261_121);
      const options = JSON.stringify({ ...place.options, operatorKeyDigest: keyDigest(operatorKey) });
      const program = new URL("exchange-fixtures/caller.ts", import.meta.url).pathname;
      const callersOf = (life: number) => {
        const deafAt = life < kills ? Math.floor(operations / (kills + 1)) : operations + 1;
        const run: CallerRun = { folder, seed, callers: 64, operations, life, deafAt };
        return serverProcess(program, [options, JSON.stringify(run)]);
      };
      const answersOf = (kind: "answers" | "lost", life: number) => readAnswers(join(folder, `${kind}-${life}`));
      const comes = async (look: () => boolean) => {
        while (!look()) {
          if (existsSync(join(folder, "wrong"))) throw new Error(readFileSync(join(folder, "wrong"), "utf8"));
          await sleep(10);
        }
      };
      for (let life = 0; life < kills; life++) {
        await using server = await callersOf(life);
        await comes(() => answersOf("lost", life).filter(({ what }) => isWritten(what)).length >= 20);
        await server.kill();
      }
      await using server = await callersOf(kills);
      await comes(() => existsSync(join(folder, "done")));
      const operator = clientsAt(server.url, operatorKey);
      const proof = await proofOf(operator);
      const homeOrgId = (await operator.organizations.getOrganization({})).organization!.orgId;
      await server.kill();
      expect(proof.faults).toEqual([]);
      expect(proof).toMatchObject({ ok: true, sumMicros: 0n });

      const told: Record<Answer, number> = { new: 0, known: 0, refused: 0, ended: 0, again: 0, reused: 0 };
      const became = new Map<number, Answer>();
      for (let life = 0; life <= kills; life++)
        for (const { n, what } of answersOf("answers", life)) {
          told[what]++;
          if (what !== "again" && what !== "reused") became.set(n, what);
        }
      expect(became.size).toBe(operations);
      // What was written and not heard of is there after the kill, and the same once more does nothing.
      const unheard = Array.from({ length: kills }, (_, life) => answersOf("lost", life)).flat();
      const undone = unheard.filter(({ n, what }) => isWritten(what) && became.get(n) !== "known");
      expect(undone).toEqual([]);
      const db =
        "databaseUrl" in place.options
          ? await openPostgres(place.options.databaseUrl!)
          : openSqlite({ file: join(folder, "moltwire.db") });
      try {
        await compare(db, [homeOrgId, ...payers], randomChains(seed, homeOrgId), became);
      } finally {
        await db.close();
      }
      // Or the run has put nothing to the test.
      for (const what of ["new", "refused", "ended", "again", "reused"] as const)
        expect([what, told[what] > operations / 100]).toEqual([what, true]);
      console.log(
        `${dialect}, seed ${seed}: ${JSON.stringify(told)}, ${unheard.length} answers lost, ${proof.transfers} transfers, ${proof.liveReserves} live`,
      );
    },
    operations > 10_000 ? 14_400_000 : 600_000,
  );
});

/** Holds the books against what was answered: all of each operation that is written, and nothing of any other. */
async function compare(
  db: Db,
  orgIds: readonly string[],
  wishesOf: (n: number) => readonly Wish[],
  became: ReadonlyMap<number, Answer>,
): Promise<void> {
  const steps = {
    move: "MOVED",
    reverse: "MOVED",
    reserve: "RESERVED",
    settle: "SETTLED",
    void: "VOIDED",
    expire: "EXPIRED",
  } as const;
  const found = new Map<number, number>();
  const wrong: string[] = [];
  for (const orgId of orgIds)
    for (let after: string | undefined = ""; after !== undefined; ) {
      const rows: { transfer_id: string; step: TransactionStep; amount: number | bigint }[] = await db.query.all(sql`
        select transfer_id, step, amount from ledger_transfer where org_id = ${orgId} and transfer_id > ${after} order by transfer_id limit 10000`);
      for (const { transfer_id, step, amount } of rows) {
        if (step === TransactionStep.EXPIRED) continue;
        const [, n, at] = transfer_id.split("/").map(Number) as [number, number, number];
        const wish = wishesOf(n)[at];
        const isRight =
          wish && step === TransactionStep[steps[wish.does]] && (!("amount" in wish) || wish.amount === BigInt(amount));
        if (!isRight) wrong.push(`${transfer_id} is not what was asked`);
        found.set(n, (found.get(n) ?? 0) + 1);
      }
      after = rows.at(-1)?.transfer_id;
    }
  for (const [n, what] of became) {
    const count = isWritten(what) ? wishesOf(n).length : 0;
    if ((found.get(n) ?? 0) !== count)
      wrong.push(`operation ${n} was answered "${what}", and ${found.get(n) ?? 0} of ${count} are there`);
  }
  expect(wrong.slice(0, 20)).toEqual([]);
}
