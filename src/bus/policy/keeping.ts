/** Which decisions outside of tasks are kept in the decision log, and how: with the command that asked, or for a read in a transaction of its own. */
import type { App } from "../../app.ts";
import type { Queryable, Tx } from "../../db/db.ts";
import { type Fault, Refused } from "../../errors.ts";
import type { Command } from "../../rpc/command.ts";
import type { Query } from "../../rpc/query.ts";
import { type Decided, policyDenied } from "./decide-task.ts";
import { recordDecisions } from "./decision-store.ts";
import { keyOf } from "./read-decisions.ts";

/** Where a decision is made that is no task's: what it is read through, and how it is kept. */
export type Keeping = {
  readonly db: Queryable;
  /** Keeps those decisions on a call that are to be kept: all that do not allow, and all on agents of the outer tiers. */
  keep(decisions: readonly Decided[]): Promise<void>;
  /** Keeps those on agents of the outer tiers that only sift what a call shows, or are made again and again while it lasts. */
  note(decisions: readonly Decided[]): Promise<void>;
};

/** Where and when. */
export type KeptAt = { readonly orgId: string; readonly traceId: string; readonly now: number };

const isAllowed = ({ answer }: Decided): boolean => answer.verdict === "ALLOW";
const isOuter = ({ question }: Decided): boolean => question.principal.outer === true;

/**
 * In a command: decisions commit with what it does, or with its refusal. What is only noted stands for the same ones that follow once it is committed, as the command may
 * run again, or fail.
 */
export function keepInTx(tx: Tx, app: App, { orgId, traceId, now }: KeptAt): Keeping {
  const at = { orgId, traceId, taskId: "", now };
  const noted = new Set<string>();
  const isNew = (one: Decided): boolean => {
    const key = JSON.stringify([one.question.principal.key, keyOf(one)]);
    if (noted.has(key) || !app.readDecisions.wouldAdmit(one, now, noted.size)) return false;
    noted.add(key);
    tx.afterCommit(() => app.readDecisions.kept(one, now));
    return true;
  };
  const record = async (decisions: readonly Decided[]) => {
    if (decisions.length > 0) await recordDecisions(tx, app, at, decisions);
  };
  return {
    db: tx,
    keep: (decisions) => record(decisions.filter((one) => isOuter(one) || !isAllowed(one))),
    note: (decisions) => record(decisions.filter((one) => isOuter(one) && isNew(one))),
  };
}

/**
 * In a read: decisions are committed before it goes on, in a transaction of their own. What does not allow, and what is only noted, passes {@link ReadDecisions}
 * first; what allows an agent of the outer tiers a call is kept each time.
 */
export function keepApart(app: App, db: Queryable, { orgId, traceId }: Omit<KeptAt, "now">): Keeping {
  const record = async (decisions: readonly Decided[], now: number) => {
    if (decisions.length === 0) return;
    try {
      await app.db.tx((tx) => recordDecisions(tx, app, { orgId, traceId, taskId: "", now }, decisions));
    } catch (error) {
      for (const one of decisions) app.readDecisions.lost(one, now);
      throw error;
    }
  };
  return {
    db,
    async keep(decisions) {
      const now = app.clock.now();
      const admits = (one: Decided): boolean => {
        if (!isAllowed(one)) return app.readDecisions.admits(one, now);
        if (isOuter(one)) app.readDecisions.kept(one, now);
        return isOuter(one);
      };
      await record(decisions.filter(admits), now);
    },
    async note(decisions) {
      const now = app.clock.now();
      await record(
        decisions.filter((one) => isOuter(one) && app.readDecisions.admits(one, now)),
        now,
      );
    },
  };
}

export const keepingOf = (app: App, { tx, orgId, now, trace }: Command): Keeping =>
  keepInTx(tx, app, { orgId, traceId: trace.traceId, now });

export const readKeepingOf = (app: App, { db, orgId, trace }: Pick<Query, "db" | "orgId" | "trace">): Keeping =>
  keepApart(app, db, { orgId, traceId: trace.traceId });

/** The same where something is asked again and again while one call lasts, such as a stream: what allows is only noted. */
export const asked = (keeping: Keeping): Keeping => ({
  ...keeping,
  async keep(decisions) {
    await keeping.note(decisions.filter(isAllowed));
    await keeping.keep(decisions.filter((one) => !isAllowed(one)));
  },
});

/** Keeps a decision, and throws unless it allows: POLICY_DENIED, or what the caller is told who may not know. What a command wrote until then commits. */
export async function settle(keeping: Keeping, decided: Decided, hidden?: Fault): Promise<void> {
  await keeping.keep([decided]);
  if (!isAllowed(decided)) throw asRefused(hidden ?? policyDenied(decided));
}

/** A fault that keeps what its command wrote: the decision. */
export const asRefused = ({ reason, message, metadata, details }: Fault): Refused =>
  new Refused(reason, message, { ...metadata }, details);
