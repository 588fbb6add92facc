import type { MessageInitShape } from "@bufbuild/protobuf";
import { durationFromMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { QueueRatesSchema, QueueStatsSchema } from "../../gen/moltwire/queue/v1/queue_service_pb.ts";
import type { Queryable } from "../db/db.ts";
import { oldestPending } from "./list-store.ts";
import { quantileMs } from "./rule.ts";
import { type LevelRow, minuteKinds, readHour, readLevels } from "./tally.ts";

const maxQueues = 250;
/** How often it is read on for queues that the caller may know of. */
const maxReads = 8;

/** How the queues of an organisation stand that the caller may know of, by name; or one of them. */
export async function queueStats(
  db: Queryable,
  orgId: string,
  only: string,
  visible: (queue: string) => Promise<boolean>,
  now: number,
): Promise<MessageInitShape<typeof QueueStatsSchema>[]> {
  const found: LevelRow[] = [];
  let after = "";
  for (let read = 0; read < maxReads && found.length < maxQueues; read++) {
    const rows = await readLevels(db, orgId, { after, only }, maxQueues);
    for (const row of rows) if (await visible(row.queue)) found.push(row);
    after = rows.at(-1)?.queue ?? after;
    if (only || rows.length < maxQueues) break;
  }
  const stats: MessageInitShape<typeof QueueStatsSchema>[] = [];
  for (const level of found.slice(0, maxQueues)) stats.push(await statsOf(db, orgId, level, now));
  return stats;
}

async function statsOf(
  db: Queryable,
  orgId: string,
  { queue, scheduled, pending, leased, failed }: LevelRow,
  now: number,
): Promise<MessageInitShape<typeof QueueStatsSchema>> {
  const oldestMs = pending > 0 ? await oldestPending(db, orgId, queue) : undefined;
  return {
    queue,
    scheduled: BigInt(scheduled),
    pending: BigInt(pending),
    leased: BigInt(leased),
    failed: BigInt(failed),
    ...(oldestMs !== undefined && { oldestPendingTime: timestampFromMs(oldestMs) }),
    lastHour: ratesOf(await readHour(db, orgId, queue, now)),
  };
}

function ratesOf(
  counts: readonly { readonly kind: number; readonly n: number }[],
): MessageInitShape<typeof QueueRatesSchema> {
  const of = (kind: number) => BigInt(counts.find((one) => one.kind === kind)?.n ?? 0);
  const { submitted, completed, failed, canceled, firstBucket } = minuteKinds;
  const waits = new Map(counts.filter(({ kind }) => kind >= firstBucket).map(({ kind, n }) => [kind - firstBucket, n]));
  const [p50, p99] = [quantileMs(waits, 0.5), quantileMs(waits, 0.99)];
  return {
    submitted: of(submitted),
    completed: of(completed),
    failed: of(failed),
    canceled: of(canceled),
    ...(p50 !== undefined && { p50Wait: durationFromMs(Math.ceil(p50)) }),
    ...(p99 !== undefined && { p99Wait: durationFromMs(Math.ceil(p99)) }),
  };
}
