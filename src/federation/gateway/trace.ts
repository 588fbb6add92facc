/** The traces of both sides, and what they say of the two decisions. */

import type { JsonObject } from "@bufbuild/protobuf";
import { PolicyVerdict } from "../../../gen/moltwire/bus/v1/policy_pb.ts";
import { TraceEventKind } from "../../../gen/moltwire/bus/v1/trace_pb.ts";
import { policyStep } from "../../bus/permit.ts";
import { openTrace, type Span, type Step } from "../../bus/trace-store.ts";
import type { Tx } from "../../db/db.ts";
import { inLockOrder } from "../../db/lock-order.ts";
import { nameIn } from "../../enum-name.ts";
import type { GrantRow } from "../grant/store.ts";
import type { Outward } from "./outward.ts";

const kind = TraceEventKind.POLICY_DECIDED;

/** Opens the trace of the side that asks, and of the one that is asked if anything comes to it; gives whether that had none. */
export async function openTraces(tx: Tx, here: Span, there: Span | undefined, now: number): Promise<boolean> {
  let isNew = false;
  for (const span of [here, ...(there ? [there] : [])].toSorted((a, b) => inLockOrder(a.orgId, b.orgId))) {
    const opened = (await openTrace(tx, span, now)) > 0;
    if (span === there) isNew = opened;
  }
  return isNew;
}

/** The grant that a decision is about, at its revision. */
const underGrant = ({ grant_id, revision }: GrantRow): JsonObject => ({ grant_id, grant_revision: revision });

/** The own decision of the organisation that asks. */
export function outwardStep({ decided, refusal, demand }: Outward, grant: GrantRow, timeMs: number): Step {
  const { message, details } = policyStep({ decisions: [decided], refusal, demand });
  return { kind, timeMs, message, details: { ...details, ...underGrant(grant), direction: "out" } };
}

/** The verdict of the other organisation, in the trace of either; undefined when its policies have not been asked. */
export function foreignStep(
  orgId: string,
  verdict: PolicyVerdict,
  grant: GrantRow,
  direction: "in" | "out",
  timeMs: number,
): Step[] {
  if (verdict === PolicyVerdict.UNSPECIFIED) return [];
  const name = verdictName(verdict);
  const message = `the organisation ${orgId} decided: ${name}`;
  return [{ kind, timeMs, message, details: { verdict: name, org_id: orgId, ...underGrant(grant), direction } }];
}

/** Its name, such as ALLOW. */
export const verdictName = (verdict: PolicyVerdict): string => nameIn(PolicyVerdict, verdict);
