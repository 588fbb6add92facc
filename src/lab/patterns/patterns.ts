import { Pattern } from "../../../gen/moltwire/lab/v1/scenario_pb.ts";
import type { Clock } from "../../clock.ts";
import type { PatternPlay } from "../scene.ts";
import { consensus } from "./consensus.ts";
import { leaderElection } from "./leader-election.ts";
import { loadBalancing } from "./load-balancing.ts";
import { pubSubFanout } from "./pub-sub-fanout.ts";
import { taskAuction } from "./task-auction.ts";

/** How a pattern is played. */
export function playOf(pattern: Pattern, clock: Clock): PatternPlay {
  switch (pattern) {
    case Pattern.LEADER_ELECTION:
      return leaderElection(clock);
    case Pattern.CONSENSUS:
      return consensus(clock);
    case Pattern.LOAD_BALANCING:
      return loadBalancing;
    case Pattern.PUB_SUB_FANOUT:
      return pubSubFanout(clock);
    case Pattern.TASK_AUCTION:
      return taskAuction(clock);
    default:
      throw new Error("a scenario has a pattern");
  }
}
