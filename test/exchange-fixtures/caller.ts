/**
 * A server with callers that post random chains meanwhile, to be killed: `node caller.ts '{"data": …}' '{"folder": …, "seed": 1, …}'`. What they are answered is
 * appended to the file `answers-<life>` of the folder, a line for each operation, and read again at the next start: what was answered is done, all else is asked again
 * under the same ids. After `deafAt` answers none arrives any more: they are written to `lost-<life>`, and are to be asked for again, as after a connection that broke.
 * `done`: all were answered. `wrong`: something that must not be.
 */
import { appendFileSync, openSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { pino } from "pino";
import { systemClock } from "../../src/clock.ts";
import { OutcomeUnknownError, OverloadedError } from "../../src/db/db.ts";
import { Fault } from "../../src/errors.ts";
import { postOnce } from "../../src/exchange/ledger/post.ts";
import type { Wish } from "../../src/exchange/ledger/transfer.ts";
import { createServer } from "../../src/server.ts";
import { type Random, random } from "../crash/random.ts";
import { type Answer, type CallerRun, isWritten, readAnswers } from "./answers.ts";
import { randomChains } from "./random-chains.ts";

const options = JSON.parse(process.argv[2]!) as object;
const { folder, seed, callers, operations, life, deafAt } = JSON.parse(process.argv[3]!) as CallerRun;
/** As many are lost; then the callers wait for the kill. */
const mostLost = 300;

// A millisecond goes by with each operation, and a while between two lives.
let next = 0;
const now = () => Date.parse("2026-01-01T00:00:00Z") + life * 100_000 + next;
const clock = { ...systemClock(), now };
const server = await createServer({ port: 0, rateLimit: 0, log: pino({ level: "silent" }), ...options, clock });
const { db, homeOrgId } = server.app;
const wishesOf = randomChains(seed, homeOrgId);

const answered = new Set<number>();
const written: number[] = [];
for (let before = 0; before < life; before++)
  for (const { n, what } of readAnswers(join(folder, `answers-${before}`))) {
    if (!["again", "reused"].includes(what)) answered.add(n);
    if (isWritten(what)) written.push(n);
  }
const remember = (n: number): void => {
  if (written.push(n) > 1_000) written.splice(0, 500);
};
const answers = openSync(join(folder, `answers-${life}`), "a");
const lost = openSync(join(folder, `lost-${life}`), "a");
let [heard, unheard] = [0, 0];

async function arrived(n: number, what: Answer): Promise<void> {
  if (heard >= deafAt) {
    writeSync(lost, `${n} ${what}\n`);
    if (++unheard >= mostLost) await new Promise(() => {});
    return;
  }
  writeSync(answers, `${n} ${what}\n`);
  if (what === "again" || what === "reused") return;
  heard++;
  answered.add(n);
  if (isWritten(what)) remember(n);
}

/** Until the server has room, as a client does that is told to come again. */
async function ask(wishes: readonly Wish[]): Promise<Answer> {
  for (;;)
    try {
      return (await db.tx((tx) => postOnce(tx, wishes, now()))).isNew ? "new" : "known";
    } catch (error) {
      if (error instanceof OverloadedError || error instanceof OutcomeUnknownError) await sleep(50);
      else return refusedAs(error);
    }
}

function refusedAs(error: unknown): Answer {
  const reason = error instanceof Fault ? error.reason : "";
  if (["INSUFFICIENT_CREDITS", "QUOTA_EXCEEDED"].includes(reason)) return "refused";
  if (["FAILED_PRECONDITION", "NOT_FOUND"].includes(reason)) return "ended";
  if (reason === "IDEMPOTENCY_KEY_REUSED") return "reused";
  throw error;
}

/** What was written is asked for again, or something else under its id. */
async function askAgain(n: number, by: Random): Promise<void> {
  const [first, ...rest] = wishesOf(n);
  const isOther = by.chance(0.3) && "amount" in first;
  const what = await ask(isOther ? [{ ...first, amount: first.amount + 1n }, ...rest] : [first, ...rest]);
  if (what !== (isOther ? "reused" : "known")) throw new Error(`operation ${n}, asked again, was ${what}`);
  await arrived(n, isOther ? "reused" : "again");
}

async function caller(place: number): Promise<void> {
  const by = random(seed + life * 1_000 + place);
  for (;;) {
    while (answered.has(next)) next++;
    if (next >= operations) return;
    const n = next++;
    if (written.length > 0 && by.chance(0.12)) await askAgain(by.pick(written), by);
    // Now and then twice at once, as a client does that does not wait.
    const all = await Promise.all(Array.from({ length: by.chance(0.05) ? 2 : 1 }, () => ask(wishesOf(n))));
    if (all.filter((what) => what === "new").length > 1) throw new Error(`operation ${n} was written twice`);
    await arrived(n, all.find((what) => what === "new") ?? all.find((what) => what === "known") ?? all[0]!);
  }
}

console.error(`listening on ${await server.listen()}`);
try {
  await Promise.all(Array.from({ length: callers }, (_, place) => caller(place)));
  if (answered.size === operations) writeFileSync(join(folder, "done"), "");
} catch (error) {
  appendFileSync(join(folder, "wrong"), `life ${life}: ${error instanceof Error ? error.stack : error}\n`);
}
