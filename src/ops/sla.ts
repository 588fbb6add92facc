import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type {
  GetSlaResponseSchema,
  SlaSliceSchema,
  SlaWindowSchema,
} from "../../gen/moltwire/ops/v1/status_service_pb.ts";
import type { Queryable } from "../db/db.ts";
import { checkedSince, minuteMs, minuteOf, readCheckSlices, readChecks } from "./self-check.ts";

type Sla = MessageInitShape<typeof GetSlaResponseSchema>;

const targetPercent = 99.9;
const freshMs = 15_000;
const hour = 60;
const day = 24 * hour;

/** Reads how the server did, at most once in 15 s: anybody may ask, and a month is 43,200 rows. */
export function slaReader(): (db: Queryable, now: number) => Promise<Sla> {
  let cached: { readonly atMs: number; readonly sla: Promise<Sla> } | undefined;
  return (db, now) => {
    if (cached && now >= cached.atMs && now - cached.atMs < freshMs) return cached.sla;
    const sla = readSla(db, now);
    const reading = { atMs: now, sla };
    cached = reading;
    sla.catch(() => {
      if (cached === reading) cached = undefined;
    });
    return sla;
  };
}

async function readSla(db: Queryable, now: number): Promise<Sla> {
  const since = await checkedSince(db);
  if (since === undefined) return { targetPercent, day: {}, week: {}, month: {} };
  const current = minuteOf(now);
  const window = (minutes: number) => readWindow(db, Math.max(since, current - minutes + 1), current);
  return {
    targetPercent,
    sinceTime: timestampFromMs(since * minuteMs),
    day: await window(day),
    week: await window(7 * day),
    month: await window(30 * day),
    hours: await readSlices(db, since, current, hour, 24),
    days: await readSlices(db, since, current, day, 30),
  };
}

/** The last slices of so many minutes, that of the current one included; none that ended before the first check. */
async function readSlices(
  db: Queryable,
  since: number,
  current: number,
  sliceMinutes: number,
  count: number,
): Promise<MessageInitShape<typeof SlaSliceSchema>[]> {
  const sliceOf = (minute: number) => Math.floor(minute / sliceMinutes);
  const from = Math.max(since, (sliceOf(current) - count + 1) * sliceMinutes);
  const rows = await readCheckSlices(db, from, current, sliceMinutes);
  const ups = new Map(rows.map(({ slice, up }) => [slice, up]));
  const to = rows.at(-1)?.last === current ? current : current - 1;
  return Array.from({ length: sliceOf(current) - sliceOf(from) + 1 }, (_, index) => {
    const slice = sliceOf(from) + index;
    const first = Math.max(from, slice * sliceMinutes);
    const last = Math.min(to, (slice + 1) * sliceMinutes - 1);
    return {
      startTime: timestampFromMs(slice * sliceMinutes * minuteMs),
      minutesUp: ups.get(slice) ?? 0,
      minutesTotal: Math.max(0, last - first + 1),
    };
  });
}

/** The running minute counts once it was checked: before that nothing is known of it. */
async function readWindow(db: Queryable, from: number, to: number): Promise<MessageInitShape<typeof SlaWindowSchema>> {
  const { up, meanUs, last } = await readChecks(db, from, to);
  const total = Math.max(0, to - from + (last ? 1 : 0));
  return {
    minutesUp: up,
    minutesTotal: total,
    ...(total > 0 && { uptimePercent: (100 * up) / total }),
    ...(meanUs !== null && {
      meanResponse: { seconds: BigInt(Math.floor(meanUs / 1e6)), nanos: Math.round(meanUs % 1e6) * 1_000 },
    }),
  };
}
