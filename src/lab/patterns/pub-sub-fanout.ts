/** One agent publishes to a channel, and all others read it. Who misses something asks the channel for it. */
import type { Clock } from "../../clock.ts";
import { GaveUp, type Life } from "../actor.ts";
import { checkFanout, measureFanout } from "../check/fanout.ts";
import { type Notice, notice } from "../notice.ts";
import { numbers, type Plan } from "../plan.ts";
import { openChannel, payloadOf, saidIn } from "../said.ts";
import { channel, type PatternPlay, type Scene } from "../scene.ts";

const messages = 20;
const publisher = 0;
const gapMs = 5;
/** How long a subscriber waits for what is missing before it asks for it. */
const silenceMs = 400;
const maxAsked = 20;
const pageSize = 250;

const textOf = (plan: Plan, number: number): string => `${number}:${plan.pick(`text ${number}`, 1_000_000)}`;

export const pubSubFanout = (clock: Clock): PatternPlay => ({
  roleOf: (agent) => (agent === publisher ? "publisher" : "subscriber"),
  choices: (plan) => Object.fromEntries(numbers(messages).map((n) => [`text/${n + 1}`, textOf(plan, n + 1)])),
  prepare: openChannel,
  play: (life, scene) => (life.agent === publisher ? publish(life, scene) : subscribe(life, scene, clock)),
  // What arrived is for the subscribers to say.
  conclude: async () => {},
  check: checkFanout,
  measure: measureFanout,
});

/** Each message once, also when the publisher crashes: the key of its call is the same in all lives. */
async function publish(life: Life, scene: Scene): Promise<void> {
  for (let number = 1; number <= messages; number++) {
    const text = textOf(scene.plan, number);
    scene.see({ kind: "published", number, text });
    const request = {
      to: { case: "toChannel", value: channel },
      label: "news",
      payload: payloadOf({ number, text }),
    } as const;
    await life.call(`publish ${number}`, (options) => life.clients.relay.send(request, options), true);
    await life.sleep(gapMs);
  }
  scene.tell(`has published ${messages} messages`, publisher);
}

async function subscribe(life: Life, scene: Scene, clock: Clock): Promise<void> {
  const news = notice(clock, life.signal);
  const inbox = orderly(life, scene, news);
  life.follow(
    (options) => life.clients.relay.subscribe({ channel, afterSequence: 0n }, options),
    ({ event }) => {
      if (event.case !== "message") return;
      const { sequence, payload } = event.value;
      life.deliver(`news ${sequence} ${publisher}->${life.agent}`, () =>
        inbox.add(Number(sequence), String(saidIn(payload).text)),
      );
    },
  );
  for (let asked = 1; inbox.got() < messages; asked++) {
    const before = inbox.got();
    if (await news.until(() => inbox.got() > before, silenceMs)) {
      asked--;
      continue;
    }
    if (asked > maxAsked) throw new GaveUp(`it has ${inbox.got()} of ${messages} messages`);
    const { messages: found } = await life.call(`ask ${asked}`, (options) =>
      life.clients.relay.listMessages({ channel, afterSequence: BigInt(before), pageSize }, options),
    );
    for (const { sequence, payload } of found) inbox.add(Number(sequence), String(saidIn(payload).text));
  }
  scene.tell(`has all ${messages} messages`, life.agent);
}

/** Takes messages as they come, and passes each on once, in the order of the channel. */
function orderly(life: Life, scene: Scene, news: Notice) {
  const early = new Map<number, string>();
  let last = 0;
  return {
    got: () => last,
    add(sequence: number, text: string): void {
      if (sequence <= last) return;
      early.set(sequence, text);
      for (let next = early.get(last + 1); next !== undefined; next = early.get(last + 1)) {
        early.delete(++last);
        scene.see({ kind: "received", agent: life.agent, life: life.life, number: last, text: next });
      }
      news.changed();
    },
  };
}
