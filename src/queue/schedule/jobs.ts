import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { NewJobSchema } from "../../../gen/moltwire/queue/v1/queue_service_pb.ts";
import type { App } from "../../app.ts";
import type { Tx } from "../../db/db.ts";
import type { JobRow } from "../job-store.ts";
import { checkPayload } from "../payload.ts";
import { limits as jobLimits } from "../rule.ts";
import { enqueue } from "../submit.ts";
import { jitterMs } from "./due.ts";
import { findPayload, jobOf, type ScheduleRow } from "./store.ts";

/** What the jobs of a schedule come with. */
export type Making = {
  /** The nominal time of each; null: it has none. */
  readonly nominalsMs: readonly (number | null)[];
  readonly jittered: boolean;
  readonly trace: { readonly traceId: string; readonly spanId: string };
  readonly now: number;
};

/** Puts jobs of a schedule into its queue; gives them in the order of their times. The caller has asked whether the agent may. Throws as {@link enqueue} does. */
export async function makeJobs(tx: Tx, app: App, schedule: ScheduleRow, making: Making): Promise<JobRow[]> {
  const { nominalsMs, jittered, trace, now } = making;
  const { $typeName: _, ...job } = jobOf(schedule);
  const payload = await findPayload(tx, app, schedule);
  const { org_id: orgId, schedule_id: scheduleId, jitter_ms } = schedule;
  const newJob = (nominalMs: number | null) => {
    const later = jittered && nominalMs !== null ? jitterMs(scheduleId, nominalMs, jitter_ms) : 0;
    return create(NewJobSchema, { ...job, payload, ...(later > 0 && { runAt: timestampFromMs(nominalMs! + later) }) });
  };
  const made: JobRow[] = [];
  // As many at once as one submit takes.
  const together = Math.max(1, Math.floor(jobLimits.submitBytes / Math.max(1, checkPayload(payload, "payload"))));
  for (let from = 0; from < nominalsMs.length; from += together) {
    const some = nominalsMs.slice(from, from + together);
    const origin = { orgId, submitterAgentId: "", trace, schedule: { scheduleId, nominalsMs: some }, now };
    const results = await enqueue(tx, app, origin, some.map(newJob), () => "job");
    made.push(...results.map(({ job: row }) => row));
  }
  return made;
}
