import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { Start } from "../../gen/moltwire/relay/v1/relay_service_pb.ts";
import { keyDigest } from "../../src/federation/key-text.ts";
import { serverProcess } from "../bus-fixtures/process.ts";
import { storage } from "../bus-fixtures/storage.ts";
import { clientsAt, dialects } from "../harness.ts";
import { bytes, listen, messagesOf, toChannel } from "../relay-fixtures/relay.ts";

/** FULL: 1 GB is published. */
const full = Boolean(process.env.FULL);
const payload = new Uint8Array(65_000).fill(7);
/** Several times what the server may grow by, or nothing could be seen of what is kept for who does not read. */
const count = Math.ceil((full ? 1_000_000_000 : 200_000_000) / payload.length);
const warmUp = full ? 1_500 : 600;
const publishers = 8;
const mostGrowth = 64 * 1_048_576;
const operatorKey = "relay-slow-0123456789-abcdefghijklmnopqrstuvwxyz0";
const program = new URL("../bus-fixtures/server.ts", import.meta.url).pathname;
const channel = "big";

/** Resident memory of a process, in bytes; see proc(5). */
const memoryOf = (pid: number): number =>
  Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))![1]) * 1_024;

describe.each(dialects)("a subscriber that never reads on %s", (dialect) => {
  test(
    `costs less than 64 MB while ${count} messages of 65 kB are published; others get all, and it resumes without a gap`,
    async () => {
      await using place = await storage(dialect);
      const options = JSON.stringify({ ...place.options, operatorKeyDigest: keyDigest(operatorKey) });
      await using server = await serverProcess(program, [options]);
      const operator = clientsAt(server.url, operatorKey);
      await operator.relay.createChannel({ name: channel });
      const publish = async (messages: number) => {
        let left = messages;
        const work = async () => {
          while (left-- > 0) await operator.relay.send({ ...toChannel(channel), payload: bytes(payload) });
        };
        await Promise.all(Array.from({ length: publishers }, work));
      };
      /** Reads on another connection, keeping only where it is. */
      const reader = { last: 0n, gaps: 0 };
      const leave = new AbortController();
      const reading = (async () => {
        const as = clientsAt(server.url, operatorKey);
        for await (const { sequence, event } of as.relay.subscribe({ channel }, { signal: leave.signal })) {
          if (event.case === "message" && sequence !== reader.last + 1n) reader.gaps++;
          reader.last = sequence;
        }
      })();
      reading.catch(() => {}); // it is left
      const caughtUp = async (to: number) => {
        while (reader.last < BigInt(to)) await new Promise((resolve) => setTimeout(resolve, 20));
      };
      await publish(warmUp);
      await caughtUp(warmUp);
      const before = memoryOf(server.pid);

      const slow = clientsAt(server.url, operatorKey).relay.subscribe({ channel, start: Start.NOW });
      const slowly = slow[Symbol.asyncIterator]();
      await slowly.next();
      let most = before;
      const watching = setInterval(() => (most = Math.max(most, memoryOf(server.pid))), 50);
      const began = performance.now();
      await publish(count);
      await caughtUp(warmUp + count);
      clearInterval(watching);
      const seconds = (performance.now() - began) / 1_000;
      console.log(
        `${dialect}: ${count} messages in ${seconds.toFixed(1)} s; memory ${(before / 1e6).toFixed(0)} MB, at most ${((most - before) / 1e6).toFixed(1)} MB more`,
      );
      expect(reader.gaps).toBe(0);
      expect(most - before).toBeLessThan(mostGrowth);

      // It reads on where it is; or it was cut off for taking nothing, and resumes.
      let at = BigInt(warmUp);
      try {
        for (let next = await slowly.next(); !next.done && at < BigInt(warmUp + 200); next = await slowly.next()) {
          if (next.value.event.case !== "message") continue;
          expect(next.value.sequence).toBe(at + 1n);
          at = next.value.sequence;
        }
      } catch {
        // Its stream was cut.
      }
      await using again = listen(clientsAt(server.url, operatorKey), { channel, afterSequence: at });
      await again.until((seen) => messagesOf(seen).length >= 300, 60_000);
      const resumed = messagesOf(again.seen).slice(0, 300);
      expect(resumed.map(({ sequence }) => sequence)).toEqual(
        Array.from({ length: 300 }, (_, n) => at + BigInt(n + 1)),
      );
      leave.abort();
    },
    full ? 900_000 : 300_000,
  );
});
