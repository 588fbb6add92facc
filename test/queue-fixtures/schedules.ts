/** What the tests of schedules say often. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import type { Schedule, ScheduleSettingsSchema } from "../../gen/moltwire/queue/v1/schedule_pb.ts";
import { sql } from "../../src/db/db.ts";
import type { ScheduleMetrics } from "../../src/queue/schedule/metrics.ts";
import { nextDue } from "../../src/queue/schedule/store.ts";
import { tick } from "../../src/queue/schedule/tick.ts";
import { type Clients, eventually, type World } from "../harness.ts";

export type SettingsInit = Partial<Extract<MessageInitShape<typeof ScheduleSettingsSchema>, { $typeName?: never }>>;

/** Makes a schedule of an expression; gives it. */
export async function create(by: Clients, cron: string, settings: SettingsInit = {}, agentId = ""): Promise<Schedule> {
  const timing = { cron, ...(settings.timing as object) };
  const { schedule } = await by.schedules.createSchedule({ agentId, settings: { ...settings, timing } });
  return schedule!;
}

export const get = async (by: Clients, scheduleId: string): Promise<Schedule> =>
  (await by.schedules.getSchedule({ scheduleId })).schedule!;

export const time = (text: string) => timestampFromMs(Date.parse(text));
export const iso = (at: Parameters<typeof timestampMs>[0] | undefined): string =>
  at ? new Date(timestampMs(at)).toISOString() : "";

const uncounted: ScheduleMetrics = { looked() {} };

/** Does what is due until nothing is: what another server is at is waited for. */
export const ticked = ({ server: { app } }: World): Promise<boolean> =>
  eventually(async () => {
    await tick(app, uncounted);
    return ((await nextDue(app.db.query)) ?? Number.MAX_SAFE_INTEGER) > app.clock.now();
  });

/** The jobs of a schedule as they are stored, by their nominal time; null is that of a triggered one. */
export const jobsOf = ({ server: { app } }: World, { scheduleId }: Schedule) =>
  app.db.query.all<{ job_id: string; nominal_ms: number | null; create_ms: number; run_ms: number; state: number }>(
    sql`select job_id, nominal_ms, create_ms, run_ms, state from queue_job where schedule_id = ${scheduleId} order by nominal_ms, seq`,
  );

/** Their nominal times, as texts. */
export const timesOf = async (world: World, schedule: Schedule): Promise<(string | null)[]> =>
  (await jobsOf(world, schedule)).map(({ nominal_ms }) =>
    nominal_ms === null ? null : new Date(nominal_ms).toISOString().replace(":00.000Z", ""),
  );
