import type { ServiceImpl } from "@connectrpc/connect";
import type { ContactService, SubmitContactRequest } from "../../gen/moltwire/ops/v1/contact_service_pb.ts";
import type { App } from "../app.ts";
import { clientAddressKey } from "../rpc/client-address.ts";
import { command } from "../rpc/command.ts";
import { readPage } from "../rpc/page.ts";
import { query } from "../rpc/query.ts";
import { insertContact, listContacts, toContact } from "./contact-store.ts";

export const contactHandler = (app: App): ServiceImpl<typeof ContactService> => ({
  submitContact: (req, context) => {
    const address = context.values.get(clientAddressKey);
    return command<SubmitContactRequest, { contactId: string }>(app, async (sent, { tx, now }) => ({
      contactId: await insertContact(tx, app, sent, address, now),
    }))(req, context);
  },

  listContacts: query(app, async (req, { db }) => {
    const page = await readPage(
      app.cursors,
      ["ListContacts"],
      req,
      (after, limit) => listContacts(db, app.homeOrgId, after, limit),
      (row) => [row.contact_id],
    );
    return { contacts: page.rows.map((row) => toContact(app, row)), nextPageToken: page.nextPageToken };
  }),
});
