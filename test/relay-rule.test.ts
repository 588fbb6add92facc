import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { cutOf, type Oldest } from "../src/relay/retention.ts";
import { dialects, start, unique } from "./harness.ts";
import { json, listen, messagesOf, says, sendFrame, Talk, toAgent } from "./relay-fixtures/relay.ts";

describe("what a log lets go of", () => {
  const rows = fc
    .array(
      fc.record({
        size_bytes: fc.integer({ min: 1, max: 9 }),
        unread: fc.integer({ min: 0, max: 1 }),
        expired: fc.boolean(),
      }),
      { maxLength: 12 },
    )
    .map((some) =>
      some.map(
        ({ size_bytes, unread, expired }, n): Oldest => ({
          sequence: n + 1,
          size_bytes,
          unread,
          expire_ms: expired ? 1 : null,
        }),
      ),
    );
  const bounds = fc.record({ messages: fc.integer({ min: 1, max: 8 }), bytes: fc.integer({ min: 1, max: 40 }) });

  test("is the shortest old end with which it fits, and nothing unread that has to stay", () => {
    fc.assert(
      fc.property(rows, bounds, fc.boolean(), (oldest, limit, keepUnread) => {
        const total = (some: readonly Oldest[]) => some.reduce((sum, { size_bytes }) => sum + size_bytes, 0);
        const held = { messages: oldest.length, bytes: total(oldest) };
        const cut = cutOf(held, limit, oldest, keepUnread, 5);
        const gone = oldest.slice(0, cut.messages);
        expect(cut.bytes).toBe(total(gone));
        expect(cut.through).toBe(gone.at(-1)?.sequence ?? 0);
        const fits = (left: readonly Oldest[]) => left.length <= limit.messages && total(left) <= limit.bytes;
        if (cut.messages > 0) expect(fits(oldest.slice(cut.messages - 1))).toBe(false);
        const stays = (row: Oldest | undefined) => keepUnread && row?.unread === 1 && row.expire_ms === null;
        expect(gone.some(stays)).toBe(false);
        const unread = gone.filter((row) => row.unread === 1 && row.expire_ms === null);
        expect(cut.unread).toBe(unread.at(-1)?.sequence ?? 0);
        const left = oldest.slice(cut.messages);
        expect(cut.full).toBe(!fits(left) && stays(left[0]));
        if (!cut.full) expect(fits(left)).toBe(true);
      }),
      { numRuns: 2_000 },
    );
  });
});

type Step =
  | { readonly kind: "send"; readonly sender: number }
  | { readonly kind: "frames"; readonly sender: number; readonly count: number }
  | { readonly kind: "leave"; readonly reader: number }
  | { readonly kind: "read"; readonly through: number };

describe.each(dialects)("the order of an inbox on %s", (dialect) => {
  test("whoever writes in whatever way, and whenever a reader leaves and resumes: each reader has the one order, each sender its own", async () => {
    await using world = await start(dialect);
    const org = await world.org();
    const senders = await Promise.all([org.agent(), org.agent(), org.agent()]);
    const step: fc.Arbitrary<Step> = fc.oneof(
      { weight: 6, arbitrary: fc.record({ kind: fc.constant("send" as const), sender: fc.nat(2) }) },
      {
        weight: 3,
        arbitrary: fc.record({
          kind: fc.constant("frames" as const),
          sender: fc.nat(2),
          count: fc.integer({ min: 1, max: 5 }),
        }),
      },
      { weight: 2, arbitrary: fc.record({ kind: fc.constant("leave" as const), reader: fc.nat(2) }) },
      { weight: 1, arbitrary: fc.record({ kind: fc.constant("read" as const), through: fc.nat(20) }) },
    );
    const run = async (steps: readonly Step[]) => {
      const to = await org.agent();
      const label = unique("l");
      let sent = 0;
      const said = [0, 0, 0];
      const talks = senders.map(({ as }) => new Talk(as, { sendOnly: true }));
      const readers = Array.from({ length: 3 }, () => ({
        seen: [] as number[],
        stream: listen(to.as, { afterSequence: 0n }),
      }));
      const takeOver = (reader: (typeof readers)[number]) => {
        for (const { sequence } of messagesOf(reader.stream.seen)) reader.seen.push(Number(sequence));
      };
      const payloadOf = (sender: number) => json([sender, ++said[sender]!]);
      const pending: Promise<unknown>[] = [];
      for (const [n, one] of steps.entries()) {
        if (one.kind === "send") {
          await Promise.all(pending.splice(0));
          await senders[one.sender]!.as.relay.send({ ...toAgent(to.agentId), label, payload: payloadOf(one.sender) });
          sent++;
        } else if (one.kind === "frames") {
          const frames = Array.from({ length: one.count }, (_, k) =>
            sendFrame(`${n}-${k}`, { ...toAgent(to.agentId), label, payload: payloadOf(one.sender) }),
          );
          talks[one.sender]!.say(...frames);
          pending.push(talks[one.sender]!.answer(`${n}-${one.count - 1}`));
          sent += one.count;
        } else if (one.kind === "leave") {
          const reader = readers[one.reader]!;
          reader.stream.leave();
          await reader.stream.over;
          takeOver(reader);
          reader.stream = listen(to.as, { afterSequence: BigInt(reader.seen.at(-1) ?? 0) });
        } else {
          await to.as.relay.markRead({ read: { case: "throughSequence", value: BigInt(one.through) } });
        }
      }
      await Promise.all(pending);
      const all = Array.from({ length: sent }, (_, n) => n + 1);
      for (const reader of readers) {
        await reader.stream.until((seen) => reader.seen.length + messagesOf(seen).length >= sent);
        reader.stream.leave();
        await reader.stream.over;
        takeOver(reader);
        expect(reader.seen).toEqual(all);
      }
      const { messages } = await to.as.relay.listInbox({ pageSize: 250 });
      expect(messages.map(({ sequence }) => Number(sequence))).toEqual(all);
      for (const sender of said.keys()) {
        const own = messages.map((message) => says(message) as [number, number]).filter(([from]) => from === sender);
        expect(own.map(([, n]) => n)).toEqual(Array.from({ length: said[sender]! }, (_, n) => n + 1));
      }
      for (const talk of talks) talk.leave();
      await Promise.all(talks.map(({ over }) => over));
    };
    await fc.assert(fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: 30 }), run), { numRuns: 12 });
  }, 120_000);
});
