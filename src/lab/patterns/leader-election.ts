/**
 * Leader election by a lease in a memory that all share. The lease is an entry that expires by itself; who writes it where there is none leads. The term is written
 * in the same transaction, so that of each there is one leader, and the revision of the lease is the fencing token: a leader writes in one transaction with the
 * lease at that revision, which fails once the lease is over, whatever the leader believes. Besides, it stops by its own clock before the lease is over.
 */
import { fromJson, toJson } from "@bufbuild/protobuf";
import { type Duration, durationFromMs, ValueSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import { ChangeKind, type Entry } from "../../../gen/moltwire/memory/v1/memory_pb.ts";
import type { Clock } from "../../clock.ts";
import type { Life } from "../actor.ts";
import { checkElection, measureElection } from "../check/election.ts";
import { notice } from "../notice.ts";
import { numbers, type Plan } from "../plan.ts";
import type { PatternPlay, Said, Scene } from "../scene.ts";

const terms = 3;
const namespace = "lab";
const leaseMs = 1_500;
/** How much sooner a leader stops than its lease is over. */
const marginMs = 250;
const reignMs = 40;
/** How long a follower hears nothing before it looks for itself. */
const silenceMs = 1_000;
const standMs = 60;

/** How long an agent leaves the others a chance before it stands for a term: so that not all of them stand at once. */
const patienceOf = (plan: Plan, agent: number, term: number): number => plan.pick(`patience ${agent} ${term}`, standMs);

/** What an agent knows of the election. */
type Known = {
  /** The last term there was, and the revision at which it was written; 0: none. */
  term: number;
  termRevision: number;
  /** The revision of the lease, while somebody has it. */
  lease: number | undefined;
  /** The last revision at which it is known to have ended. */
  ended: number;
  /** The terms whose leader has written its record. */
  readonly records: Set<number>;
};

export const leaderElection = (clock: Clock): PatternPlay => ({
  roleOf: () => "candidate",
  choices: (plan, agents) =>
    Object.fromEntries(
      numbers(agents).flatMap((agent) =>
        numbers(terms).map((n) => [`patience-ms/${agent}/${n + 1}`, String(patienceOf(plan, agent, n + 1))]),
      ),
    ),
  prepare: async () => {},

  async play(life, scene) {
    const { agent, signal } = life;
    const news = notice(clock, signal);
    const known: Known = { term: 0, termRevision: 0, lease: undefined, ended: 0, records: new Set() };
    const learn = (entry: Entry, gone: boolean) => {
      const told = known.term;
      learnFrom(known, entry, gone);
      if (known.term > told) scene.see({ kind: "follows", agent, term: known.term, leader: leaderIn(entry) });
      news.changed();
    };
    life.follow(
      (options) =>
        life.clients.memory.watchEntries({ agentId: scene.registryId, namespace, afterRevision: 0n }, options),
      ({ event }) => {
        if (event.case !== "change") return;
        const { entry, kind, revision } = event.value;
        life.deliver(`change ${revision}->${agent}`, () => learn(entry!, kind !== ChangeKind.SET));
      },
    );
    /** At which term it has stood for the next one: it does so once, unless it has looked since. */
    let stoodAt = -1;
    const isOver = () => known.records.size >= terms;
    const isFree = () => known.lease === undefined && known.termRevision !== stoodAt;
    for (let nth = 1; !isOver(); nth++) {
      if (!(await news.until(() => isOver() || isFree(), silenceMs))) {
        await look(life, scene, known, nth, learn);
        stoodAt = -1;
        continue;
      }
      await life.sleep(patienceOf(scene.plan, agent, known.term + 1));
      if (isOver() || !isFree()) continue;
      stoodAt = known.termRevision;
      await stand(life, scene, known, nth);
    }
  },

  async conclude(scene) {
    const { entries } = await scene.arbiter.memory.listEntries({
      ...{ agentId: scene.registryId, namespace, prefix: "record/", withValues: true, pageSize: 250 },
    });
    for (const entry of entries) {
      const { term, agent, token } = saidBy(entry);
      scene.see({ kind: "record", term: Number(term), agent: Number(agent), token: Number(token) });
    }
  },
  check: checkElection,
  measure: measureElection,
});

/** What is told late of an earlier revision changes nothing. */
function learnFrom(known: Known, entry: Entry, gone: boolean): void {
  const revision = Number(entry.revision);
  if (entry.key === "lease") {
    if (gone) known.ended = Math.max(known.ended, revision);
    else if (revision > known.ended) known.lease = Math.max(known.lease ?? 0, revision);
    if (known.lease !== undefined && known.lease <= known.ended) known.lease = undefined;
  } else if (entry.key === "term" && revision > known.termRevision) {
    known.term = Number(saidBy(entry).term);
    known.termRevision = revision;
  } else if (entry.key.startsWith("record/") && !gone) known.records.add(Number(saidBy(entry).term));
}

/** Stands for the next term; leads, writes its record and steps down if nobody was sooner. */
async function stand(life: Life, scene: Scene, known: Known, nth: number): Promise<void> {
  const { agent, clients } = life;
  const term = known.term + 1;
  const stoodMs = scene.nowMs();
  const lease = write("lease", { agent, term }, { ttl: durationFromMs(leaseMs), ifRevision: 0n });
  const next = write("term", { agent, term }, { ifRevision: BigInt(known.termRevision) });
  const won = await unlessBeaten(() =>
    life.call(`stand ${nth}`, (options) =>
      clients.memory.batchSetEntries({ agentId: scene.registryId, atomic: true, changes: [lease, next] }, options),
    ),
  );
  if (!won) return;
  const token = Number(won.results[0]!.revision);
  const untilMs = stoodMs + leaseMs - marginMs;
  // By the time the answer was there the lease may be over: its holder does not lead then.
  if (scene.nowMs() >= untilMs) return;
  scene.see({ kind: "leads", agent, term, token, untilMs });
  scene.tell(`leads term ${term} under the token ${token}`, agent);
  await life.sleep(reignMs);
  const kept = scene.nowMs() < untilMs ? await record(life, scene, { agent, term, token }) : undefined;
  if (kept !== undefined) scene.see({ kind: "wrote", agent, term, token });
  scene.see({ kind: "steps_down", agent, term });
  if (kept === undefined) return;
  await unlessBeaten(() =>
    life.call(`resign ${nth}`, (options) =>
      clients.memory.deleteEntry(
        { agentId: scene.registryId, namespace, key: "lease", ifRevision: BigInt(kept) },
        options,
      ),
    ),
  );
}

/** Writes under the lease: both, or, if the lease is another one by now, nothing. Gives the revision of the lease after it. */
async function record(
  life: Life,
  scene: Scene,
  said: { readonly agent: number; readonly term: number; readonly token: number },
): Promise<number | undefined> {
  const held = write(
    "lease",
    { agent: said.agent, term: said.term },
    { keepTtl: true, ifRevision: BigInt(said.token) },
  );
  const changes = [held, write(`record/${said.term}`, said, { ifRevision: 0n })];
  const done = await unlessBeaten(() =>
    life.call(`record ${said.term}`, (options) =>
      life.clients.memory.batchSetEntries({ agentId: scene.registryId, atomic: true, changes }, options),
    ),
  );
  return done && Number(done.results[0]!.revision);
}

/** For an agent that has heard nothing for long: it may have missed what it was told. */
async function look(
  life: Life,
  scene: Scene,
  known: Known,
  nth: number,
  learn: (entry: Entry, gone: boolean) => void,
): Promise<void> {
  const { entries, revision } = await life.call(`look ${nth}`, (options) =>
    life.clients.memory.listEntries({ agentId: scene.registryId, namespace, withValues: true, pageSize: 250 }, options),
  );
  for (const entry of entries) learn(entry, false);
  if (entries.some(({ key }) => key === "lease")) return;
  known.ended = Math.max(known.ended, Number(revision));
  if (known.lease !== undefined && known.lease <= known.ended) known.lease = undefined;
}

/** Undefined where another was sooner. */
async function unlessBeaten<T>(act: () => Promise<T>): Promise<T | undefined> {
  try {
    return await act();
  } catch (error) {
    if (error instanceof ConnectError && error.code === Code.FailedPrecondition) return undefined;
    throw error;
  }
}

/** When to write, and for how long. */
type Condition = { readonly ifRevision: bigint; readonly ttl?: Duration; readonly keepTtl?: boolean };

const write = (key: string, said: Said, condition: Condition) => ({
  change: {
    case: "set" as const,
    value: {
      ...{ namespace, key, ...condition },
      value: { kind: { case: "json" as const, value: fromJson(ValueSchema, said) } },
    },
  },
});

const saidBy = ({ key, value }: Entry): Said => {
  if (value?.kind.case !== "json") throw new Error(`${key} was not written by an agent of the lab`);
  return toJson(ValueSchema, value.kind.value) as Said;
};

const leaderIn = (entry: Entry): number => Number(saidBy(entry).agent);
