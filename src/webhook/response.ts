/** What an endpoint answered, as it is kept. */
import type { App } from "../app.ts";
import type { DeliveryRef } from "./delivery-store.ts";

/** How much of an answer's body is kept, in bytes. */
export const keptResponseBytes = 4_096;
const cutCharacters = 256;

/** Where the answer to an attempt lies. */
export const responsePlace = ({ orgId, webhookId, eventId }: DeliveryRef, attempt: number) => ({
  orgId,
  table: "webhook_attempt",
  id: `${webhookId} ${eventId} ${attempt}`,
});

export const sealResponse = (app: Pick<App, "vault">, ref: DeliveryRef, attempt: number, body: string): Uint8Array =>
  app.vault.seal(responsePlace(ref, attempt), Buffer.from(body));

/** @param whole or only its beginning, as lists show it. */
export function openResponse(
  app: Pick<App, "vault">,
  ref: DeliveryRef,
  attempt: number,
  sealed: Uint8Array,
  whole: boolean,
): string {
  const text = Buffer.from(app.vault.open(responsePlace(ref, attempt), sealed)).toString();
  return whole ? text : text.slice(0, cutCharacters).toWellFormed();
}
