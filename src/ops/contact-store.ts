import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ContactSchema, SubmitContactRequest } from "../../gen/moltwire/ops/v1/contact_service_pb.ts";
import type { App } from "../app.ts";
import { type Queryable, sql, type Tx } from "../db/db.ts";
import type { Position } from "../rpc/cursor.ts";
import type { Letter } from "./mail.ts";

type Needs = Pick<App, "vault" | "homeOrgId">;
type Kept = { readonly contact_id: string; readonly create_ms: number; readonly body: Uint8Array };
/** `mail_ms`: when it was mailed; null: it was not. */
type ContactRow = Kept & { readonly mail_ms: number | null };
/** One that is to be mailed, with how often that was tried, the attempt that is claimed included. */
export type DueMail = Kept & { readonly mail_attempts: number };
type Body = Readonly<Record<"name" | "email" | "subject" | "message" | "address", string>>;

/** Rung when something is to be mailed. */
export const mailTopic = "contacts";

const kept = 10_000;
const sweepBatch = 1_000;

/** Where what somebody sent lies. */
export const contactPlace = (orgId: string, contactId: string) => ({ orgId, table: "contact", id: contactId });

/** Keeps what somebody sent, to be mailed if mail is set up; gives its id. */
export async function insertContact(
  tx: Tx,
  app: Pick<App, "config" | "ids" | "vault" | "homeOrgId">,
  { name, email, subject, message }: SubmitContactRequest,
  address: string,
  now: number,
): Promise<string> {
  const contactId = app.ids.next("con");
  const body = Buffer.from(JSON.stringify({ name, email, subject, message, address }));
  await tx.run(sql`
    insert into contact (org_id, contact_id, create_ms, body, mail_due_ms)
    values (${app.homeOrgId}, ${contactId}, ${now}, ${app.vault.seal(contactPlace(app.homeOrgId, contactId), body)}, ${app.config.mail ? now : null})`);
  if (app.config.mail) tx.ring(mailTopic);
  return contactId;
}

/** Newest first: ids sort by time. */
export function listContacts(
  db: Queryable,
  orgId: string,
  after: Position | undefined,
  limit: number,
): Promise<ContactRow[]> {
  const before = after ? sql`and contact_id < ${after[0]!}` : sql``;
  return db.all<ContactRow>(
    sql`select contact_id, create_ms, mail_ms, body from contact where org_id = ${orgId} ${before} order by contact_id desc limit ${limit}`,
  );
}

const bodyOf = (app: Needs, row: Kept): Body =>
  JSON.parse(Buffer.from(app.vault.open(contactPlace(app.homeOrgId, row.contact_id), row.body)).toString()) as Body;

export function toContact(app: Needs, row: ContactRow): MessageInitShape<typeof ContactSchema> {
  const { name, email, subject, message, address } = bodyOf(app, row);
  const createTime = timestampFromMs(row.create_ms);
  return {
    ...{ contactId: row.contact_id, name, email, subject, message, clientAddress: address, createTime },
    ...(row.mail_ms !== null && { mailTime: timestampFromMs(row.mail_ms) }),
  };
}

export const letterOf = (app: Needs, row: DueMail): Letter => ({
  contactId: row.contact_id,
  timeMs: row.create_ms,
  ...bodyOf(app, row),
});

/** What is due to be mailed, the longest due; by the index on that. */
export const dueMail = (db: Queryable, orgId: string, now: number): Promise<DueMail | undefined> =>
  db.one<DueMail>(sql`
    select contact_id, create_ms, body, mail_attempts from contact where org_id = ${orgId} and mail_due_ms <= ${now} order by mail_due_ms limit 1`);

/** Takes one of these for a while; undefined: nothing is due, or another server was faster. */
export async function claimMail(tx: Tx, orgId: string, now: number, leaseMs: number): Promise<DueMail | undefined> {
  const due = await dueMail(tx, orgId, now);
  const taken =
    due &&
    (await tx.run(sql`
      update contact set mail_due_ms = ${now + leaseMs}, mail_attempts = mail_attempts + 1
      where org_id = ${orgId} and contact_id = ${due.contact_id} and mail_due_ms <= ${now}`));
  return due && taken === 1 ? { ...due, mail_attempts: due.mail_attempts + 1 } : undefined;
}

/** Ends an attempt: when the next one is due, null if none is, and when it was mailed. Nothing if another attempt has begun since. */
export const endMail = (
  tx: Tx,
  orgId: string,
  { contact_id, mail_attempts }: DueMail,
  nextMs: number | null,
  mailMs: number | null,
): Promise<number> =>
  tx.run(sql`
    update contact set mail_due_ms = ${nextMs}, mail_ms = ${mailMs}
    where org_id = ${orgId} and contact_id = ${contact_id} and mail_attempts = ${mail_attempts}`);

/** Removes what is older than the newest 10,000, a bounded number at a time. */
export async function sweepContacts({ db, homeOrgId }: Pick<App, "db" | "homeOrgId">): Promise<void> {
  const sweep = (tx: Tx) =>
    tx.run(sql`
      delete from contact where org_id = ${homeOrgId} and contact_id in (
        select contact_id from contact where org_id = ${homeOrgId} order by contact_id desc limit ${sweepBatch} offset ${kept})`);
  while ((await db.tx(sweep)) === sweepBatch);
}
