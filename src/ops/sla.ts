import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { GetSlaResponseSchema, SlaWindowSchema } from "../../gen/moltwire/ops/v1/status_service_pb.ts";
import type { Queryable } from "../db/db.ts";
import { checkedSince, minuteMs, minuteOf, readChecks } from "./self-check.ts";

type Sla = MessageInitShape<typeof GetSlaResponseSchema>;

const targetPercent = 99.9;
const freshMs = 15_000;
const day = 24 * 60;

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
  };
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
