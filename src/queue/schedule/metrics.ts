import type { Metrics } from "../../ops/metrics.ts";
import type { Fired } from "./fire.ts";

/** What becomes of the times of schedules, counted where they are dealt with. */
export type ScheduleMetrics = { looked(fired: Fired, now: number): void };

export function scheduleMetrics(metrics: Metrics): ScheduleMetrics {
  const times = metrics.counter("moltwire_schedule_times_total", "Times of schedules, by what became of them", [
    "result",
  ]);
  for (const result of ["fired", "missed", "skipped"]) times.inc({ result }, 0);
  const lateness = metrics.histogram(
    "moltwire_schedule_lateness_seconds",
    "Time from a schedule's time to its job",
    [0.05, 0.25, 1, 5, 60, 600, 3_600, 86_400],
  );
  return {
    looked({ times: fired, missed, skipped }, now) {
      times.inc({ result: "fired" }, fired.length);
      times.inc({ result: "missed" }, missed);
      times.inc({ result: "skipped" }, skipped);
      for (const nominalMs of fired) lateness.observe(Math.max(0, now - nominalMs) / 1_000);
    },
  };
}
