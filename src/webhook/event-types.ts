/** Which events a webhook can ask for. */
import { badField } from "../errors.ts";
import type { EventType } from "../ops/outbox.ts";

/** A record, so that an event that is emitted and cannot be asked for does not compile. */
const known: Readonly<Record<EventType, true>> = {
  "message.received": true,
  "job.completed": true,
  "job.failed": true,
  "task.completed": true,
  "task.failed": true,
  "approval.requested": true,
  "marketplace.task_claimed": true,
  "marketplace.task_delivered": true,
  "marketplace.task_reviewed": true,
  "marketplace.task_expired": true,
  "grant.revoked": true,
  "subscription.paused": true,
  "payment.received": true,
  "budget.warning": true,
  "budget.exceeded": true,
  "circuit.opened": true,
  "deadletter.created": true,
  "webhook.disabled": true,
};
/** All that there are. */
export const eventNames: readonly string[] = Object.keys(known);

/** The event of TestWebhook: it goes to the one webhook, whatever that asks for. */
export const testEventType = "webhook.test";

const areaOf = (name: string): string => `${name.split(".", 1)[0]}.*`;

/** All that stand for an event of this type: its name, its area's, and the one for all. */
export const patternsOf = (type: string): readonly [string, string, string] => ["*", areaOf(type), type];

/** INVALID_REQUEST for a pattern that no event fits: it would be waited for in vain. */
export function checkPatterns(patterns: readonly string[], field: string): void {
  if (patterns.length === 0) throw badField(field, 'name at least one event, such as "task.*"; "*" stands for all');
  for (const [n, pattern] of patterns.entries()) {
    if (!eventNames.some((name) => patternsOf(name).includes(pattern)))
      throw badField(`${field}[${n}]`, `there is no event ${pattern}; there are: ${eventNames.join(", ")}`);
  }
}

/** Without those that another one covers, so that an event fits at most one. */
export const disjoint = (patterns: readonly string[]): string[] =>
  [...new Set(patterns)].filter(
    (pattern) =>
      pattern === "*" ||
      !(patterns.includes("*") || (pattern !== areaOf(pattern) && patterns.includes(areaOf(pattern)))),
  );
