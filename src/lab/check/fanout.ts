/** What publishing to many promises. The publisher is agent 0. */
import { type Check, countByAgent, type Measure, ofKind } from "../observation.ts";

export const checkFanout: Check = (log) => {
  const published = new Map(ofKind(log, "published").map(({ number, text }) => [number, text]));
  const received = ofKind(log, "received");
  // Who crashed reads anew: in each of its lives an agent gets each message once.
  const lives = Map.groupBy(received, ({ agent, life }) => `${agent}/${life}`);
  return [
    {
      name: "once_in_order",
      description: "Nobody gets a message twice or before an earlier one.",
      violations: [...lives.values()].flatMap((one) =>
        one
          .slice(1)
          .filter(({ number }, n) => number <= one[n]!.number)
          .map(({ agent, number }) => `agent ${agent} gets message ${number} again, or after a later one`),
      ),
    },
    {
      name: "unchanged",
      description: "What arrives is what was sent.",
      violations: received
        .filter(({ number, text }) => published.get(number) !== text)
        .map(({ agent, number }) => `agent ${agent} gets message ${number} otherwise than it was sent`),
    },
  ];
};

export const measureFanout: Measure = (log, agents) => {
  // Who publishes again after a crash has published before.
  const publishedMs = new Map(
    ofKind(log, "published")
      .toReversed()
      .map(({ number, atMs }) => [number, atMs]),
  );
  const published = publishedMs.size;
  const received = ofKind(log, "received");
  const arrived = new Set(received.map(({ agent, number }) => `${agent} ${number}`)).size;
  const done = countByAgent(received, agents);
  done[0] = published;
  const wanted = published * (agents - 1);
  return {
    latenciesMs: received.map(({ number, atMs }) => atMs - (publishedMs.get(number) ?? 0)),
    done,
    measures: { published, arrived, ...(wanted > 0 && { delivery_rate: arrived / wanted }) },
  };
};
