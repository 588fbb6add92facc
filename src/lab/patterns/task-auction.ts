/** An auction: a call to all, bids that only the auctioneer reads, and an award to all. */
import type { Message } from "../../../gen/moltwire/relay/v1/message_pb.ts";
import { Start } from "../../../gen/moltwire/relay/v1/relay_service_pb.ts";
import type { Clock } from "../../clock.ts";
import { GaveUp, type Life } from "../actor.ts";
import { bestOf, checkAuction, measureAuction } from "../check/auction.ts";
import { notice } from "../notice.ts";
import { numbers, type Plan } from "../plan.ts";
import { allWords, listen, openChannel, ownWords, payloadOf, saidIn, sayToAll } from "../said.ts";
import { channel, type PatternPlay, type Scene } from "../scene.ts";

const auctioneer = 0;
/** So few that some bids are equal. */
const amounts = 10;
const silenceMs = 500;
const maxAsked = 20;
const pageSize = 250;

const bidOf = (plan: Plan, agent: number): number => 1 + plan.pick(`bid ${agent}`, amounts);

export const taskAuction = (clock: Clock): PatternPlay => ({
  roleOf: (agent) => (agent === auctioneer ? "auctioneer" : "bidder"),
  choices: (plan, agents) =>
    Object.fromEntries(
      numbers(agents)
        .filter((agent) => agent !== auctioneer)
        .map((agent) => [`bid/${agent}`, String(bidOf(plan, agent))]),
    ),
  prepare: openChannel,
  play: (life, scene) => (life.agent === auctioneer ? sell(life, scene, clock) : bid(life, scene, clock)),

  async conclude(scene) {
    const { messages } = await scene.arbiter.relay.listInbox({ agentId: scene.agentIds[auctioneer]!, pageSize });
    for (const message of messages) scene.see({ kind: "bid_stored", ...bidIn(scene, message) });
    for (const message of await allWords(scene))
      if (message.label === "award") scene.see({ kind: "awarded", ...awardIn(message), closedAt: closedAtIn(message) });
  },
  check: checkAuction,
  measure: measureAuction,
});

/** Calls for bids, waits until all are there or the round is over, and awards by what its inbox holds then. */
async function sell(life: Life, scene: Scene, clock: Clock): Promise<void> {
  const news = notice(clock, life.signal);
  const bidders = new Set<string>();
  life.follow(
    (options) => life.clients.relay.subscribe({ start: Start.OLDEST }, options),
    ({ event }) => {
      if (event.case !== "message") return;
      const { senderAgentId } = event.value;
      life.deliver(`bid ${scene.agentIds.indexOf(senderAgentId)}->${auctioneer}`, () => {
        bidders.add(senderAgentId);
        news.changed();
      });
    },
  );
  // What it has awarded before it crashed stands.
  const before = life.life > 1 ? await ownWords(life) : [];
  if (before.some(({ label }) => label === "award")) return;
  scene.see({ kind: "called" });
  await sayToAll(life, "call", { task: "the task of the lab" });
  await news.until(() => bidders.size === scene.agentIds.length - 1, scene.roundMs);
  const { messages, lastSequence } = await life.call("bids", (options) =>
    life.clients.relay.listInbox({ pageSize }, options),
  );
  const best = bestOf(messages.map((message) => bidIn(scene, message)));
  if (!best) throw new Error("nobody has bid in time");
  await sayToAll(life, "award", { winner: best.agent, amount: best.amount, closedAt: Number(lastSequence) });
  scene.tell(`gives the task to agent ${best.agent} for ${best.amount}`, auctioneer);
}

async function bid(life: Life, scene: Scene, clock: Clock): Promise<void> {
  const { agent, clients, signal } = life;
  const news = notice(clock, signal);
  const heard = { call: false, award: undefined as Message | undefined };
  const hear = (message: Message) => {
    if (message.label === "call") heard.call = true;
    if (message.label === "award") heard.award = message;
    news.changed();
  };
  listen(life, scene, (_from, message) => hear(message));
  const asking = { nth: 0 };
  await untilHeard(() => heard.call || heard.award !== undefined);
  if (!heard.award) {
    const amount = bidOf(scene.plan, agent);
    scene.see({ kind: "bid", agent, amount });
    const to = { case: "toAgentId", value: scene.agentIds[auctioneer]! } as const;
    await life.call(
      "bid",
      (options) => clients.relay.send({ to, label: "bid", payload: payloadOf({ amount }) }, options),
      true,
    );
  }
  await untilHeard(() => heard.award !== undefined);
  const { winner, amount } = awardIn(heard.award!);
  scene.see({ kind: "heard_award", agent, winner, amount });

  /** Who hears nothing for long may have missed it, and asks the channel. */
  async function untilHeard(test: () => boolean): Promise<void> {
    while (!(await news.until(test, silenceMs))) {
      if (++asking.nth > maxAsked) throw new GaveUp("it hears nothing of the auctioneer");
      const { messages } = await life.call(`ask ${asking.nth}`, (options) =>
        clients.relay.listMessages({ channel, pageSize }, options),
      );
      messages.forEach(hear);
    }
  }
}

const bidIn = (scene: Scene, { senderAgentId, payload, sequence }: Message) => ({
  agent: scene.agentIds.indexOf(senderAgentId),
  amount: Number(saidIn(payload).amount),
  sequence: Number(sequence),
});

const awardIn = ({ payload }: Message) => {
  const { winner, amount } = saidIn(payload);
  return { winner: Number(winner), amount: Number(amount) };
};

const closedAtIn = ({ payload }: Message): number => Number(saidIn(payload).closedAt);
