/** Requests for listings, and what they cost. */
import { create, fromJsonString, type MessageInitShape, toJsonString } from "@bufbuild/protobuf";
import {
  type Charge,
  type Receipt,
  ReceiptSchema,
  type ReceiptState,
} from "../../../gen/moltwire/bus/v1/receipt_pb.ts";
import { type Queryable, type Sql, sql, type Tx } from "../../db/db.ts";

/** A request as it is stored, by its task; columns are described in the migration. */
export type CallRow = {
  readonly org_id: string;
  readonly task_id: string;
  readonly listing_id: string;
  readonly listing_version: number;
  readonly caller_org_id: string;
  readonly payer_id: string;
  readonly charge: Charge;
  readonly state: ReceiptState;
  readonly request_micros: number;
  readonly thousand_tokens_micros: number;
  readonly max_tokens: number;
  readonly fee_bps: number;
  readonly reserved_micros: number;
  readonly amount_micros: number;
  readonly fee_micros: number;
  readonly tokens: number;
  readonly subscription_id: string;
  readonly period_ms: number;
  readonly create_ms: number;
  readonly end_ms: number | null;
};

const columns = sql`org_id, task_id, listing_id, listing_version, caller_org_id, payer_id, charge, state, request_micros, thousand_tokens_micros, max_tokens, fee_bps,
  reserved_micros, amount_micros, fee_micros, tokens, subscription_id, period_ms, create_ms, end_ms`;

/** The name of the transfer that sets the price of a task aside. */
export const priceTransferId = (taskId: string): string => `${taskId}/price`;

export const insertCall = (tx: Tx, row: CallRow): Promise<number> =>
  tx.run(sql`
    insert into exchange_call (${columns})
    values (${row.org_id}, ${row.task_id}, ${row.listing_id}, ${row.listing_version}, ${row.caller_org_id}, ${row.payer_id}, ${row.charge}, ${row.state},
      ${row.request_micros}, ${row.thousand_tokens_micros}, ${row.max_tokens}, ${row.fee_bps}, ${row.reserved_micros}, ${row.amount_micros}, ${row.fee_micros},
      ${row.tokens}, ${row.subscription_id}, ${row.period_ms}, ${row.create_ms}, ${row.end_ms})`);

/** The request of a task; `orgId` is the provider's. */
export const findCall = (db: Queryable, orgId: string, taskId: string): Promise<CallRow | undefined> =>
  db.one<CallRow>(sql`select ${columns} from exchange_call where org_id = ${orgId} and task_id = ${taskId}`);

/** Writes what a request came to, once: undefined when it has ended already. */
export const endCall = (
  tx: Tx,
  { org_id, task_id }: Pick<CallRow, "org_id" | "task_id">,
  end: Pick<CallRow, "state" | "end_ms"> & { readonly amount: bigint; readonly fee: bigint; readonly tokens: bigint },
): Promise<CallRow | undefined> =>
  tx.one<CallRow>(sql`
    update exchange_call set state = ${end.state}, amount_micros = ${end.amount}, fee_micros = ${end.fee}, tokens = ${end.tokens}, end_ms = ${end.end_ms}
    where org_id = ${org_id} and task_id = ${task_id} and state = 1 returning ${columns}`);

/** Whether a request of an organisation for a listing has completed; by the index on those. */
export const hasBought = async (db: Queryable, callerOrgId: string, listingId: string): Promise<boolean> =>
  (await db.one(sql`
    select 1 as found from exchange_call where caller_org_id = ${callerOrgId} and listing_id = ${listingId} and state = 2 limit 1`)) !==
  undefined;

type FreeUse = { readonly orgId: string; readonly listingId: string; readonly periodMs: number };

/** How many requests of the free tier are used in a period. */
export const freeUsed = async (db: Queryable, { orgId, listingId, periodMs }: FreeUse): Promise<number> =>
  (
    await db.one<{ used: number }>(sql`
      select used from exchange_free_use where org_id = ${orgId} and listing_id = ${listingId} and period_ms = ${periodMs}`)
  )?.used ?? 0;

/** Uses one of so many, if one is left: one statement, so that no other comes between the look and the deed. */
export const takeFree = async (tx: Tx, { orgId, listingId, periodMs }: FreeUse, most: number): Promise<boolean> =>
  (await tx.run(sql`
    insert into exchange_free_use (org_id, listing_id, period_ms, used) values (${orgId}, ${listingId}, ${periodMs}, 1)
    on conflict (org_id, listing_id, period_ms) do update set used = exchange_free_use.used + 1 where exchange_free_use.used < ${most}`)) ===
  1;

export const giveBackFree = (tx: Tx, { orgId, listingId, periodMs }: FreeUse): Promise<number> =>
  tx.run(sql`
    update exchange_free_use set used = used - 1
    where org_id = ${orgId} and listing_id = ${listingId} and period_ms = ${periodMs} and used > 0`);

/** The oldest of those of periods that began before a time; by the index on that. */
export const deleteOldFreeUse = (tx: Tx, before: number, limit: number): Promise<number> =>
  tx.run(sql`delete from exchange_free_use where (org_id, listing_id, period_ms) in (${oldFreeUse(before, limit)})`);

export const oldFreeUse = (before: number, limit: number): Sql => sql`
  select org_id, listing_id, period_ms from exchange_free_use where period_ms < ${before} order by period_ms limit ${limit}`;

/** What a day adds to the books of a listing. */
export type DayShare = {
  readonly orgId: string;
  readonly listingId: string;
  readonly dayMs: number;
  readonly completed?: number;
  readonly failed?: number;
  readonly requestsMicros?: bigint;
  readonly subscriptionsMicros?: bigint;
  readonly feesMicros?: bigint;
};

/** Before the accounts are locked, as everywhere. */
export function addToDay(tx: Tx, share: DayShare): Promise<number> {
  const { orgId, listingId, dayMs, completed = 0, failed = 0 } = share;
  const { requestsMicros = 0n, subscriptionsMicros = 0n, feesMicros = 0n } = share;
  return tx.run(sql`
    insert into exchange_day (org_id, day_ms, listing_id, completed, failed, requests_micros, subscriptions_micros, fees_micros)
    values (${orgId}, ${dayMs}, ${listingId}, ${completed}, ${failed}, ${requestsMicros}, ${subscriptionsMicros}, ${feesMicros})
    on conflict (org_id, listing_id, day_ms) do update set completed = exchange_day.completed + excluded.completed, failed = exchange_day.failed + excluded.failed,
      requests_micros = exchange_day.requests_micros + excluded.requests_micros,
      subscriptions_micros = exchange_day.subscriptions_micros + excluded.subscriptions_micros, fees_micros = exchange_day.fees_micros + excluded.fees_micros`);
}

/** The receipt of a request, for both sides. */
export const receiptOf = (row: CallRow): Receipt =>
  create(ReceiptSchema, {
    listingId: row.listing_id,
    listingVersion: BigInt(row.listing_version),
    charge: row.charge,
    state: row.state,
    reservedMicros: BigInt(row.reserved_micros),
    amountMicros: BigInt(row.amount_micros),
    feeMicros: BigInt(row.fee_micros),
    tokens: BigInt(row.tokens),
    subscriptionId: row.subscription_id,
    payerAccountId: row.payer_id,
  });

export const receiptText = (row: CallRow): string => toJsonString(ReceiptSchema, receiptOf(row));

/** As it was written; undefined: the task costs nothing. */
export const readReceipt = (text: string): MessageInitShape<typeof ReceiptSchema> | undefined =>
  text === "" ? undefined : fromJsonString(ReceiptSchema, text);
