import type { Metrics } from "../ops/metrics.ts";

/** What the area counts. */
export type RelayCounts = {
  accepted(by: "inbox" | "channel"): void;
  /** Messages that were handed to a reader. */
  delivered(by: "stream" | "list" | "group", messages: number): void;
  /** Messages that logs let go of because they were full or old, or whose own time was over; and dead letters that were too many or old. */
  removed(why: "retention" | "expired" | "dead_letters", messages: number): void;
  dead(messages: number): void;
  /** Messages that logs let go of before a group was done with them, when the group finds out. */
  lost(messages: number): void;
  /** Readers that stream; call what is given when one leaves. */
  subscribed(): () => void;
};

export function relayCounts(metrics: Metrics): RelayCounts {
  const accepted = metrics.counter("moltwire_relay_accepted_total", "Messages accepted", ["to"]);
  const delivered = metrics.counter("moltwire_relay_delivered_total", "Messages handed to a reader", ["by"]);
  const removed = metrics.counter("moltwire_relay_removed_total", "Messages removed from logs", ["why"]);
  const dead = metrics.counter("moltwire_relay_dead_total", "Messages that became dead letters of a channel");
  const lost = metrics.counter("moltwire_relay_lost_total", "Messages gone before a consumer group was done with them");
  // From the start: a rate does not see the first of a series that was not there.
  for (const to of ["inbox", "channel"]) accepted.inc({ to }, 0);
  for (const by of ["stream", "list", "group"]) delivered.inc({ by }, 0);
  for (const why of ["retention", "expired", "dead_letters"]) removed.inc({ why }, 0);
  let subscribers = 0;
  metrics.gauge({
    name: "moltwire_relay_subscribers",
    help: "Streams of messages that are open now",
    read: () => subscribers,
  });
  return {
    accepted: (to) => accepted.inc({ to }),
    delivered: (by, messages) => delivered.inc({ by }, messages),
    removed: (why, messages) => removed.inc({ why }, messages),
    dead: (messages) => dead.inc(messages),
    lost: (messages) => lost.inc(messages),
    subscribed() {
      subscribers++;
      let left = false;
      return () => {
        if (!left) subscribers--;
        left = true;
      };
    },
  };
}
