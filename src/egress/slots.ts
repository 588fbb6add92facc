import { EgressError, stopped } from "./error.ts";

/** Bounds how many calls run at once and how many wait: per key, and in all. */
export type Slots = {
  /**
   * Waits for a slot, in the order of asking.
   *
   * @returns the function that gives the slot back; call it once.
   * @throws EgressError `busy` if too many wait already; what the signal's reason says.
   */
  readonly take: (key: string, signal: AbortSignal) => Promise<() => void>;
};

/** Limits of {@link openSlots}, each a count of calls. */
export type SlotLimits = { readonly perKey: number; readonly waitingPerKey: number; readonly total: number };

type Lane = { running: number; readonly waiting: Set<() => void> };

const tooBusy = (): EgressError => new EgressError("busy", "too many outgoing calls are running already");

/** Empty lanes are dropped, so memory follows the calls and not the keys ever seen. */
export const openSlots = (limits: SlotLimits): Slots => {
  const lanes = new Map<string, Lane>();
  let total = 0;

  const giveBack = (key: string, lane: Lane): void => {
    const [next] = lane.waiting;
    if (next) next();
    else if ((lane.running -= 1) === 0) lanes.delete(key);
  };

  return {
    take: (key, signal) =>
      new Promise((resolve, reject) => {
        if (signal.aborted) return reject(stopped(signal, false));
        const lane = lanes.get(key) ?? { running: 0, waiting: new Set() };
        const full = lane.running >= limits.perKey;
        if (total >= limits.total || (full && lane.waiting.size >= limits.waitingPerKey)) return reject(tooBusy());
        lanes.set(key, lane);
        total += 1;
        const release = () => {
          total -= 1;
          giveBack(key, lane);
        };
        if (!full) {
          lane.running += 1;
          return resolve(release);
        }
        const leave = () => {
          lane.waiting.delete(start);
          total -= 1;
          reject(stopped(signal, false));
        };
        const start = () => {
          lane.waiting.delete(start);
          signal.removeEventListener("abort", leave);
          resolve(release);
        };
        lane.waiting.add(start);
        signal.addEventListener("abort", leave, { once: true });
      }),
  };
};
