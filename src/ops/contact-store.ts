import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ContactSchema, SubmitContactRequest } from "../../gen/moltwire/ops/v1/contact_service_pb.ts";
import type { App } from "../app.ts";
import { type Queryable, sql, type Tx } from "../db/db.ts";
import type { Position } from "../rpc/cursor.ts";

type Needs = Pick<App, "ids" | "vault" | "homeOrgId">;
type ContactRow = { readonly contact_id: string; readonly create_ms: number; readonly body: Uint8Array };
type Body = { readonly name: string; readonly email: string; readonly subject: string; readonly message: string };

const kept = 10_000;
const sweepBatch = 1_000;

/** Where what somebody sent lies. */
export const contactPlace = (orgId: string, contactId: string) => ({ orgId, table: "contact", id: contactId });

/** Keeps what somebody sent; gives its id. */
export async function insertContact(
  tx: Tx,
  app: Needs,
  { name, email, subject, message }: SubmitContactRequest,
  address: string,
  now: number,
): Promise<string> {
  const contactId = app.ids.next("con");
  const body = Buffer.from(JSON.stringify({ name, email, subject, message, address }));
  await tx.run(sql`
    insert into contact (org_id, contact_id, create_ms, body)
    values (${app.homeOrgId}, ${contactId}, ${now}, ${app.vault.seal(contactPlace(app.homeOrgId, contactId), body)})`);
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
    sql`select contact_id, create_ms, body from contact where org_id = ${orgId} ${before} order by contact_id desc limit ${limit}`,
  );
}

export function toContact(app: Needs, row: ContactRow): MessageInitShape<typeof ContactSchema> {
  const body = JSON.parse(
    Buffer.from(app.vault.open(contactPlace(app.homeOrgId, row.contact_id), row.body)).toString(),
  ) as Body & {
    readonly address: string;
  };
  const { name, email, subject, message, address } = body;
  const createTime = timestampFromMs(row.create_ms);
  return { contactId: row.contact_id, name, email, subject, message, clientAddress: address, createTime };
}

/** Removes what is older than the newest 10,000, a bounded number at a time. */
export async function sweepContacts({ db, homeOrgId }: Pick<App, "db" | "homeOrgId">): Promise<void> {
  const sweep = (tx: Tx) =>
    tx.run(sql`
      delete from contact where org_id = ${homeOrgId} and contact_id in (
        select contact_id from contact where org_id = ${homeOrgId} order by contact_id desc limit ${sweepBatch} offset ${kept})`);
  while ((await db.tx(sweep)) === sweepBatch);
}
