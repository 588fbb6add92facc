/** An agent of a run, and everything that goes wrong for it: calls that are lost, messages that do not arrive, crashes, and being cut off. */
import { type CallOptions, Code, ConnectError } from "@connectrpc/connect";
import { RetryInfoSchema } from "../../gen/google/rpc/error_details_pb.ts";
import type { Clock } from "../clock.ts";
import { maxTries, type Plan, resendMs } from "./plan.ts";
import type { Clients } from "./wire.ts";

/** One life of an agent: from its beginning, or its restart after a crash, to its end. */
export type Life = {
  readonly agent: number;
  readonly agentId: string;
  /** 1 for the first; what was known in an earlier life is forgotten. */
  readonly life: number;
  readonly clients: Clients;
  readonly signal: AbortSignal;
  /**
   * Makes a call, again and again as long as it is lost, with the same idempotency key: names are unique in a life, or with `once` in all lives. Throws what the
   * server refuses it with, {@link GaveUp}, or {@link Crashed}.
   */
  call<T>(name: string, send: (options: CallOptions) => Promise<T>, once?: boolean): Promise<T>;
  /** Reads a stream to the end of the life. A stream that fails ends the life. */
  follow<T>(open: (options: CallOptions) => AsyncIterable<T>, arrive: (message: T) => void): void;
  /** Delivers a message, late, or never, as its fate is. */
  deliver(name: string, arrive: () => void): void;
  sleep(ms: number): Promise<void>;
};

/** Something that goes wrong: its kind is that of an InjectedFault. */
export type Injected = {
  readonly kind: "request_lost" | "answer_lost" | "message_lost" | "delayed" | "crashed" | "cut_off";
  readonly place: string;
};

/** The agent is gone for a while, and has forgotten everything. */
export class Crashed extends Error {
  override readonly name = "Crashed";
  readonly downMs: number;
  constructor(downMs: number) {
    super("the agent crashed");
    this.downMs = downMs;
  }
}

/** All tries of a call were lost. */
export class GaveUp extends Error {
  override readonly name = "GaveUp";
}

export type ActorNeeds = {
  readonly agent: number;
  readonly agentId: string;
  readonly clients: Clients;
  readonly plan: Plan;
  readonly clock: Clock;
  /** Milliseconds since the beginning. */
  readonly nowMs: () => number;
  /** Aborts when the run ends. */
  readonly signal: AbortSignal;
  /** Begins every idempotency key. */
  readonly keyPrefix: string;
  readonly inject: (fault: Injected) => void;
};

/** What an agent did, over all its lives. */
export type Tally = { calls: number; received: number; crashes: number };

/** How often a call is made again that the server has no room for. */
const maxRefusals = 20;
const refusedMs = 500;
const longestWaitMs = 60_000;

