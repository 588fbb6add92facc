/** When a message between servers may be taken. Pure. */
import { Fault } from "../../errors.ts";

/** The longest that a message lives: so long its nonce is remembered. */
export const maxLifeMs = 300_000;
/** How far the clocks of two servers may lie apart. */
export const skewMs = 60_000;

/** Throws PEER_MESSAGE_STALE or PEER_MESSAGE_EARLY unless a message of these times may be taken now. */
export function checkTimes(createMs: number, expireMs: number, now: number): void {
  const text = (ms: number): string =>
    Number.isFinite(ms) && Math.abs(ms) < 8.64e15 ? new Date(ms).toISOString() : "";
  const facts = { create_time: text(createMs), expire_time: text(expireMs), now: text(now) };
  if (createMs > now + skewMs)
    throw new Fault("PEER_MESSAGE_EARLY", "the message was made at a time that has not come: set the clocks", facts);
  if (!(expireMs > now)) throw new Fault("PEER_MESSAGE_STALE", "the message has expired", facts);
  if (expireMs - createMs > maxLifeMs)
    throw new Fault("PEER_MESSAGE_STALE", `a message lives at most ${maxLifeMs} ms`, facts);
}
