/** Writes what is told of a run, some of it at once, so that a run of many agents is not one transaction for each word. */
import { type ScenarioEventKind, ScenarioState } from "../../gen/moltwire/lab/v1/scenario_pb.ts";
import type { App } from "../app.ts";
import { appendEvents, type NewEvent } from "./event-store.ts";
import type { RunRef } from "./store.ts";

const flushMs = 200;
/** What is told beyond is left out; the end of a run is told in any case, by who ends it. */
const maxEvents = 1_000;
const maxLength = 1_000;

export type Recorder = {
  tell(kind: ScenarioEventKind, message: string, agent?: number): void;
  /** Writes what is left; resolves when it is written. */
  close(): Promise<void>;
};

export function recorder(app: Pick<App, "db" | "clock" | "log">, ref: RunRef): Recorder {
  let waiting: NewEvent[] = [];
  let told = 0;
  let timer: { cancel(): void } | undefined;
  let writing = Promise.resolve();
  const flush = () => {
    timer = undefined;
    const events = waiting;
    waiting = [];
    writing = writing
      .then(() => app.db.tx((tx) => appendEvents(tx, ref, events, ScenarioState.RUNNING)))
      .catch((error: unknown) =>
        app.log.warn({ err: error, scenario_id: ref.scenarioId }, "events of a run were not written"),
      );
  };
  return {
    tell(kind, message, agent) {
      if (++told > maxEvents) return;
      waiting.push({ kind, agent, timeMs: app.clock.now(), message: message.slice(0, maxLength) });
      timer ??= app.clock.after(flushMs, flush);
    },
    close() {
      timer?.cancel();
      if (waiting.length > 0) flush();
      return writing;
    },
  };
}
