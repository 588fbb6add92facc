/** What the area takes and hands out at most. */
export const limits = {
  payloadBytes: 65_536,
  payloadDepth: 32,
  headerBytes: 8_192,
  /** What one page of a stream or list holds: so much stays in memory for a reader who does not read. */
  pageMessages: 64,
  pageBytes: 262_144,
  /** What PullMessages hands out at once. */
  pullBytes: 1_048_576,
  markedAtOnce: 10_000,
  channels: 10_000,
  members: 10_000,
  memberships: 1_000,
  groups: 100,
  redrive: 1_000,
  /** Messages of a group that are with readers or wait to be handed out again, and its dead letters. */
  outstanding: 10_000,
  deadLetters: 10_000,
} as const;

export const defaults = { label: "direct", ackTimeoutMs: 30_000, maxDeliveries: 5 } as const;
