/** What is kept for so many days, and then no longer: one server at a time removes it, a little at a time. */
import type { App } from "../app.ts";
import type { Config } from "../config.ts";
import type { Tx } from "../db/db.ts";
import { takeLease } from "../lease.ts";
import type { Metrics } from "./metrics.ts";
import {
  firstTrace,
  organizationsWithOld,
  type Removed,
  type RetentionKind,
  removeAudit,
  removeDeadLetters,
  removeDecisions,
  removeEvents,
  removeTraces,
  retentionKinds,
  type TracePosition,
} from "./retention-store.ts";

/** How often it is looked for what is too old. */
export const retentionMs = 600_000;
/** For so long the database is left to others when there is more to do. */
const pauseMs = 200;
/** Organisations that are looked at in one round, and transactions of one round. */
const lookedAt = 500;
const transactionsAtOnce = 20;
/** Longer than a round. Who loses it in the middle does no harm: what is gone is gone. */
const leaseMs = 60_000;
const dayMs = 86_400_000;

/** For how many days a kind is kept; 0: for ever. */
export const retentionDays = (config: Config, kind: RetentionKind): number =>
  ({
    traces: config.traceRetentionDays,
    events: config.eventRetentionDays,
    decisions: config.decisionRetentionDays,
    dead_letters: config.deadLetterRetentionDays,
    audit: config.auditRetentionDays,
  })[kind];

export type Retention = {
  /** One round, or the one under way; gives in how many milliseconds the next one is due. */
  round(): Promise<number>;
  /** Rows that this process has removed. */
  removed(kind: RetentionKind): number;
};

type Needs = Pick<App, "config" | "db" | "clock" | "serverId" | "stopping">;

/** Where a pass through all kinds and organisations is. */
type Place = { kind: number; orgId: string; trace: TracePosition };

/** Walks through the kinds, and in each through the organisations by their ids, from where the last round ended. */
export function createRetention(app: Needs, metrics: Pick<Metrics, "counter">): Retention {
  const { config, db, clock, serverId, stopping } = app;
  const counter = metrics.counter("moltwire_retention_removed_total", "Rows removed because they were old", ["kind"]);
  for (const kind of retentionKinds) counter.inc({ kind }, 0);
  const removed = new Map<RetentionKind, number>();
  const start = (kind = 0): Place => ({ kind, orgId: "", trace: firstTrace });
  let place = start();

  async function removeFrom(kind: RetentionKind, orgId: string, beforeMs: number): Promise<boolean> {
    for (let nth = 0; nth < transactionsAtOnce; nth++) {
      if (stopping.aborted) return false;
      const found = await db.tx((tx) => removeSome(tx, kind, orgId, beforeMs, place.trace));
      removed.set(kind, (removed.get(kind) ?? 0) + found.rows);
      counter.inc({ kind }, found.rows);
      place.trace = found.next ?? firstTrace;
      if (!found.more) return true;
    }
    return false;
  }

  async function work(): Promise<number> {
    const kind = retentionKinds[place.kind]!;
    const days = retentionDays(config, kind);
    const beforeMs = clock.now() - days * dayMs;
    const page = days === 0 ? [] : await organizationsWithOld(db.query, kind, beforeMs, place.orgId, lookedAt);
    const first = page.find(({ due }) => due === 1);
    if (first) {
      // Not the server's id: a server that holds a lease by that name counts as alive.
      if (!(await db.tx((tx) => takeLease(tx, "retention", `retention:${serverId}`, clock.now(), leaseMs))))
        return retentionMs;
      if (await removeFrom(kind, first.org_id, beforeMs)) place = { ...start(place.kind), orgId: first.org_id };
      return pauseMs;
    }
    if (page.length === lookedAt) place.orgId = page.at(-1)!.org_id;
    else place = start((place.kind + 1) % retentionKinds.length);
    return place.kind === 0 && place.orgId === "" ? retentionMs : pauseMs;
  }

  let running: Promise<number> | undefined;
  return {
    removed: (kind) => removed.get(kind) ?? 0,
    round: () =>
      (running ??= work().finally(() => {
        running = undefined;
      })),
  };
}

const removeSome = (
  tx: Tx,
  kind: RetentionKind,
  orgId: string,
  beforeMs: number,
  trace: TracePosition,
): Promise<Removed> => {
  if (kind === "traces") return removeTraces(tx, orgId, beforeMs, trace);
  if (kind === "events") return removeEvents(tx, orgId, beforeMs);
  if (kind === "audit") return removeAudit(tx, orgId, beforeMs);
  return kind === "decisions" ? removeDecisions(tx, orgId, beforeMs) : removeDeadLetters(tx, orgId, beforeMs);
};
