import type { App } from "../app.ts";
import type { Tx } from "../db/db.ts";
import { Fault } from "../errors.ts";
import type { MemoryLimits } from "./limits.ts";
import { type MemoryRef, toHeld } from "./message.ts";
import { emptyHead, type Head, type Outcome, placeId, planChanges, type State } from "./plan.ts";
import { carryOut, dueEntries, lockMemory, readPlaces, stateOf } from "./store.ts";
import type { ExpireWish, Wish } from "./wish.ts";

/** How many expired entries a write that meets its quota announces at most, to make room. */
const maxDue = 500;
const maxAttempts = 3;

export const limitsOf = ({ memoryMaxKeys, memoryMaxBytes, memoryLogChanges }: App["config"]): MemoryLimits => ({
  maxKeys: memoryMaxKeys,
  maxBytes: memoryMaxBytes,
  keptChanges: memoryLogChanges,
});

/** A change to a memory that is to happen in one transaction. */
export type Undertaking = {
  readonly memory: MemoryRef;
  readonly wishes: readonly (Wish | Fault)[];
  readonly now: number;
  /** Whether the first wish that fails undoes all: it is thrown. */
  readonly atomic: boolean;
  /** The state with the entries of the wishes, if it was read with something else. */
  readonly state?: State | undefined;
  /** Makes the memory, where there is none: throws when whose it is is gone. */
  readonly create: () => Promise<void>;
};

/**
 * Does the wishes to the memory. What it read counts only if the head is still where it was: on PostgreSQL another transaction may have moved it, and then
 * it holds the memory and reads again. So a write that nobody disputes takes no lock beforehand, and holds it for as short as can be.
 */
export async function changeMemory(tx: Tx, app: App, undertaking: Undertaking): Promise<readonly Outcome[]> {
  const { memory, now, atomic, create } = undertaking;
  const limits = limitsOf(app.config);
  const places = undertaking.wishes.flatMap((wish) => (wish instanceof Fault ? [] : [wish.place]));
  const reread = async () => (places.length > 0 ? stateOf(await readPlaces(tx, memory, places)) : undefined);
  let read = undertaking.state ?? (await reread());
  for (let attempt = 1; attempt <= maxAttempts; attempt++) {
    const { state, expired } = await makeRoom(tx, undertaking, read ?? { head: emptyHead, entries: new Map() }, limits);
    const plan = planChanges(state, [...expired, ...undertaking.wishes], now, limits);
    const outcomes = plan.outcomes.slice(expired.length);
    const failed = atomic ? outcomes.find((outcome) => "fault" in outcome) : undefined;
    if (failed && "fault" in failed) throw failed.fault;
    if (plan.changes.length === 0) return outcomes;
    if (!read) await create();
    if (await carryOut(tx, app.vault, memory, state.head, plan, now)) return outcomes;
    await lockMemory(tx, memory);
    read = await reread();
  }
  throw new Error(`${memory.memoryId}: its head moved although it was held`);
}

/** The state with the memory's expired entries, where the quota might have no room for the wishes while they count. */
async function makeRoom(
  tx: Tx,
  { memory, wishes, now }: Undertaking,
  state: State,
  limits: MemoryLimits,
): Promise<{ readonly state: State; readonly expired: readonly ExpireWish[] }> {
  if (!isTight(state.head, wishes, limits)) return { state, expired: [] };
  const due = await dueEntries(tx, memory, now, maxDue);
  return {
    state: {
      ...state,
      entries: new Map([...state.entries, ...due.map((row) => [placeId(row), toHeld(row)] as const)]),
    },
    expired: due.map(({ namespace, key }) => ({ kind: "expire", place: { namespace, key } })),
  };
}

function isTight(head: Head, wishes: readonly (Wish | Fault)[], { maxKeys, maxBytes }: MemoryLimits): boolean {
  const sizes = wishes.flatMap((wish) => ("kind" in wish && wish.kind === "set" ? [wish.sizeBytes] : []));
  return head.entries + sizes.length > maxKeys || head.bytes + sizes.reduce((sum, size) => sum + size, 0) > maxBytes;
}
