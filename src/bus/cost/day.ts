/** Days in UTC. */

export const dayMs = 86_400_000;

/** When the day of a time begins. */
export const dayStart = (atMs: number): number => Math.floor(atMs / dayMs) * dayMs;

/** The day as it is written: `2025-01-31`. */
export const dayText = (atMs: number): string => new Date(atMs).toISOString().slice(0, 10);

/** When a day that is written so begins; undefined when there is no such day. */
export function parseDay(text: string): number | undefined {
  const at = Date.parse(`${text}T00:00:00Z`);
  return Number.isNaN(at) || dayText(at) !== text ? undefined : at;
}
