import type { App } from "../../app.ts";
import { Fault } from "../../errors.ts";

/** What a lease token proves: which agent has the task, by which fencing token of the task. */
export type LeaseClaim = { readonly agentId: string; readonly token: number };

const scopeOf = (orgId: string, taskId: string): readonly string[] => ["lease", orgId, taskId];

/** The token of a delivery: opaque, and good for this task only. */
export const leaseToken = (app: Pick<App, "cursors">, orgId: string, taskId: string, claim: LeaseClaim): string =>
  app.cursors.encode(scopeOf(orgId, taskId), [claim.agentId, claim.token]);

/** What a token says; undefined for what {@link leaseToken} did not make for this task. */
export function readLeaseToken(
  app: Pick<App, "cursors">,
  orgId: string,
  taskId: string,
  text: string,
): LeaseClaim | undefined {
  try {
    const [agentId, token] = app.cursors.decode(scopeOf(orgId, taskId), text, "lease_token");
    return { agentId: String(agentId), token: Number(token) };
  } catch (error) {
    if (error instanceof Fault) return undefined;
    throw error;
  }
}
