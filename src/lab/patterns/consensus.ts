/** Consensus in three rounds over a channel: propose, vote, commit. */
import { timestampMs } from "@bufbuild/protobuf/wkt";
import type { Message } from "../../../gen/moltwire/relay/v1/message_pb.ts";
import type { Life } from "../actor.ts";
import { checkConsensus, measureConsensus } from "../check/consensus.ts";
import { notice } from "../notice.ts";
import { numbers, type Plan } from "../plan.ts";
import { allWords, listen, openChannel, ownWords, saidIn, sayToAll } from "../said.ts";
import type { PatternPlay, Scene } from "../scene.ts";

const values = 1_000;

const proposalOf = (plan: Plan, agent: number): string => `v${plan.pick(`proposal ${agent}`, values)}`;

/** What an agent has heard: by the agents that said it. */
type Heard = Record<"propose" | "vote" | "commit", Map<number, string>>;

export const consensus = (clock: Parameters<typeof notice>[0]): PatternPlay => ({
  roleOf: () => "voter",
  choices: (plan, agents) =>
    Object.fromEntries(numbers(agents).map((agent) => [`proposal/${agent}`, proposalOf(plan, agent)])),
  prepare: openChannel,

  async play(life, scene) {
    const { agent, signal } = life;
    const all = scene.agentIds.length;
    const news = notice(clock, signal);
    const heard: Heard = { propose: new Map(), vote: new Map(), commit: new Map() };
    listen(life, scene, (from, message) => {
      if (isRound(message.label)) heard[message.label].set(from, saidValue(message));
      news.changed();
    });
    const before = life.life > 1 ? await ownWords(life) : [];
    const said = (round: keyof Heard) => before.find(({ label }) => label === round);

    if (!said("propose")) await sayToAll(life, "propose", { value: proposalOf(scene.plan, agent) });
    await news.until(() => heard.propose.size === all, scene.roundMs);

    // One vote, whatever happens: who has voted before it crashed stands by it.
    const voted = said("vote");
    const choice = lowest(heard.propose.values());
    if (!voted && choice !== undefined) {
      await sayToAll(life, "vote", { value: choice });
      scene.tell(`votes for ${choice}`, agent);
    }

    const decision = await decisionOf(life, scene, news, heard);
    if (decision === undefined) throw new Error("no value had the votes of more than half of all in time");
    scene.see({ kind: "decided", agent, value: decision.value, votes: decision.votes });
    if (!said("commit")) await sayToAll(life, "commit", { value: decision.value });
    scene.tell(`commits to ${decision.value}`, agent);
    // To the end of the round, so that what it is told does not depend on who is quick.
    await news.until(() => heard.vote.size === all && heard.commit.size === all, scene.roundMs);
  },

  async conclude(scene) {
    for (const message of await allWords(scene)) {
      const seen = { agent: scene.agentIds.indexOf(message.senderAgentId), value: saidValue(message) };
      const atMs = scene.sinceStart(timestampMs(message.createTime!));
      if (message.label === "propose") scene.see({ kind: "proposed", ...seen }, atMs);
      if (message.label === "vote") scene.see({ kind: "voted", ...seen }, atMs);
    }
  },
  check: checkConsensus,
  measure: measureConsensus,
});

/** What more than half of all have voted for, which is one value at most; or what somebody commits to who has counted so. */
async function decisionOf(
  life: Life,
  scene: Scene,
  news: ReturnType<typeof notice>,
  heard: Heard,
): Promise<{ readonly value: string; readonly votes: number } | undefined> {
  const all = scene.agentIds.length;
  const elected = () => {
    const [committed] = heard.commit.values();
    if (committed !== undefined) return { value: committed, votes: 0 };
    const [most] = [...Map.groupBy(heard.vote.values(), (value) => value)].toSorted(
      (a, b) => b[1].length - a[1].length,
    );
    return most && most[1].length * 2 > all ? { value: most[0], votes: most[1].length } : undefined;
  };
  life.signal.throwIfAborted();
  await news.until(() => elected() !== undefined, scene.roundMs);
  return elected();
}

const isRound = (label: string): label is keyof Heard => label === "propose" || label === "vote" || label === "commit";

const saidValue = (message: Message): string => String(saidIn(message.payload).value);

const lowest = (proposals: Iterable<string>): string | undefined => [...proposals].toSorted()[0];
