/** The phases of a task. Each brings one to its phase and says when it is there: then the server is killed. */
import { TraceEventKind } from "../../../gen/moltwire/bus/v1/trace_pb.ts";
import { eventually } from "../../harness.ts";
import { ask, decide, retry } from "./actions.ts";
import type { Kind, Stage } from "./asks.ts";

export type Phase = {
  /** The kill comes so much later at most. */
  readonly spreadMs: number;
  /** Resolves when a task is in the phase. */
  reach(stage: Stage): Promise<void>;
};

const patienceMs = 20_000;

export const phases: Readonly<Record<string, Phase>> = {
  accepted: {
    spreadMs: 10,
    async reach(stage) {
      const kind = stage.choose.pick<Kind>(["once", "repeat", "pull", "pull-repeat"]);
      await ask(stage, kind, ["slow"], { phase: "accepted" });
    },
  },
  // Many at once, of two budgets: the kill comes upon some whose reserve is being written.
  reserved: {
    spreadMs: 4,
    async reach(stage) {
      const asks = Array.from({ length: 24 }, (_, i) =>
        ask(stage, i % 2 ? "once" : "repeat", ["answer"], { phase: "reserved", by: i % 3 ? "caller" : "frugal" }),
      );
      if (stage.choose.chance(0.5)) await Promise.race(asks);
      else await new Promise((resolve) => setTimeout(resolve, stage.choose.int(2, 25)));
    },
  },
  "awaiting approval": {
    spreadMs: 10,
    async reach(stage) {
      const kind = stage.choose.pick<Kind>(["guarded", "guarded-repeat", "guarded-pull"]);
      await ask(stage, kind, ["slow"], { phase: "awaiting approval" });
    },
  },
  // A third of them while the word is on its way.
  approved: {
    spreadMs: 10,
    async reach(stage) {
      const kind = stage.choose.pick<Kind>(["guarded", "guarded", "guarded-repeat", "guarded-pull"]);
      const made = await ask(stage, kind, ["slow"], { phase: "approved" });
      const decided = decide(stage, made, "approve");
      if (stage.choose.chance(0.67)) await decided;
    },
  },
  dispatched: {
    spreadMs: 30,
    async reach(stage) {
      const made = await ask(stage, stage.choose.pick(["once", "repeat"]), ["hold", "answer"], { phase: "dispatched" });
      await stage.workers.when(made.orders.n, "arrived");
    },
  },
  answered: {
    spreadMs: 2,
    async reach(stage) {
      const made = await ask(stage, stage.choose.pick(["once", "repeat"]), ["hold", "answer"], { phase: "answered" });
      const { n } = made.orders;
      await stage.workers.when(n, "arrived");
      stage.workers.release(n);
      await stage.workers.when(n, "said");
    },
  },
  // Many answers at once; the kill comes when the first client hears of its own, upon those that are being written.
  settling: {
    spreadMs: 3,
    async reach(stage) {
      const first = stage.book.asks.length + 1;
      const all = Array.from({ length: 16 }, (_, i) => ({
        n: first + i,
        ended: ask(stage, i % 2 ? "once" : "repeat", ["hold", "answer"], { phase: "settling", blocking: true }),
      }));
      await Promise.all(all.map(({ n }) => stage.workers.when(n, "arrived")));
      for (const { n } of all) stage.workers.release(n);
      await Promise.race(all.map(({ ended }) => ended));
    },
  },
  "leased to an agent that pulls": {
    spreadMs: 30,
    async reach(stage) {
      const kind = stage.choose.pick<Kind>(["pull", "pull-repeat"]);
      const made = await ask(stage, kind, ["hold", "answer"], { phase: "leased to an agent that pulls" });
      await stage.workers.when(made.orders.n, "arrived");
    },
  },
  "answered by an agent that pulls": {
    spreadMs: 12,
    async reach(stage) {
      const kind = stage.choose.pick<Kind>(["pull", "pull-repeat"]);
      const made = await ask(stage, kind, ["answer"], { phase: "answered by an agent that pulls" });
      await stage.workers.when(made.orders.n, "said");
    },
  },
  "between two attempts": {
    spreadMs: 30,
    async reach(stage) {
      const made = await ask(stage, "patient", ["fail", "answer"], { phase: "between two attempts" });
      await eventually(() => hasFailedOnce(stage, made.taskId!), patienceMs);
    },
  },
  "retried from a dead letter": {
    spreadMs: 10,
    async reach(stage) {
      const made = await ask(stage, "hopeless", ["fail"], { phase: "retried from a dead letter", blocking: true });
      const { deadLetters } = await stage.admin.deadLetters.listDeadLetters({ taskId: made.taskId! });
      if (deadLetters.length !== 1) {
        stage.book.surprises.push(`${made.taskId} failed, and has ${deadLetters.length} dead letters`);
        return;
      }
      await retry(stage, made, deadLetters[0]!.deadLetterId);
    },
  },
};

async function hasFailedOnce({ admin }: Stage, taskId: string): Promise<boolean> {
  const { task } = await admin.bus.getTask({ taskId });
  const { events } = await admin.traces.getTrace({ traceId: task!.traceId });
  return events.some(({ kind }) => kind === TraceEventKind.ATTEMPT_FAILED);
}
