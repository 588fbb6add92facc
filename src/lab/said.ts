/** What agents say to each other over the relay, and how they read it. */
import { fromJson, toJson } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import type { Message } from "../../gen/moltwire/relay/v1/message_pb.ts";
import type { Life } from "./actor.ts";
import { channel, type Said, type Scene } from "./scene.ts";

const pageSize = 250;

/** What is said, as a payload of relay and queue. */
export const payloadOf = (said: Said) => ({
  kind: { case: "json" as const, value: fromJson(ValueSchema, said) },
});

/** What a payload says. */
export function saidIn(payload: Pick<NonNullable<Message["payload"]>, "kind"> | undefined): Said {
  if (payload?.kind.case !== "json") throw new Error("this was not said by an agent of the lab");
  return toJson(ValueSchema, payload.kind.value) as Said;
}

/** Says something to all, once, whatever is lost and however often the agent crashes. */
export const sayToAll = (life: Life, label: string, said: Said, name = label): Promise<unknown> =>
  life.call(
    name,
    (options) =>
      life.clients.relay.send({ to: { case: "toChannel", value: channel }, label, payload: payloadOf(said) }, options),
    true,
  );

/** Hears what is said to all, from the first message on; each is as late as its fate, or never comes. */
export const listen = (life: Life, scene: Scene, hear: (from: number, message: Message) => void): void =>
  life.follow(
    (options) => life.clients.relay.subscribe({ channel, afterSequence: 0n }, options),
    ({ event }) => {
      if (event.case !== "message") return;
      const message = event.value;
      const from = scene.agentIds.indexOf(message.senderAgentId);
      life.deliver(`${message.label} ${from}->${life.agent}`, () => hear(from, message));
    },
  );

/** What an agent has said itself: who comes back after a crash looks it up. */
export async function ownWords(life: Life): Promise<readonly Message[]> {
  const { messages } = await life.call("own words", (options) =>
    life.clients.relay.listMessages({ channel, filter: { senderAgentId: life.agentId }, pageSize }, options),
  );
  return messages;
}

/** All that was said to all, as it is stored. */
export async function allWords(scene: Scene): Promise<readonly Message[]> {
  const all: Message[] = [];
  let pageToken = "";
  do {
    const page = await scene.arbiter.relay.listMessages({
      ...{ agentId: scene.registryId, channel, pageSize, pageToken },
    });
    all.push(...page.messages);
    pageToken = page.nextPageToken;
  } while (pageToken !== "");
  return all;
}

/** The channel that all share. */
export const openChannel = async (scene: Scene): Promise<void> => {
  await scene.arbiter.relay.createChannel({ agentId: scene.registryId, name: channel });
};
