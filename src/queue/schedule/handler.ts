import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import type { PreviewedTimeSchema, ScheduleService } from "../../../gen/moltwire/queue/v1/schedule_service_pb.ts";
import type { App } from "../../app.ts";
import { lockAgent } from "../../bus/agent-store.ts";
import { keepingOf, readKeepingOf } from "../../bus/policy/keeping.ts";
import { badField, Fault, notFound } from "../../errors.ts";
import { checkRevision } from "../../rpc/change.ts";
import { type Command, command } from "../../rpc/command.ts";
import { query } from "../../rpc/query.ts";
import { seesWholeOrg } from "../../rpc/scope.ts";
import { authorize } from "../access.ts";
import { toJob } from "../job-store.ts";
import { readVisible } from "../page.ts";
import { queueOf } from "../submit.ts";
import { backfill, checkWindow } from "./backfill.ts";
import { makeJobs } from "./jobs.ts";
import { defaults, limits } from "./limits.ts";
import { agentOf, checkUse, permits, type Use, usable } from "./owner.ts";
import { changed, firstAfter, type Read, readSettings, readTiming, timingOf } from "./settings.ts";
import {
  countSchedules,
  deleteSchedule,
  findPayload,
  findSchedule,
  insertSchedule,
  jobOf,
  listSchedules,
  lockSchedule,
  putPayload,
  type ScheduleRow,
  toSchedule,
  updateProgress,
  updateSettings,
} from "./store.ts";
import { timesAfter } from "./times.ts";
import { localText } from "./zone.ts";

export const scheduleHandler = (app: App): ServiceImpl<typeof ScheduleService> => ({
  createSchedule: command(app, async (req, given) => {
    const { tx, orgId, caller, now } = given;
    const agentId = agentOf(caller, req.agentId);
    const missing = () => notFound("agent", agentId);
    const id = { org_id: orgId, schedule_id: app.ids.next("sch"), agent_id: agentId };
    // Held, so that it is not deleted meanwhile and its schedules are counted one by one. Before the policies: of no agent there is nothing to decide.
    if (!(await lockAgent(tx, orgId, agentId))) throw missing();
    await checkUse(app, keepingOf(app, given), { orgId, caller, action: "write_schedule", now }, id, missing);
    const { row: settings, payload } = readSettings(req.settings!, "settings");
    await checkQuota(app, given, agentId);
    const nextMs = firstAfter(settings, now);
    const row: ScheduleRow = {
      ...settings,
      ...id,
      revision: 1,
      create_ms: now,
      update_ms: now,
      next_ms: nextMs,
      due_ms: nextMs,
      seen_ms: now,
      last_run_ms: null,
      last_nominal_ms: null,
      last_job_id: "",
      run_count: 0,
      missed_count: 0,
      skipped_count: 0,
      last_error: null,
    };
    await mayEnqueue(app, given, row);
    await insertSchedule(tx, row);
    await putPayload(tx, app, row, payload);
    return { schedule: toSchedule(app, row) };
  }),

  getSchedule: query(app, async (req, given) => {
    const { db, orgId, caller, now } = given;
    const use: Use = { orgId, caller, action: "read_schedule", now };
    const row = await usable(
      app,
      readKeepingOf(app, given),
      use,
      req.scheduleId,
      await findSchedule(db, orgId, req.scheduleId),
    );
    return { schedule: toSchedule(app, row, await findPayload(db, app, row)) };
  }),

  listSchedules: query(app, async (req, given) => {
    const { db, orgId, caller, now } = given;
    const agentId = req.agentId || (seesWholeOrg(caller) ? "" : caller.agentId);
    const permitted = await permits(app, readKeepingOf(app, given), { orgId, caller, action: "read_schedule", now });
    const page = await readVisible(
      app.cursors,
      ["ListSchedules", orgId, caller.agentId, agentId],
      req,
      (after, limit) => listSchedules(db, orgId, agentId, String(after?.[0] ?? ""), limit),
      permitted,
      (row) => [row.schedule_id],
    );
    return { schedules: page.rows.map((row) => toSchedule(app, row)), nextPageToken: page.nextPageToken };
  }),

  updateSchedule: command(app, async (req, given) => {
    const { tx, now } = given;
    const row = await locked(app, given, req.scheduleId);
    const settings = changed(app, row, req.change!, req.updateMask);
    checkRevision(req.ifRevision, row.revision);
    const times = retimed(row, settings.row) ? nextFrom(settings.row, Math.max(now, row.seen_ms)) : {};
    const next: ScheduleRow = { ...row, ...settings.row, ...times, update_ms: now, revision: row.revision + 1 };
    if (queueOf(jobOf(next)) !== queueOf(jobOf(row))) await mayEnqueue(app, given, next);
    await updateSettings(tx, next);
    if (settings.replacesPayload) await putPayload(tx, app, next, settings.payload);
    return { schedule: toSchedule(app, next) };
  }),

  deleteSchedule: command(app, async (req, given) => {
    await deleteSchedule(given.tx, await locked(app, given, req.scheduleId));
    return {};
  }),

  triggerSchedule: command(app, async (req, given) => {
    const { tx, trace, now } = given;
    const row = await locked(app, given, req.scheduleId);
    await mayEnqueue(app, given, row);
    const [job] = await makeJobs(tx, app, row, { nominalsMs: [null], jittered: false, trace, now });
    const { job_id: last_job_id } = job!;
    await updateProgress(tx, { ...row, run_count: row.run_count + 1, last_run_ms: now, last_job_id });
    return { job: toJob(app, job!) };
  }),

  previewSchedule: query(app, async (req, given) => {
    const { db, orgId, caller, now } = given;
    const { subject, count, afterTime } = req;
    const afterMs = afterTime ? timestampMs(afterTime) : now;
    if (afterMs < 0 || afterMs > lastPreviewMs) throw badField("after_time", "from the year 1970 to 9000");
    if (subject.case === "draft") return { times: preview(readTiming(subject.value, "draft"), afterMs, count) };
    const id = subject.value ?? "";
    const use: Use = { orgId, caller, action: "read_schedule", now };
    const row = await usable(app, readKeepingOf(app, given), use, id, await findSchedule(db, orgId, id));
    return { times: preview(timingOf(row), Math.max(afterMs, afterTime ? 0 : row.seen_ms), count) };
  }),

  backfillSchedule: command(app, async (req, given) => {
    const row = await locked(app, given, req.scheduleId);
    const window = { startMs: timestampMs(req.startTime!), endMs: timestampMs(req.endTime!) };
    checkWindow(window, given.now);
    await mayEnqueue(app, given, row);
    const { jobs, more } = await backfill(given.tx, app, row, window, req.maxJobs || limits.jobs, given);
    return { jobs: jobs.map((job) => toJob(app, job)), more };
  }),
});

