/** The life of a grant: who may do what to it, and what becomes of it. Pure. */
import { GrantAct, GrantParty, GrantState } from "../../../gen/moltwire/federation/v1/grant_pb.ts";

const { PROPOSED, ACTIVE, SUSPENDED, DECLINED, REVOKED, EXPIRED } = GrantState;
const { GRANTOR, GRANTEE, UNSPECIFIED: NOBODY } = GrantParty;

/** What can be done to a grant that there is. */
export type Act = Exclude<(typeof GrantAct)[keyof typeof GrantAct], 0 | typeof GrantAct.PROPOSE>;
type Party = (typeof GrantParty)[keyof typeof GrantParty];
type State = (typeof GrantState)[keyof typeof GrantState];
/** From which state to which. */
type Moves = Readonly<Partial<Record<number, State>>>;

const ended: Moves = { [PROPOSED]: REVOKED, [ACTIVE]: REVOKED, [SUSPENDED]: REVOKED };

/** By act and party. A party that is not here may not do it at all. */
const moves: Readonly<Record<Act, Readonly<Partial<Record<Party, Moves>>>>> = {
  [GrantAct.ACCEPT]: { [GRANTEE]: { [PROPOSED]: ACTIVE } },
  [GrantAct.DECLINE]: { [GRANTEE]: { [PROPOSED]: DECLINED } },
  [GrantAct.UPDATE]: { [GRANTOR]: { [PROPOSED]: PROPOSED, [ACTIVE]: ACTIVE, [SUSPENDED]: SUSPENDED } },
  [GrantAct.SUSPEND]: { [GRANTOR]: { [ACTIVE]: SUSPENDED } },
  [GrantAct.RESUME]: { [GRANTOR]: { [SUSPENDED]: ACTIVE } },
  [GrantAct.REVOKE]: { [GRANTOR]: ended, [GRANTEE]: { [ACTIVE]: REVOKED, [SUSPENDED]: REVOKED } },
  [GrantAct.EXPIRE]: { [NOBODY]: { [PROPOSED]: EXPIRED, [ACTIVE]: EXPIRED, [SUSPENDED]: EXPIRED } },
};

/** What comes of an act. */
export type Outcome =
  | { readonly kind: "changes"; readonly to: State }
  /** It is so already. */
  | { readonly kind: "same" }
  /** It is the other party's to do. */
  | { readonly kind: "party"; readonly required: GrantParty }
  /** Not in this state. */
  | { readonly kind: "state" };

/** What an act of a party makes of a grant in a state. */
export function outcomeOf(act: Act, party: GrantParty, state: GrantState): Outcome {
  const by = Object.entries(moves[act]).map(([who, from]) => ({ who: Number(who) as Party, from }));
  const mine = by.find(({ who }) => who === party);
  const to = mine?.from[state];
  if (to !== undefined) return { kind: "changes", to };
  const [other] = mine ? by.filter(({ from }) => from[state] !== undefined) : by;
  if (other) return { kind: "party", required: other.who };
  const isSo = act !== GrantAct.UPDATE && Object.values(mine?.from ?? {}).some((end) => end === state);
  return { kind: isSo ? "same" : "state" };
}

/** Whether a grant in this state can still change. */
export const isLive = (state: GrantState): boolean => state === PROPOSED || state === ACTIVE || state === SUSPENDED;

/** Whether a grant in this state has been accepted and has not ended. */
export const wasAccepted = (state: GrantState): boolean => state === ACTIVE || state === SUSPENDED;

/** The state of a grant now: one that has not ended otherwise is EXPIRED from the millisecond of its time on, whatever is stored. */
export const stateAt = (stored: GrantState, expireMs: number | null, now: number): GrantState =>
  isLive(stored) && expireMs !== null && expireMs <= now ? EXPIRED : stored;
