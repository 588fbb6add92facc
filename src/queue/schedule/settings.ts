/** What owners say of schedules: from the wire to a row, and changes by a mask. */
import { create } from "@bufbuild/protobuf";
import { durationFromMs, durationMs, type FieldMask, type Timestamp, timestampMs } from "@bufbuild/protobuf/wkt";
import { BackoffSchema, type Payload } from "../../../gen/moltwire/queue/v1/job_pb.ts";
import {
  Misfire,
  Overlap,
  type ScheduledJob,
  ScheduledJobSchema,
  type ScheduleSettings,
  ScheduleSettingsSchema,
  type Timing,
  TimingSchema,
} from "../../../gen/moltwire/queue/v1/schedule_pb.ts";
import type { App } from "../../app.ts";
import { badField } from "../../errors.ts";
import { maskedFields } from "../../rpc/change.ts";
import { checkPayload } from "../payload.ts";
import { defaults as jobDefaults } from "../rule.ts";
import { queueOf } from "../submit.ts";
import { type Cron, CronError, parseCron } from "./cron.ts";
import { defaults } from "./limits.ts";
import { jobText, type ScheduleRow, type SettingsRow, toSchedule } from "./store.ts";
import { nextTime } from "./times.ts";
import { openZone, type Zone } from "./zone.ts";

/** Times beyond are not taken: those that follow them could not be told. */
const lastStartMs = Date.UTC(9000, 0, 1);

/** Settings that hold together: as a row, and what its jobs carry. */
export type Settings = { readonly row: SettingsRow; readonly payload: Payload | undefined };

/** When a schedule is due, read. */
export type Read = {
  readonly cron: Cron;
  readonly zone: Zone;
  readonly startMs: number | null;
  readonly endMs: number | null;
};

/** INVALID_REQUEST with the field, below `field`: "settings.timing". */
export function readTiming(timing: Timing | undefined, field: string): Read {
  const { cron = "", timeZone = "", startTime, endTime } = timing ?? {};
  const zone = openZone(timeZone || defaults.timeZone);
  if (!zone)
    throw badField(`${field}.time_zone`, "is no IANA time zone; give a name such as Europe/Berlin or UTC, no offset");
  const startMs = msOf(startTime);
  const endMs = msOf(endTime);
  if (startMs !== null && startMs > lastStartMs) throw badField(`${field}.start_time`, "at most the year 9000");
  if (startMs !== null && endMs !== null && endMs <= startMs)
    throw badField(`${field}.end_time`, "must be after start_time");
  return { cron: readCron(cron, `${field}.cron`), zone, startMs, endMs };
}

function readCron(text: string, field: string): Cron {
  try {
    return parseCron(text);
  } catch (error) {
    if (error instanceof CronError) throw badField(field, error.message);
    throw error;
  }
}

const msOf = (time: Timestamp | undefined): number | null => (time ? timestampMs(time) : null);

/** INVALID_REQUEST or PAYLOAD_TOO_LARGE with the field, below `field`: "settings". */
export function readSettings(settings: ScheduleSettings, field: string): Settings {
  const { timing } = settings;
  const job = withDefaults(settings.job ?? create(ScheduledJobSchema));
  const { zone, startMs, endMs } = readTiming(timing, `${field}.timing`);
  checkPayload(job.payload, `${field}.job.payload`);
  const row: SettingsRow = {
    name: settings.name,
    cron: timing!.cron.trim(),
    time_zone: zone.name,
    start_ms: startMs,
    end_ms: endMs,
    job: jobText(job),
    disabled: settings.disabled ? 1 : 0,
    misfire: settings.misfire || Misfire.ONCE,
    catch_up_ms: settings.catchUp ? durationMs(settings.catchUp) : defaults.catchUpMs,
    overlap: settings.overlap || Overlap.ALLOW,
    jitter_ms: settings.jitter ? durationMs(settings.jitter) : 0,
  };
  return { row, payload: job.payload };
}

const withDefaults = (job: ScheduledJob): ScheduledJob => ({
  ...job,
  queue: queueOf(job),
  priority: job.priority || jobDefaults.priority,
  maxAttempts: job.maxAttempts || jobDefaults.maxAttempts,
  backoff: create(BackoffSchema, {
    initial: job.backoff?.initial ?? durationFromMs(jobDefaults.backoffMs),
    max: job.backoff?.max ?? durationFromMs(jobDefaults.maxBackoffMs),
  }),
});

/** When a stored schedule is due. */
export function timingOf({ cron, time_zone, start_ms, end_ms }: SettingsRow): Read {
  const zone = openZone(time_zone);
  if (!zone) throw new Error(`the time zone ${time_zone} is not known here`);
  return { cron: parseCron(cron), zone, startMs: start_ms, endMs: end_ms };
}

/** The first time after one of a schedule that is not disabled; null where there is none. */
export function firstAfter(row: SettingsRow, afterMs: number): number | null {
  if (row.disabled) return null;
  const timing = timingOf(row);
  return nextTime(timing.cron, timing.zone, afterMs, timing) ?? null;
}

const parts = {
  timing: ["cron", "time_zone", "start_time", "end_time"],
  job: ["queue", "payload", "priority", "max_attempts", "backoff", "timeout", "tags"],
} as const;
const simple = ["name", "disabled", "misfire", "catch_up", "overlap", "jitter"] as const;
const changeable: readonly string[] = [
  ...simple,
  ...Object.entries(parts).flatMap(([part, fields]) => [part, ...fields.map((field) => `${part}.${field}`)]),
];

/** What a change asks for: the settings with the masked fields replaced, and whether what its jobs carry is replaced too. */
export function changed(
  app: Pick<App, "vault">,
  row: ScheduleRow,
  change: ScheduleSettings,
  updateMask: FieldMask | undefined,
): Settings & { readonly replacesPayload: boolean } {
  const mask = maskedFields(updateMask, changeable);
  const settings = create(ScheduleSettingsSchema, toSchedule(app, row).settings);
  for (const path of mask) {
    const [name, part] = path.split(".").map(camelCase) as [string, string?];
    if (part === undefined) put(settings, name, take(change, name));
    else put(partOf(settings, name), part, take(partOf(change, name), part));
  }
  return { ...readSettings(settings, "change"), replacesPayload: mask.has("job") || mask.has("job.payload") };
}

const camelCase = (name: string): string => name.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());
const take = (from: object, name: string): unknown => (from as Record<string, unknown>)[name];
const put = (into: object, name: string, value: unknown): void =>
  void ((into as Record<string, unknown>)[name] = value);

/** One of the messages in it, made where there is none. */
function partOf(settings: ScheduleSettings, name: string): object {
  if (name === "timing") return (settings.timing ??= create(TimingSchema));
  return (settings.job ??= create(ScheduledJobSchema));
}