const lastPreviewMs = Date.UTC(9000, 0, 1);
/** Later ones have no form on the wire. */
const lastTimestampMs = Date.UTC(10_000, 0, 1) - 1;

/** The schedule, locked, if the caller may change it; else NOT_FOUND or POLICY_DENIED. */
async function locked(app: App, given: Command, scheduleId: string): Promise<ScheduleRow> {
  const { tx, orgId, caller, now } = given;
  const use: Use = { orgId, caller, action: "write_schedule", now };
  return usable(app, keepingOf(app, given), use, scheduleId, await lockSchedule(tx, orgId, scheduleId));
}

/** POLICY_DENIED unless the schedule's agent may put jobs into its queue. */
const mayEnqueue = (app: App, { tx, orgId, now, trace }: Command, row: ScheduleRow): Promise<void> =>
  authorize(tx, app, { orgId, agentId: row.agent_id, now, traceId: trace.traceId }, "enqueue_job", [
    queueOf(jobOf(row)),
  ]);

/** QUOTA_EXCEEDED with the figures. */
async function checkQuota({ config }: App, { tx, orgId }: Command, agentId: string): Promise<void> {
  const limit = config.schedulesPerAgent;
  const used = await countSchedules(tx, orgId, agentId, limit);
  if (used < limit) return;
  const message = `the quota of schedules is ${limit}, of which ${used} are used: delete some`;
  const metadata = { resource: "schedules", limit: String(limit), used: String(used) };
  throw new Fault("QUOTA_EXCEEDED", message, metadata, { quota: { subject: "schedules", description: message } });
}

type Timed = Pick<ScheduleRow, "cron" | "time_zone" | "start_ms" | "end_ms" | "disabled">;
const retimed = (before: Timed, after: Timed): boolean =>
  (["cron", "time_zone", "start_ms", "end_ms", "disabled"] as const).some((field) => before[field] !== after[field]);

function nextFrom(settings: Parameters<typeof firstAfter>[0], afterMs: number) {
  const nextMs = firstAfter(settings, afterMs);
  return { next_ms: nextMs, due_ms: nextMs };
}

/** The first times after one, as people and programs read them. */
function preview(
  { cron, zone, startMs, endMs }: Read,
  afterMs: number,
  count: number,
): MessageInitShape<typeof PreviewedTimeSchema>[] {
  const times: MessageInitShape<typeof PreviewedTimeSchema>[] = [];
  for (const timeMs of timesAfter(cron, zone, Math.max(afterMs, (startMs ?? 0) - 1))) {
    if (times.length === (count || defaults.preview) || timeMs > lastTimestampMs || (endMs !== null && timeMs > endMs))
      break;
    times.push({ nominalTime: timestampFromMs(timeMs), localTime: localText(zone, timeMs) });
  }
  return times;
}
