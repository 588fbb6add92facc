/** What an auction promises. The auctioneer is agent 0. */
import { type Check, countByAgent, type Measure, type Observation, ofKind } from "../observation.ts";

export const checkAuction: Check = (log) => {
  const awards = ofKind(log, "awarded");
  const heard = ofKind(log, "heard_award");
  const [award] = awards;
  return [
    {
      name: "single_winner",
      description: "There is one award at most, and all hear of the same.",
      violations: [
        ...awards.slice(1).map(({ winner }) => `agent ${winner} wins too, beside agent ${award!.winner}`),
        ...heard
          .filter(({ winner, amount }) => award && (winner !== award.winner || amount !== award.amount))
          .map(
            ({ agent, winner, amount }) =>
              `agent ${agent} hears that ${winner} wins with ${amount}, and it is ${award!.winner} with ${award!.amount}`,
          ),
      ],
    },
    {
      name: "lowest_wins",
      description: "The winner's bid is the lowest of those that counted, and of equal ones the earliest.",
      violations: awards.flatMap(({ winner, amount, closedAt }) => {
        const best = bestOf(ofKind(log, "bid_stored").filter(({ sequence }) => sequence <= closedAt));
        if (best && best.agent === winner && best.amount === amount) return [];
        const should = best ? `agent ${best.agent} with ${best.amount}` : "nobody";
        return [`agent ${winner} wins with ${amount}, and it should be ${should}`];
      }),
    },
    {
      name: "one_bid",
      description: "What is in the auctioneer's inbox is what was bid, once for each bidder.",
      violations: wrongBids(log),
    },
  ];
};

/** The lowest bid, and of equal ones the one that came first. */
export const bestOf = <Bid extends { readonly amount: number; readonly sequence: number }>(
  bids: readonly Bid[],
): Bid | undefined => bids.toSorted((a, b) => a.amount - b.amount || a.sequence - b.sequence)[0];

function wrongBids(log: readonly Observation[]): string[] {
  const amounts = new Map(ofKind(log, "bid").map(({ agent, amount }) => [agent, amount]));
  const stored = ofKind(log, "bid_stored");
  return stored.flatMap(({ agent, amount }, n) => {
    const meant = amounts.get(agent);
    if (meant !== amount) return [`agent ${agent} bid ${meant ?? "nothing"}, and the inbox says ${amount}`];
    const again = stored.slice(0, n).some((one) => one.agent === agent);
    return again ? [`agent ${agent} has two bids in the inbox`] : [];
  });
}

export const measureAuction: Measure = (log, agents) => {
  const [award] = ofKind(log, "awarded");
  const calledMs = ofKind(log, "called")[0]?.atMs ?? 0;
  const bids = ofKind(log, "bid_stored");
  return {
    latenciesMs: ofKind(log, "heard_award").map(({ atMs }) => atMs - calledMs),
    done: countByAgent(bids, agents),
    measures: { bids: bids.length, ...(award && { winning_bid: award.amount, winner: award.winner }) },
  };
};
