/** The payload of an event as its deliveries keep it. */
import type { JsonObject } from "@bufbuild/protobuf";
import type { App } from "../app.ts";

/** Where it lies: all deliveries of an event have the same, so that it is sealed once. */
export const deliveryPlace = (orgId: string, eventId: string) => ({ orgId, table: "webhook_delivery", id: eventId });

export const sealPayload = (app: Pick<App, "vault">, orgId: string, eventId: string, payload: JsonObject): Uint8Array =>
  app.vault.seal(deliveryPlace(orgId, eventId), Buffer.from(JSON.stringify(payload)));

/** What {@link sealPayload} sealed. */
export const openPayload = (app: Pick<App, "vault">, orgId: string, eventId: string, sealed: Uint8Array): JsonObject =>
  JSON.parse(Buffer.from(app.vault.open(deliveryPlace(orgId, eventId), sealed)).toString()) as JsonObject;
