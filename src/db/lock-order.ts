/**
 * The one order in which a transaction takes rows that others want too, so that on PostgreSQL none waits for another in a circle. The kind comes first; of one
 * kind, organisations by their ids:
 *
 * 0. the organisation, where what it has is counted before more of it is made
 * 1. tasks: the work before the side that asked for it. Whoever has the first has the second too.
 * 2. traces, where they are opened
 * 3. agents, and their circuits
 * 4. counts of budgets, within an organisation as `applying.ts` says
 * 5. grants
 * 6. what is counted under grants
 * 7. what is counted of agents' costs
 * 8. what is left of subscriptions and free requests, then the days of listings
 * 9. accounts of the ledger
 *
 * So what ends a task is the last that a transaction does, and a transaction ends one task.
 */
export const inLockOrder = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);