/** An agent, which lives again after each crash. */
export function createActor(needs: ActorNeeds): { readonly tally: Tally; begin(): Life & { end(): void } } {
  const { agent, plan, clock, signal: runSignal } = needs;
  const tally: Tally = { calls: 0, received: 0, crashes: 0 };
  const partition = plan.partition?.agents.includes(agent) ? plan.partition : undefined;
  let lives = 0;
  let named = 0;
  let cutOff = false;

  /** Waits until the agent is not cut off. */
  async function connected(signal: AbortSignal): Promise<void> {
    if (!partition) return;
    const nowMs = needs.nowMs();
    if (nowMs < partition.fromMs || nowMs >= partition.untilMs) return;
    if (!cutOff) needs.inject({ kind: "cut_off", place: String(agent) });
    cutOff = true;
    await clock.sleep(partition.untilMs - nowMs, signal);
  }

  function begin(): Life & { end(): void } {
    const life = ++lives;
    const over = new AbortController();
    const signal = AbortSignal.any([runSignal, over.signal]);
    const sleep = (ms: number) => clock.sleep(ms, signal);
    const crash = plan.crashes.get(agent);

    function die(downMs: number): never {
      tally.crashes++;
      needs.inject({ kind: "crashed", place: String(agent) });
      const crashed = new Crashed(downMs);
      over.abort(crashed);
      throw crashed;
    }

    async function tried<T>(
      place: string,
      key: string,
      send: (options: CallOptions) => Promise<T>,
    ): Promise<{ readonly answer: T }> {
      for (let attempt = 1; attempt <= maxTries; attempt++) {
        await connected(signal);
        const { lost, delayMs } = plan.callFate(place, attempt);
        const at = `${place} #${attempt}`;
        if (delayMs > 0) {
          needs.inject({ kind: "delayed", place: at });
          await sleep(delayMs);
        }
        if (lost) needs.inject({ kind: lost, place: at });
        const outcome = lost === "request_lost" ? undefined : await outcomeOf(key, send);
        if (outcome && lost === "") {
          if ("error" in outcome) throw outcome.error;
          return outcome;
        }
        await sleep(resendMs * 2 ** (attempt - 1));
      }
      throw new GaveUp(`${place} was lost ${maxTries} times`);
    }

    /** What the server makes of a call: its limits are waited out. */
    async function outcomeOf<T>(
      key: string,
      send: (options: CallOptions) => Promise<T>,
    ): Promise<{ readonly answer: T } | { readonly error: unknown }> {
      for (let refusals = 0; ; refusals++) {
        tally.calls++;
        try {
          return { answer: await send({ headers: { "idempotency-key": key }, signal }) };
        } catch (error) {
          signal.throwIfAborted();
          const waitMs = roomAfterMs(error);
          if (waitMs === undefined || refusals === maxRefusals) return { error };
          await sleep(waitMs);
        }
      }
    }

    return {
      agent,
      agentId: needs.agentId,
      life,
      clients: needs.clients,
      signal,
      sleep,
      async call(name, send, once = false) {
        signal.throwIfAborted();
        const dies = crash !== undefined && tally.crashes === 0 && ++named === crash.atCall;
        if (dies && !crash.after) die(crash.downMs);
        const place = `${agent}/${name}`;
        const key = `${needs.keyPrefix}/${once ? "" : `${life}/`}${place}`.replaceAll(" ", "-");
        const { answer } = await tried(place, key, send);
        if (dies) die(crash.downMs);
        return answer;
      },
      follow(open, arrive) {
        const read = async () => {
          await connected(signal);
          tally.calls++;
          for await (const message of open({ signal })) arrive(message);
        };
        read().catch((error: unknown) => over.abort(error));
      },
      deliver(name, arrive) {
        const { lostCopies, lost, delayMs } = plan.messageFate(name);
        if (lostCopies > 0) needs.inject({ kind: "message_lost", place: `${name} #${lostCopies}` });
        if (lost) return;
        if (delayMs > 0) needs.inject({ kind: "delayed", place: name });
        const come = async () => {
          await connected(signal);
          const waitMs = lostCopies * resendMs + delayMs;
          if (waitMs > 0) await sleep(waitMs);
          signal.throwIfAborted();
          tally.received++;
          arrive();
        };
        come().catch((error: unknown) => over.abort(error));
      },
      end: () => over.abort(new Error("the agent has ended")),
    };
  }
  return { tally, begin };
}

/** When there will be room for a call that was refused for want of it; undefined: it was refused for something else. */
function roomAfterMs(error: unknown): number | undefined {
  const refusal = ConnectError.from(error);
  if (![Code.Unavailable, Code.ResourceExhausted, Code.Aborted].includes(refusal.code)) return undefined;
  const [info] = refusal.findDetails(RetryInfoSchema);
  const { seconds = 0n, nanos = 0 } = info?.retryDelay ?? {};
  if (info) return Math.min(longestWaitMs, Number(seconds) * 1_000 + nanos / 1e6 + 1);
  // A quota that is used up does not come back by itself.
  return refusal.code === Code.ResourceExhausted ? undefined : refusedMs;
}
