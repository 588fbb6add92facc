const minuteMs = 60_000;
const dayMs = 86_400_000;

/** The bounds of schedules; those of text stand in the proto. */
export const limits = {
  /** How long a nominal time that made a job is remembered, and so how far back one can be made up for. */
  reachMs: 31 * dayMs,
  /** How late a time still counts as on time. */
  graceMs: minuteMs,
  /** Jobs of one look at a schedule, and of one backfill. */
  jobs: 100,
  /** Missed times that one look counts before the catch-up window. */
  counted: 10_000,
  preview: 100,
} as const;

export const defaults = { timeZone: "UTC", catchUpMs: dayMs, preview: 10 } as const;
