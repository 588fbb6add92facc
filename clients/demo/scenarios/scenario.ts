/** What a scenario is: it does something over the wire, checks that it came out as it says, and throws if it did not. */
import type { Clients } from "../../cli/connect.ts";
import type { Made } from "../setup.ts";
import type { Peer, Who } from "../start.ts";

/** What scenarios work with. Each makes what it needs besides, under names of its own, so that each can run alone. */
export type World = {
  readonly url: string;
  /** Speaks for whoever runs the server. */
  readonly operator: Clients;
  /** Speaks for the organisation. */
  readonly admin: Clients;
  /** Speaks for the agent `planner`, which only calls. */
  readonly planner: Clients;
  readonly made: Made;
  readonly reviewer: Who;
  /** Where flaky agents are, each at a path of its own. */
  readonly flakyUrl: string;
  /** Starts a second server, which ends with the demo. */
  readonly startPeer: () => Promise<Peer>;
  /** Where the documents are that are quoted. */
  readonly root: string;
  readonly question: string;
  /** The columns there are. */
  readonly width: number;
};

/** What came of a scenario that held. */
export type Outcome = {
  /** What it proved, with figures, in a sentence. */
  readonly proof: string;
  /** The trace to look at. */
  readonly traceId: string;
  /** More to see, in lines of at most `width` columns. */
  readonly lines?: readonly string[];
};

/** A scenario. Throws when something is otherwise than it says. */
export type Scenario = { readonly name: string; readonly run: (world: World) => Promise<Outcome> };
