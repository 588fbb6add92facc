import { ConnectError } from "@connectrpc/connect";
import { describe, expect, test } from "vitest";
import type { Message } from "../../gen/moltwire/relay/v1/message_pb.ts";
import { keyDigest } from "../../src/federation/key-text.ts";
import { type ServerProcess, serverProcess } from "../bus-fixtures/process.ts";
import { storage } from "../bus-fixtures/storage.ts";
import { type Clients, clientsAt, dialects, unique } from "../harness.ts";
import { json, says, sendFrame, Talk, toAgent } from "../relay-fixtures/relay.ts";

/** FULL: 20 senders of 5,000 messages each, and 20 kills. */
const full = Boolean(process.env.FULL);
const senders = 20;
const each = full ? 5_000 : 75;
const kills = full ? 20 : 3;
/** How many frames of a conversation wait for their answers at most. */
const windowSize = 16;
const operatorKey = "relay-crash-0123456789-abcdefghijklmnopqrstuvwxyz";
const program = new URL("../bus-fixtures/server.ts", import.meta.url).pathname;

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
const upTo = (n: number) => Array.from({ length: n }, (_, at) => at + 1);

/** Where the server is now, and what happens to whom. */
type Run = {
  /** Clients of an agent, at the server as it is now. */
  readonly as: (key: string) => Clients;
  cut: number;
  over: boolean;
};

/** Errors of a server that is gone or stops, and of a call that its caller gave up. */
function mustBeCut(run: Run, error: unknown): void {
  const { rawMessage, code } = ConnectError.from(error);
  if (/internal fault|not found|idempotency|invalid/i.test(rawMessage)) throw new Error(`${code} ${rawMessage}`);
  run.cut++;
}

/** Sends 1 … each by Send, one after another, giving up a call now and then and sending again with the same key. */
async function sendAll(run: Run, key: string, to: string): Promise<void> {
  const prefix = unique("s");
  for (let n = 1; n <= each && !run.over; ) {
    const leave = new AbortController();
    const timer = Math.random() < 0.02 ? setTimeout(() => leave.abort(), Math.random() * 4) : undefined;
    try {
      const message = { ...toAgent(to), payload: json(n) };
      await run.as(key).relay.send(message, { signal: leave.signal, headers: { "idempotency-key": `${prefix}-${n}` } });
      n++;
    } catch (error) {
      mustBeCut(run, error);
      await sleep(5);
    } finally {
      clearTimeout(timer);
    }
  }
}

/** The same by Converse: several frames under way, and after a lost stream all that were not answered again, in their order. */
async function converseAll(run: Run, key: string, to: string): Promise<void> {
  const prefix = unique("s");
  let done = 0;
  while (done < each && !run.over) {
    const talk = new Talk(run.as(key), { sendOnly: true });
    const life = Math.random() < 0.5 ? Number.POSITIVE_INFINITY : done + Math.ceil(Math.random() * 100);
    try {
      await talk.answer("open");
      let said = done;
      while (done < Math.min(each, life) && !run.over) {
        while (said < Math.min(each, done + windowSize)) {
          said++;
          talk.say(sendFrame(`${said}`, { ...toAgent(to), payload: json(said) }, `${prefix}-${said}`));
        }
        const answer = await talk.answer(`${done + 1}`);
        if (answer.case !== "sent") throw new Error(`frame ${done + 1}: ${JSON.stringify(answer.value)}`);
        done++;
      }
    } catch (error) {
      if (/frame \d+:/.test(String(error))) throw error;
      run.cut++;
      await sleep(5);
    }
    talk.leave();
    await talk.over;
  }
}

/** Reads an inbox by Subscribe or Converse, leaving now and then, and resumes after what it has read last. */
async function readAll(run: Run, by: "subscribe" | "converse", key: string, read: Message[]): Promise<void> {
  while (read.length < senders * each && !run.over) {
    const leave = new AbortController();
    const afterSequence = read.at(-1)?.sequence ?? 0n;
    const stopAt = Math.random() < 0.5 ? Number.POSITIVE_INFINITY : read.length + Math.ceil(Math.random() * 200);
    try {
      for await (const message of messages(run.as(key), by, afterSequence, leave.signal)) {
        read.push(message);
        if (read.length >= stopAt || read.length === senders * each || run.over) break;
      }
    } catch (error) {
      mustBeCut(run, error);
      await sleep(5);
    } finally {
      leave.abort();
    }
  }
}

async function* messages(as: Clients, by: "subscribe" | "converse", afterSequence: bigint, signal: AbortSignal) {
  if (by === "subscribe") {
    for await (const { event } of as.relay.subscribe({ afterSequence }, { signal }))
      if (event.case === "message") yield event.value;
    return;
  }
  const frames = async function* () {
    yield { frame: { case: "open", value: { afterSequence } } } as never;
    await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
  };
  for await (const { event } of as.relay.converse(frames(), { signal }))
    if (event.case === "message") yield event.value;
}

describe.each(dialects)("20 senders, disconnects and kill -9 on %s", (dialect) => {
  test.each(["subscribe", "converse"] as const)(
    `${senders} × ${each} messages, ${kills} kills, by %s: of each sender 1 … ${each}, none missing, repeated or out of order`,
    async (by) => {
      await using place = await storage(dialect);
      const options = JSON.stringify({ ...place.options, rateLimit: 0, operatorKeyDigest: keyDigest(operatorKey) });
      let server: ServerProcess = await serverProcess(program, [options]);
      const clients = new Map<string, Clients>();
      const run: Run = {
        as(key) {
          const found = clients.get(key) ?? clientsAt(server.url, key);
          clients.set(key, found);
          return found;
        },
        cut: 0,
        over: false,
      };
      const newAgent = async () => {
        const operator = run.as(operatorKey);
        const { agent } = await operator.agents.registerAgent({ name: unique("a") });
        const { secret } = await operator.keys.createApiKey({ agentId: agent!.agentId });
        return { agentId: agent!.agentId, key: secret };
      };
      try {
        const to = await newAgent();
        const from = [];
        for (let n = 0; n < senders; n++) from.push(await newAgent());
        const read: Message[] = [];
        const sendBy = by === "subscribe" ? sendAll : converseAll;
        const working = Promise.all([
          readAll(run, by, to.key, read),
          ...from.map(({ key }) => sendBy(run, key, to.agentId)),
        ]);
        working.catch(() => (run.over = true));
        for (let kill = 1; kill <= kills && !run.over; kill++) {
          const target = Math.floor((senders * each * kill) / (kills + 1));
          while (read.length < target && !run.over) await sleep(5);
          await server.kill();
          server = await serverProcess(program, [options]);
          clients.clear();
        }
        await working;
        expect(read.map(({ sequence }) => Number(sequence))).toEqual(upTo(senders * each));
        const own = Map.groupBy(read, ({ senderAgentId }) => senderAgentId);
        expect(new Set(own.keys())).toEqual(new Set(from.map(({ agentId }) => agentId)));
        for (const messages of own.values()) expect(messages.map(says)).toEqual(upTo(each));
        const listed = await run.as(to.key).relay.listInbox({ pageSize: 1 });
        expect(listed).toMatchObject({ lastSequence: BigInt(senders * each), oldestSequence: 1n });
        // Or the run has put nothing to the test.
        expect(run.cut).toBeGreaterThan(0);
        console.log(`${dialect}, ${by}: ${read.length} messages, ${kills} kills, ${run.cut} calls and streams cut`);
      } finally {
        run.over = true;
        await server.kill();
      }
    },
    full ? 1_800_000 : 120_000,
  );
});
