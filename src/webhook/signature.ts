/** Signatures as Standard Webhooks 1.0.0 says: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md */
import { createHmac } from "node:crypto";
import { badField } from "../errors.ts";
import type { Ids } from "../ids.ts";

const prefix = "whsec_";
const newBytes = 32;
const [minBytes, maxBytes] = [24, 64];

/** A new secret: `whsec_` and 32 bytes in base64. */
export const newSecret = (ids: Ids): string => prefix + Buffer.from(ids.bytes(newBytes)).toString("base64");

const keyOf = (secret: string): Buffer => Buffer.from(secret.slice(prefix.length), "base64");

/** INVALID_REQUEST unless it is `whsec_` and 24 to 64 bytes in base64. */
export function checkSecret(secret: string, field: string): void {
  const key = keyOf(secret);
  const spelled = prefix + key.toString("base64");
  if (secret !== spelled || key.length < minBytes || key.length > maxBytes)
    throw badField(field, `must be ${prefix} and ${minBytes} to ${maxBytes} bytes in base64, with its padding`);
}

/** What goes with a request. `atMs` is the time of the attempt; one signature a secret, in their order. */
export function signedHeaders(
  secrets: readonly string[],
  { id, atMs, body }: { readonly id: string; readonly atMs: number; readonly body: string },
): Record<string, string> {
  const timestamp = String(Math.floor(atMs / 1000));
  const sign = (secret: string): string =>
    `v1,${createHmac("sha256", keyOf(secret)).update(`${id}.${timestamp}.${body}`).digest("base64")}`;
  return {
    "webhook-id": id,
    "webhook-timestamp": timestamp,
    "webhook-signature": secrets.map(sign).join(" "),
  };
}
